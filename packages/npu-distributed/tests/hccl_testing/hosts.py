"""Hosts on one machine: network namespaces joined by a switch, gone when their processes end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
TOOLS = ("unshare", "nsenter", "ip")
PATIENCE = 20.0


def find(tool: str) -> str | None:
    """Path of a tool that may lie in a folder for administrators."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin")


class Hosts:
    """`count` network namespaces with addresses 10.77.0.1, 10.77.0.2, ... on interface eth0, joined by a bridge.

    All of it lives in namespaces without a name, kept open by one idle process each: when those have ended, nothing is
    left.  Skips the test where the machine forbids namespaces or lacks the tools.
    """

    interface = "eth0"

    def __init__(self, count: int) -> None:
        missing = [tool for tool in TOOLS if find(tool) is None]
        if missing:
            pytest.skip(f"needs {', '.join(missing)} (util-linux, iproute2) to make network namespaces")
        self._as_user = os.geteuid() != 0
        self.count = count
        self._keepers: list[subprocess.Popen] = []
        try:
            user = ["--user", "--map-root-user"] if self._as_user else []
            self._switch = self._keep([find("unshare"), *user, "--net", "cat"])
            self._keepers_of_hosts = [
                self._keep([*self._enter(self._switch), find("unshare"), "--net", "cat"]) for _ in range(count)
            ]
            self._in(self._switch, "ip", "link", "add", "switch", "type", "bridge")
            self._in(self._switch, "ip", "link", "set", "switch", "up")
            for index, keeper in enumerate(self._keepers_of_hosts):
                port = f"port{index}"
                peer = ["peer", "name", self.interface, "netns", str(keeper.pid)]
                self._in(self._switch, "ip", "link", "add", port, "type", "veth", *peer)
                self._in(self._switch, "ip", "link", "set", port, "master", "switch", "up")
                self._in(keeper, "ip", "link", "set", "lo", "up")
                self._in(keeper, "ip", "address", "add", f"{self.address(index)}/24", "dev", self.interface)
                self._in(keeper, "ip", "link", "set", self.interface, "up")
        except subprocess.CalledProcessError as error:
            self.close()
            pytest.skip(f"this machine forbids network namespaces or virtual interfaces: {error.stderr.strip()}")
        except BaseException:
            self.close()
            raise

    def _keep(self, command: Sequence[str | None]) -> subprocess.Popen:
        """Start a process that holds a new network namespace until its input ends."""
        keeper = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._keepers.append(keeper)
        assert keeper.stdin is not None and keeper.stdout is not None and keeper.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(b"ready\n")
            keeper.stdin.flush()
        if keeper.stdout.readline() != b"ready\n":  # cat answers once it is in the namespace
            raise subprocess.CalledProcessError(keeper.wait(), command, stderr=keeper.stderr.read().decode())
        return keeper

    def _enter(self, keeper: subprocess.Popen) -> list[str]:
        user = ["--user", "--preserve-credentials"] if self._as_user else []
        return [str(find("nsenter")), "--target", str(keeper.pid), *user, "--net"]

    def _in(self, keeper: subprocess.Popen, tool: str, *arguments: str) -> None:
        command = [*self._enter(keeper), str(find(tool)), *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)

    def address(self, host: int) -> str:
        """The address of a host."""
        return f"10.77.0.{host + 1}"

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on a host."""
        return [*self._enter(self._keepers_of_hosts[host]), *command]

    def variables(self, hosts_of_ranks: Sequence[int]) -> dict[str, str]:
        """Environment of ranks that live on these hosts, for ``Ranks``."""
        places = [
            {"pid": self._keepers_of_hosts[host].pid, "user": self._as_user, "name": f"host{host}"}
            for host in hosts_of_ranks
        ]
        return {"TEST_HOSTS": json.dumps(places), "HCCL_SOCKET_IFNAME": f"={self.interface}"}

    def cut(self, host: int) -> None:
        """Take the cable of a host out of the switch."""
        self._in(self._switch, "ip", "link", "set", f"port{host}", "down")

    def plug(self, host: int) -> None:
        """Put it back."""
        self._in(self._switch, "ip", "link", "set", f"port{host}", "up")

    def namespaces(self) -> set[str]:
        """The network namespaces as the kernel names them."""
        return {os.readlink(f"/proc/{keeper.pid}/ns/net") for keeper in self._keepers}

    def close(self) -> None:
        """End the namespaces."""
        for keeper in self._keepers:
            keeper.kill()
            keeper.communicate()
        self._keepers.clear()


def left_of(namespaces: set[str]) -> list[str]:
    """Processes that still live in one of these namespaces, after some patience."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*/ns/net"):
            with contextlib.suppress(OSError):
                if os.readlink(entry) in namespaces:
                    found.append(str(entry))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def interfaces() -> set[str]:
    """Names of the network interfaces of this process's namespace."""
    return set(os.listdir("/sys/class/net"))


def enter(place: dict) -> None:
    """Move this process, which has one thread, to the host that `Hosts.variables` has written down for it."""
    kinds = [("user", CLONE_NEWUSER)] if place["user"] else []
    libc = ctypes.CDLL(None, use_errno=True)
    handles = [
        (os.open(f"/proc/{place['pid']}/ns/{kind}", os.O_RDONLY), flag)
        for kind, flag in [*kinds, ("net", CLONE_NEWNET)]
    ]
    for handle, flag in handles:
        if libc.setns(handle, flag) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(handle)
    os.environ["NPU_HCCL_HOST_ID"] = place["name"]
