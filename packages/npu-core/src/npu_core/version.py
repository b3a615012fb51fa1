"""Version of the wheel npu-core (independent of torch and of the facade's version)."""

__version__ = "0.1.0"
