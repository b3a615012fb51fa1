"""What the other processes of the tests run. Spawned children import it by name, which test modules do not allow."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing as mp

from npu_core import _C

#: How long a test waits for a peer before it fails.
PATIENCE = 120.0

KEPT: dict[str, Any] = {}


class PeerError(Exception):
    """What a peer raised; the text starts with the name of the class."""


class Peer:
    """A spawned process that runs functions of this module one after the other."""

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._connection.send((function.__name__, arguments))
        return self.result()

    def result(self) -> Any:
        assert self._connection.poll(PATIENCE), "the peer does not answer"
        kind, value = self._connection.recv()
        if kind == "error":
            raise PeerError(value)
        return value

    def close(self) -> None:
        """End the process, orderly if it can."""
        if self.process.is_alive():
            try:
                self._connection.send(None)
            except OSError:
                pass
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError("the peer did not end")
        self._connection.close()

    def kill(self) -> None:
        """End the process without a chance to clean up."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(PATIENCE)
        assert not self.process.is_alive()


def serve(connection: Any) -> None:
    while (request := connection.recv()) is not None:
        name, arguments = request
        try:
            answer = ("result", globals()[name](*arguments))
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
        del request, arguments
        connection.send(answer)
        del answer


# ---- functions for peers


def describe(value: Any) -> dict[str, Any]:
    tensor = value
    if isinstance(value, (torch.UntypedStorage, torch.TypedStorage)):
        return {"class": type(value).__name__, "device": str(value.device), "values": value.tolist()}
    return {
        "class": type(tensor).__name__,
        "device": str(tensor.device),
        "dtype": str(tensor.dtype),
        "shape": tuple(tensor.shape),
        "stride": tensor.stride(),
        "offset": tensor.storage_offset(),
        "requires_grad": tensor.requires_grad,
        "storage": tensor.untyped_storage().nbytes(),
        "values": tensor.detach().cpu().tolist(),
    }


def keep(name: str, value: Any) -> None:
    KEPT[name] = value


def drop(*names: str) -> None:
    for name in names:
        del KEPT[name]
    torch.npu.synchronize()


def values(name: str) -> Any:
    return KEPT[name].detach().cpu().tolist()


def fill(name: str, value: float) -> None:
    KEPT[name].fill_(value)
    torch.npu.synchronize()


def same_storage(first: str, second: str) -> bool:
    return KEPT[first].untyped_storage()._cdata == KEPT[second].untyped_storage()._cdata


def make(shape: tuple[int, ...], value: float, device: str = "npu") -> torch.Tensor:
    KEPT["made"] = torch.full(shape, value, device=device)
    return KEPT["made"]


def make_event() -> torch.Event:
    KEPT["event"] = torch.npu.Event(interprocess=True)
    KEPT["event"].record()
    return KEPT["event"]


def pickled(name: str) -> bytes:
    return bytes(ForkingPickler.dumps(KEPT[name]))


def unpickle(name: str, data: bytes) -> None:
    KEPT[name] = ForkingPickler.loads(data)


def rebuild(function: Callable[..., torch.Tensor], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments).tolist()


def resize(name: str) -> None:
    KEPT[name].untyped_storage().resize_(1 << 20)


def gradient(parameter: torch.Tensor) -> list[float]:
    (parameter * 3).sum().backward()
    return parameter.grad.tolist()


def mapped_device_memory() -> int:
    """How many mappings of other processes' memory this process has."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:npu" in line for line in maps)


def cycle(count: int, data: list[torch.Tensor]) -> float:
    assert len(data) == count
    return sum(tensor.item() for tensor in data)


def wait_and_read(event: torch.npu.Event, name: str) -> Any:
    event.wait()
    return KEPT[name].tolist()


def write_and_record(event: torch.npu.Event, name: str, value: float) -> None:
    KEPT[name].fill_(value)
    event.record()


def delay_next(name: str, milliseconds: int, device: int = 0) -> None:
    """Let the device do nothing for a while before it runs the next operator of that name."""
    torch.npu.init()
    _C._inject_fault(device, _C._FAULT_DELAY_TASK, match=name, count=1, delay_ns=milliseconds * 1_000_000)


def identity() -> int:
    return os.getpid()


# ---- targets of processes and pools


def add_to_argument(tensor: torch.Tensor, number: float) -> None:
    tensor.add_(number)
    torch.npu.synchronize()


def rank_of_spawn(rank: int, tensor: torch.Tensor) -> None:
    tensor[rank] = rank + 1
    torch.npu.synchronize()


def queue_loop(tasks: Any, results: Any) -> None:
    """Answer every tensor with its double, until None; then wait for the last answer to be received."""
    answers = []
    while (tensor := tasks.get(timeout=PATIENCE)) is not None:
        answers.append(tensor * 2)
        results.put(answers[-1])
    tasks.get(timeout=PATIENCE)


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2
