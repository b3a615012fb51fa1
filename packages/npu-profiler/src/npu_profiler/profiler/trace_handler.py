"""``tensorboard_trace_handler``: writes each recorded window to a directory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from npu_profiler import console
from npu_profiler.profiler.experimental_config import flag
from npu_profiler.profiler.result import base_directory

_LONGEST_WORKER_NAME = 225


def tensorboard_trace_handler(
    dir_name: str | None = None,
    worker_name: str | None = None,
    analyse_flag: bool = True,
    async_mode: bool = False,
) -> Callable[[Any], None]:
    """Return an ``on_trace_ready`` that writes ``<dir_name>/<worker>_<pid>_<time>_ascend_pt`` for each window.

    Parameters
    ----------
    dir_name : str, optional
        Where results go; default ``$ASCEND_WORK_PATH/profiling_data``, else the current directory.
    worker_name : str, optional
        First part of the result's name, shorter than 226 characters; default the host name.
    analyse_flag : bool
        False would keep raw data for a later analysis, which is not part of this release: it is reported and the
        result is written at once.
    async_mode : bool
        Write from a thread of its own, so that training goes on.

    Returns
    -------
    callable
        The handler, to be given to :class:`profile`.
    """
    if dir_name is not None and not isinstance(dir_name, str):
        console.warning(f"dir_name must be a str, got {dir_name!r}; the default is used")
        dir_name = None
    if worker_name is not None and not (isinstance(worker_name, str) and 0 < len(worker_name) <= _LONGEST_WORKER_NAME):
        console.warning(f"worker_name must be a str shorter than {_LONGEST_WORKER_NAME + 1}; the host name is used")
        worker_name = None
    if not flag("analyse_flag", analyse_flag, True):
        console.warning("analyse_flag=False: offline analysis is not part of this release; results are written at once")
    in_background = flag("async_mode", async_mode, False)
    base = base_directory(dir_name).absolute()

    def handler(prof: Any) -> None:
        write = prof._result_writer(base, worker_name)
        if in_background:
            threading.Thread(target=write, name="npu-profiler-export").start()
        else:
            write()

    return handler
