"""Versions for bug reports: ``python -m torch_npu.utils.collect_env``."""

from __future__ import annotations

import torch_npu
from npu_core import report
from torch_npu.backend import CANN_VERSION

__all__ = ["get_cann_version", "get_pretty_env_info", "main"]

_MODULES = ("CANN", "RUNTIME", "COMPILER", "HCCL", "TOOLKIT", "OPP", "OPP_KERNEL", "DRIVER")


def get_cann_version(module: str = "CANN") -> str:
    """Return the version of the vendor's toolkit whose interface is followed.

    Parameters
    ----------
    module : str
        CANN, RUNTIME, COMPILER, HCCL, TOOLKIT, OPP, OPP_KERNEL or DRIVER; anything else gives an empty string.
    """
    return CANN_VERSION if module in _MODULES else ""


def get_torch_npu_version() -> str:
    """Return the version of the facade."""
    return torch_npu.__version__


def get_pretty_env_info() -> str:
    """Return torch's own environment report followed by that of npu-core."""
    from torch.utils.collect_env import get_pretty_env_info as torch_report

    return f"{torch_report()}\n\n{report.render(report.collect())}"


def main() -> None:
    """Print the report."""
    print(get_pretty_env_info())


if __name__ == "__main__":
    main()
