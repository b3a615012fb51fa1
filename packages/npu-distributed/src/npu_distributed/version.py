"""Version of the wheel, and of the torch it was built for."""

__version__ = "0.1.0"

#: The compiled module uses torch's C++ interface, which changes with every minor release.
TORCH_MINOR = "2.13"
