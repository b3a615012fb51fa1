"""Finds what a test has left behind: processes, shared memory, descriptors, temporary files."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable
from pathlib import Path

# Files that torch does not remove: torchrun's folders of logs, errors of mp.spawn, compiled code.
KEPT_BY_TORCH = ("torchelastic_", "pytorch-errorfile-", "torchinductor_")
KEPT_BY_DEVICE = "/memfd:npu-device-memory"  # the arena of a device lives as long as the process that uses it
PATIENCE = 10.0  # processes and descriptors that are just going away


def children_of(pid: int | str) -> set[int]:
    """Processes whose parent is `pid`."""
    found: set[int] = set()
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.update(map(int, listing.read_text().split()))
        except OSError:
            pass  # the thread has ended
    return found


def descriptors() -> dict[int, str]:
    """Open descriptors of this process and what they lead to."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            pass  # the one that lists the folder
    return found


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def held_by_others(name: str) -> bool:
    """Whether a process outside this session has the shared memory open: then it is not ours."""
    path = f"/dev/shm/{name}"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if path in (process / "maps").read_text():
                return True
            if any(os.readlink(entry) == path for entry in (process / "fd").iterdir()):
                return True
        except OSError:
            continue
    return False


def files_left(folder: Path) -> list[Path]:
    """What a folder for temporary files holds that nobody will remove."""
    files = sorted(folder.rglob("*"))
    return [file for file in files if not file.relative_to(folder).parts[0].startswith(KEPT_BY_TORCH)]


def command_line(pid: int) -> str:
    """How a process was started, for messages."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return "(ended meanwhile)"
    if rest.split()[0] == "Z":
        return f"({name}, ended but nobody has waited for it)"
    return text[:200] or f"({name}, just starting)"


class Before:
    """The state before a test."""

    def __init__(self) -> None:
        self.children = children_of("self")
        self.descriptors = descriptors()
        self.shared_memory = shared_memory()

    def allow(self, *groups: Iterable[int]) -> None:
        """Descriptors that are to stay."""
        now = descriptors()
        for number in (number for group in groups for number in group):
            self.descriptors[number] = now[number]

    def left_behind(self, parents: Iterable[int], expected_pids: set[int], temporary: Path) -> list[str]:
        """What there is now and was not before, as sentences.

        `parents` are processes whose children count as well, `expected_pids` processes that are to stay.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            found = self.look(parents, expected_pids, temporary)
            if not found or time.monotonic() > deadline:
                return found
            gc.collect()
            time.sleep(0.05)

    def look(self, parents: Iterable[int], expected_pids: set[int], temporary: Path) -> list[str]:
        """The same, without patience."""
        pids = children_of("self") - self.children
        for parent in parents:
            pids |= children_of(parent)
        found = [f"process {pid}: {command_line(pid)}" for pid in sorted(pids - expected_pids)]
        # Other jobs of this machine make shared memory too: theirs is open somewhere.
        found += [
            f"shared memory /dev/shm/{name}"
            for name in sorted(shared_memory() - self.shared_memory)
            if not held_by_others(name)
        ]
        found += [
            f"descriptor {number}: {target}"
            for number, target in sorted(descriptors().items())
            if self.descriptors.get(number) != target and not target.startswith(KEPT_BY_DEVICE)
        ]
        return found + [f"temporary file {path}" for path in files_left(temporary)]
