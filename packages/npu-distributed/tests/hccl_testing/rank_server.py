"""Forks ranks from a process that has imported torch once, which is most of what starting a rank costs.

Started by processes.py as ``python rank_server.py <socket fd>``.  A request is one message with a JSON object
{"arguments", "environment", "folder"} and four descriptors: where the rank reads commands, where it writes answers, its
log, and where this process writes the exit status.  The reply is the pid.  This process has one thread and never
touches a device: a fork after that would be refused.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys

PRELOADED = (
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.distributed.pipelining",
    "torch.nn.parallel",
    "pytest",
)
PR_SET_CHILD_SUBREAPER = 36


def main() -> list[str]:
    """Serve until the parent closes the socket.  Returns in every rank, with its arguments."""
    # What a rank leaves running becomes a child of this process, where the tests see it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for module in ("torch", *PRELOADED):
        importlib.import_module(module)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1 or sys.modules["torch"].npu.is_initialized():
        sys.exit(f"importing torch has started {threads - 1} threads or the device: ranks cannot be forked")
    if "hccl" not in sys.modules["torch.distributed"].Backend.backend_list:
        sys.exit("importing torch has not registered backend hccl: the warning above says why")
    gc.freeze()  # collections in the ranks do not touch, and so copy, what all share

    requests = socket.socket(fileno=int(sys.argv[1]))
    wake_read, wake_write = socket.socketpair()
    wake_read.setblocking(False)
    wake_write.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write.fileno())
    requests.send(b"ready")
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests, wake_read], [], [])
        if wake_read in ready:
            wake_read.recv(4096)
            report_ended(statuses)
        if requests not in ready:
            continue
        message, control, _, _ = requests.recvmsg(1 << 20, socket.CMSG_SPACE(4 * 4))
        if not message:
            sys.exit(0)
        descriptors = array.array("i")
        for _, _, data in control:
            descriptors.frombytes(data)
        commands, answers, log, status = descriptors
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (requests, wake_read, wake_write):
                end.close()
            for other in (*statuses.values(), status):
                os.close(other)
            for target in (1, 2):
                os.dup2(log, target)
            os.close(log)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["folder"])
            return [*request["arguments"], str(commands), str(answers)]
        for descriptor in (commands, answers, log):
            os.close(descriptor)
        statuses[pid] = status
        requests.send(str(pid).encode())


def report_ended(statuses: dict[int, int]) -> None:
    """Tell the parent how ranks ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in statuses:
            descriptor = statuses.pop(pid)
            try:
                os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
            except BrokenPipeError:
                pass  # nobody asks any more
            os.close(descriptor)


if __name__ == "__main__":
    arguments = main()
    sys.argv = ["rank_worker.py", *arguments]
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import rank_worker

    rank_worker.main()
