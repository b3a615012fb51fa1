"""Version of the facade: torch's release, then the wheel that provides it."""

from __future__ import annotations

from npu_core._build import GIT_VERSION, TORCH_NPU_VERSION

__version__ = TORCH_NPU_VERSION
git_version = GIT_VERSION
