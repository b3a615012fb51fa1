"""Ranks as processes that run functions of a test file."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hccl_testing import leaks

HERE = Path(__file__).resolve().parent
WORKER = HERE.parent / "rank_worker.py"
SERVER = HERE / "rank_server.py"

# Variables that are read when a device or a group is made.  Others may be read while torch is imported, so ranks that
# are given another value of them get an interpreter of their own.
READ_LATE = ("HCCL_", "TORCH_HCCL_", "P2P_HCCL_", "NPU_HOST_", "TEST_", "NSLB_", "PERF_DUMP_", "MASTER_", "PYTEST_")
READ_LATE += ("MULTI_STREAM_MEMORY_REUSE", "STREAMS_PER_DEVICE", "TMPDIR", "RANK", "LOCAL_", "WORLD_SIZE")

TEMPORARY = tempfile.gettempdir()  # of the session: a test has its own, which must be empty afterwards
ANSWER_LIMIT = 150.0  # a busy machine may take its time
GRACE = 20.0  # what other ranks get once one has failed


def job_environment() -> dict[str, str]:
    """The environment of a job's processes: the job, not the test session, says how many devices there are."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NPU_HOST_")}


def read_early(environment: dict[str, str]) -> dict[str, str]:
    """The variables that must not differ between a rank and the process it is forked from."""
    return {name: value for name, value in environment.items() if not name.startswith(READ_LATE)}


class RankError(AssertionError):
    """A function failed on some rank."""


class ForkedRank:
    """A process that the server has forked, with the interface of subprocess.Popen."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status
        self._handle = os.pidfd_open(pid)  # no signal can reach a later process of the same number

    @property
    def descriptors(self) -> set[int]:
        """What this process keeps open for it."""
        return {self._status, self._handle} if self.returncode is None else set()

    def poll(self) -> int | None:
        """The exit status, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status."""
        if self.returncode is None:
            ready, _, _ = select.select([self._status], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(f"rank with pid {self.pid}", timeout or 0.0)
            text = os.read(self._status, 16)
            self.returncode = int(text) if text else -signal.SIGKILL  # the server itself has ended
            os.close(self._status)
            os.close(self._handle)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        """Ask the process to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process the hard way."""
        self.send_signal(signal.SIGKILL)


class RankServer:
    """The process that ranks are forked from, started when the first rank is."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        self._early: dict[str, str] = {}

    @property
    def pids(self) -> set[int]:
        """Its process id while it runs."""
        return set() if self._process is None else {self._process.pid}

    @property
    def descriptors(self) -> set[int]:
        """What this process keeps open for it."""
        return set() if self._socket is None else {self._socket.fileno()}

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether a rank with this environment may be forked; starts the server."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._start()
        return read_early(environment) == self._early

    def _start(self) -> None:
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = job_environment() | {"OMP_NUM_THREADS": "1"}
        self._early = read_early(environment)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER), str(its.fileno())],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self._socket = own
        if own.recv(16) != b"ready":
            raise RuntimeError(f"the process that forks ranks has ended with {self._process.wait()}")

    def fork(self, arguments: list[str], environment: dict[str, str], pipes: tuple[int, int, int]) -> ForkedRank:
        """Start a rank; `pipes` are its commands, answers and log."""
        assert self._socket is not None
        status_read, status_write = os.pipe()
        request = {"arguments": arguments, "environment": environment, "folder": os.getcwd()}
        descriptors = array.array("i", [*pipes, status_write])
        self._socket.sendmsg(
            [json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors.tobytes())]
        )
        os.close(status_write)
        return ForkedRank(int(self._socket.recv(32)), status_read)

    def close(self) -> None:
        """End the server."""
        if self._process is None or self._socket is None:
            return
        self._socket.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = self._socket = None


SERVER_OF_SESSION = RankServer()


class Ranks:
    """A group of worker processes with backend hccl on npu:0 ... npu:size-1."""

    def __init__(self, file: Path, size: int, **environment: str) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory(dir=TEMPORARY)
        self.temporary = Path(self._folder.name, "tmp")  # TMPDIR of the ranks
        self.temporary.mkdir()
        self._logs = [Path(self._folder.name, f"rank{rank}.log") for rank in range(size)]
        self._pipes: list[tuple[int, int]] = []
        self._unread = [b""] * size
        self.processes: list[subprocess.Popen | ForkedRank] = []
        variables = job_environment() | {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)} | environment
        for rank in range(size):
            command_read, command_write = os.pipe()
            answer_read, answer_write = os.pipe()
            arguments = [str(file), str(rank), str(size), str(Path(self._folder.name, "store"))]
            with self._logs[rank].open("w") as log:
                if SERVER_OF_SESSION.serves(variables):
                    pipes = (command_read, answer_write, log.fileno())
                    self.processes.append(SERVER_OF_SESSION.fork(arguments, variables, pipes))
                else:
                    process = subprocess.Popen(
                        [sys.executable, str(WORKER), *arguments, str(command_read), str(answer_write)],
                        pass_fds=(command_read, answer_write),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=variables,
                    )
                    self.processes.append(process)
            os.close(command_read)
            os.close(answer_write)
            self._pipes.append((command_write, answer_read))

    def start(self, function: Callable[..., Any] | str, *arguments: Any, only: tuple[int, ...] | None = None) -> None:
        """Have the ranks call `function` without waiting for it."""
        name = function if isinstance(function, str) else function.__name__
        line = json.dumps({"function": name, "arguments": arguments}) + "\n"
        for rank in only if only is not None else range(self.size):
            os.write(self._pipes[rank][0], line.encode())

    def _read(self, ranks: Iterable[int], seconds: float) -> list[int]:
        """Wait until some of `ranks` has answered or ended, and return those."""
        by_pipe = {self._pipes[rank][1]: rank for rank in ranks}
        ended = []
        ready, _, _ = select.select(list(by_pipe), [], [], max(0.0, seconds))
        for pipe in ready:
            part = os.read(pipe, 65536)
            self._unread[by_pipe[pipe]] += part
            if not part:
                ended.append(by_pipe[pipe])
        return [rank for rank in by_pipe.values() if rank in ended or b"\n" in self._unread[rank]]

    def _take(self, rank: int) -> dict[str, Any] | None:
        line, end, self._unread[rank] = self._unread[rank].partition(b"\n")
        return json.loads(line) if end else None

    def _collect(self, ranks: Iterable[int], timeout: float) -> dict[int, dict[str, Any] | None]:
        """The answers of `ranks`; a rank that hangs, or hangs because another failed, ends the test with all stacks."""
        answers: dict[int, dict[str, Any] | None] = {}
        missing = set(ranks)
        deadline = time.monotonic() + timeout
        while missing:
            answered = [rank for rank in missing if b"\n" in self._unread[rank]]
            left = deadline - time.monotonic()
            if not answered and left > 0:
                answered = self._read(missing, left)
            elif not answered:
                stacks = self.stacks()
                self.kill()
                failed = self._describe({rank: answers[rank] for rank in answers})
                text = "\n".join([*failed, f"ranks {sorted(missing)} gave no answer in time\n{stacks}\n{self.logs()}"])
                raise RankError(text) if failed else TimeoutError(text)
            for rank in answered:
                answers[rank] = answer = self._take(rank)
                missing.discard(rank)
                if answer is None or "error" in answer:
                    deadline = min(deadline, time.monotonic() + GRACE)
        return answers

    def _describe(self, answers: dict[int, dict[str, Any] | None]) -> list[str]:
        return [
            f"rank {rank}: {answer['error'] if answer else 'the process ended'}"
            for rank, answer in sorted(answers.items())
            if answer is None or "error" in answer
        ]

    def answer(self, rank: int, timeout: float = ANSWER_LIMIT) -> dict[str, Any] | None:
        """Wait for the answer of a rank: {"value": ...} or {"error": traceback}; None when the process has ended."""
        return self._collect((rank,), timeout)[rank]

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = ANSWER_LIMIT) -> list[Any]:
        """Call `function` on every rank and return what each returns."""
        self.start(function, *arguments)
        try:
            answers = self._collect(range(self.size), timeout)
        except (TimeoutError, RankError):
            raise
        except BaseException:  # pytest's own time-out, Ctrl-C
            print(f"{self.stacks()}\n{self.logs()}", file=sys.stderr)
            self.kill()
            raise
        failed = self._describe(answers)
        if failed:
            self.kill()
            raise RankError("\n".join([*failed, self.logs()]))
        return [answer["value"] for _, answer in sorted(answers.items()) if answer is not None]

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

    def stacks(self) -> str:
        """Where every thread of every rank is."""
        text = []
        for rank, process in enumerate(self.processes):
            if process.poll() is not None:
                text.append(f"--- rank {rank} has ended with {process.poll()}")
                continue
            before = self._logs[rank].stat().st_size
            process.send_signal(signal.SIGUSR1)
            deadline = time.monotonic() + 5
            size = before
            while time.monotonic() < deadline:
                time.sleep(0.1)
                now = self._logs[rank].stat().st_size
                if now > before and now == size:
                    break
                size = now
            with self._logs[rank].open("rb") as log:
                log.seek(before)
                text.append(f"--- rank {rank}, Python stacks\n{log.read().decode(errors='replace')}")
            for task in sorted(Path(f"/proc/{process.pid}/task").glob("*")):
                with contextlib.suppress(OSError):
                    name, place = (task / "comm").read_text().strip(), (task / "wchan").read_text()
                    text.append(f"    thread {task.name} {name}: {place if place != '0' else 'running'}")
        return "\n".join(text)

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

    @property
    def pids(self) -> set[int]:
        """Process ids of the ranks."""
        return {process.pid for process in self.processes}

    @property
    def descriptors(self) -> set[int]:
        """What this process keeps open for the ranks."""
        own = {descriptor for pipe in self._pipes for descriptor in pipe}
        return own.union(*(p.descriptors for p in self.processes if isinstance(p, ForkedRank)))

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
        except subprocess.TimeoutExpired as late:
            raise RankError(f"a rank does not end: {late}\n{self.stacks()}\n{self.logs()}") from None
        finally:
            self.kill()
            for _, answer in self._pipes:
                os.close(answer)
            self._pipes.clear()
        return statuses

    def discard(self) -> list[str]:
        """Free everything, also after a failure; returns the temporary files the ranks have left."""
        self.kill()
        for pipe in self._pipes:
            for descriptor in pipe:
                os.close(descriptor)
        self._pipes.clear()
        left = [str(path.relative_to(self.temporary)) for path in leaks.files_left(self.temporary)]
        self._folder.cleanup()
        return left
