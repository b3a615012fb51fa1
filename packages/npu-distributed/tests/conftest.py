"""Ranks as processes: ``ranks(size)`` gives a group that stays up between tests, ``fresh_ranks(size)`` one of its own.

A function of a test file runs on every rank as ``function(rank, size, *arguments)``; what it returns or raises comes
back to the test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
WORKER = HERE / "rank_worker.py"
sys.path.insert(0, str(HERE))  # what tests share, here as in the ranks


def job_environment() -> dict[str, str]:
    """The environment of a job's processes: the job, not the test session, says how many devices there are."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NPU_HOST_")}


class RankError(AssertionError):
    """A function failed on some rank."""


class Ranks:
    """A group of worker processes with backend hccl on npu:0 ... npu:size-1."""

    def __init__(self, file: Path, size: int, **environment: str) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        self._logs = [Path(self._folder.name, f"rank{rank}.log") for rank in range(size)]
        self._pipes: list[tuple[int, int]] = []
        self.processes: list[subprocess.Popen] = []
        for rank in range(size):
            command_read, command_write = os.pipe()
            answer_read, answer_write = os.pipe()
            store = Path(self._folder.name, "store")
            command = [sys.executable, WORKER, file, rank, size, store, command_read, answer_write]
            with self._logs[rank].open("w") as log:
                process = subprocess.Popen(
                    [str(part) for part in command],
                    pass_fds=(command_read, answer_write),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=job_environment() | {"OMP_NUM_THREADS": "1"} | environment,
                )
            os.close(command_read)
            os.close(answer_write)
            self.processes.append(process)
            self._pipes.append((command_write, answer_read))

    def start(self, function: Callable[..., Any] | str, *arguments: Any, only: tuple[int, ...] | None = None) -> None:
        """Have the ranks call `function` without waiting for it."""
        name = function if isinstance(function, str) else function.__name__
        line = json.dumps({"function": name, "arguments": arguments}) + "\n"
        for rank in only if only is not None else range(self.size):
            os.write(self._pipes[rank][0], line.encode())

    def answer(self, rank: int, timeout: float = 90.0) -> dict[str, Any] | None:
        """Wait for the answer of a rank: {"value": ...} or {"error": traceback}; None when the process has ended."""
        deadline = time.monotonic() + timeout
        text = b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self._pipes[rank][1]], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                raise TimeoutError(f"rank {rank} gave no answer within {timeout} s\n{self.logs()}")
            part = os.read(self._pipes[rank][1], 65536)
            if not part:
                return None
            text += part
        return json.loads(text)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 90.0) -> list[Any]:
        """Call `function` on every rank and return what each returns."""
        self.start(function, *arguments)
        answers = [self.answer(rank, timeout) for rank in range(self.size)]
        failed = [
            f"rank {rank}: {answer['error'] if answer else 'the process ended'}"
            for rank, answer in enumerate(answers)
            if answer is None or "error" in answer
        ]
        if failed:
            self.kill()
            raise RankError("\n".join([*failed, self.logs()]))
        return [answer["value"] for answer in answers if answer is not None]

    def run_only(self, rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` on one rank and return what it returns."""
        self.start(function, *arguments, only=(rank,))
        answer = self.answer(rank)
        if answer is None or "error" in answer:
            raise RankError(f"rank {rank}: {answer['error'] if answer else 'the process ended'}\n{self.logs()}")
        return answer["value"]

    def end_input(self, rank: int) -> None:
        """Let one rank finish: it sees the end of its commands."""
        command, answer = self._pipes[rank]
        os.close(command)
        self._pipes[rank] = (os.open(os.devnull, os.O_WRONLY), answer)

    def logs(self) -> str:
        """What the ranks have written to stdout and stderr."""
        return "\n".join(f"--- rank {rank}\n{log.read_text()}" for rank, log in enumerate(self._logs))

    def log(self, rank: int) -> str:
        """What one rank has written."""
        return self._logs[rank].read_text()

    @property
    def alive(self) -> bool:
        """Whether every process still runs."""
        return all(process.poll() is None for process in self.processes)

    def kill(self) -> None:
        """End the processes the hard way."""
        for process in self.processes:
            process.kill()
            process.wait()

    def close(self, timeout: float = 60.0) -> list[int]:
        """Let the ranks finish and return their exit statuses."""
        for command, _ in self._pipes:
            os.close(command)
        statuses = []
        try:
            deadline = time.monotonic() + timeout
            for process in self.processes:
                statuses.append(process.wait(max(0.1, deadline - time.monotonic())))
        finally:
            self.kill()
            for _, answer in self._pipes:
                os.close(answer)
            self._pipes.clear()
        return statuses

    def discard(self) -> None:
        """Free everything, also after a failure."""
        self.kill()
        for pipe in self._pipes:
            for descriptor in pipe:
                os.close(descriptor)
        self._pipes.clear()
        self._folder.cleanup()


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Ranks]]:
    """Groups by size, shared by the tests of a file and replaced after a failure."""
    groups: dict[int, Ranks] = {}

    def get(size: int) -> Ranks:
        if size in groups and not groups[size].alive:
            groups.pop(size).discard()
        if size not in groups:
            groups[size] = Ranks(request.path, size)
        return groups[size]

    yield get
    try:
        for group in groups.values():
            if group.alive:
                assert group.close() == [0] * group.size, group.logs()
    finally:
        for group in groups.values():
            group.discard()


@pytest.fixture
def fresh_ranks(request: pytest.FixtureRequest) -> Iterator[Callable[..., Ranks]]:
    """Makes groups of the test's own, with environment variables as keywords."""
    groups: list[Ranks] = []

    def make(size: int, **environment: str) -> Ranks:
        groups.append(Ranks(request.path, size, **environment))
        return groups[-1]

    yield make
    for group in groups:
        group.discard()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need devices are skipped where npu-core is not installed."""
    if importlib.util.find_spec("torch_npu") is not None:
        return
    skip = pytest.mark.skip(reason="needs npu-core (pip install npu-core)")
    for item in items:
        if {"ranks", "fresh_ranks"} & set(getattr(item, "fixturenames", ())) and HERE in item.path.parents:
            item.add_marker(skip)
