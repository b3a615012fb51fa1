"""What happens at interpreter exit: drain the devices, report what failed, stop the driver."""

from __future__ import annotations

import atexit

from npu_core import _C


def register() -> None:
    """Arrange for `drain` to run at interpreter exit."""
    atexit.register(drain)


def drain() -> None:
    """Wait for all devices and end the driver's threads.

    The runtime writes an error nobody has asked for yet to stderr: raising at exit would only hide it.
    """
    if _C._is_initialized() and not _C._is_in_bad_fork():
        _C._finalize()
