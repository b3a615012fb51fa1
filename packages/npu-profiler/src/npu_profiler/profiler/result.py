"""The result directory of a recorded window."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npu_profiler.chrome_trace import write_chrome_trace
from npu_profiler.recording import Trace

OUTPUT_FOLDER = "ASCEND_PROFILER_OUTPUT"
TRACE_FILE = "trace_view.json"


def base_directory(dir_name: str | None) -> Path:
    """Return where results go: the given directory, else ``$ASCEND_WORK_PATH/profiling_data``, else the current one."""
    if dir_name:
        return Path(dir_name)
    work_path = os.environ.get("ASCEND_WORK_PATH")
    return Path(work_path) / "profiling_data" if work_path else Path.cwd()


def write_result(
    trace: Trace, base: Path, worker: str | None, config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> Path:
    """Write a window to a new directory below ``base`` and return that directory.

    Parameters
    ----------
    trace
        The window.
    base
        Directory for results, created when missing.
    worker
        First part of the directory's name; the host name when None.
    config
        Options of the profile, for ``profiler_info.json``.
    metadata
        What the user added, for ``profiler_metadata.json``.
    """
    folder = _new_directory(base, worker or socket.gethostname(), trace.started.unix_ns)
    output = folder / OUTPUT_FOLDER
    output.mkdir(mode=0o750)
    write_chrome_trace(trace, output / TRACE_FILE)
    rank = os.environ.get("RANK")
    info: dict[str, Any] = {
        "config": dict(config),
        "start_info": {"start_monotonic": trace.started.monotonic_ns},
        "end_info": {"collectionTimeEnd": trace.stopped.unix_ns, "MonotonicTimeEnd": trace.stopped.monotonic_ns},
    }
    if rank:
        info["rank_id"] = int(rank) if rank.isdigit() else rank
    _write_json(folder / (f"profiler_info_{rank}.json" if rank else "profiler_info.json"), info)
    if metadata:
        _write_json(folder / "profiler_metadata.json", metadata)
    return folder


def _new_directory(base: Path, worker: str, unix_ns: int) -> Path:
    base.mkdir(mode=0o750, parents=True, exist_ok=True)
    while True:
        seconds, milliseconds = divmod(unix_ns // 1_000_000, 1000)
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(seconds)) + f"{milliseconds:03d}"
        folder = base / f"{worker}_{os.getpid()}_{stamp}_ascend_pt"
        try:
            folder.mkdir(mode=0o750)
            return folder
        except FileExistsError:
            unix_ns += 1_000_000


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "w", encoding="utf-8") as text:
        json.dump(content, text, indent=2)
