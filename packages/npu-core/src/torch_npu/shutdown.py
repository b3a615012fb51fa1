"""What happens at interpreter exit: wait for the devices, report what failed, stop the driver."""

from __future__ import annotations

import atexit

from npu_core import _C


def register() -> None:
    """Arrange for `drain` to run at interpreter exit, and for the end of the driver behind all such handlers."""
    _C._finalize_at_exit()
    atexit.register(drain)


def drain() -> None:
    """Wait for all devices.

    The runtime writes an error nobody has asked for yet to stderr: raising at exit would only hide it. The devices
    stay usable, for handlers that were registered earlier and so run later. Ctrl-C ends the wait; queued work is then
    dropped.
    """
    _C._drain()
