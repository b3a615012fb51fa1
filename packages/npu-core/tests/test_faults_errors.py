"""Errors of every origin: the documented exception, and a device that works afterwards."""

from __future__ import annotations

import threading

import pytest
import torch

from npu_core import _C


def gather_out_of_range(device: str = "npu:0") -> torch.Tensor:
    return torch.gather(torch.zeros(4, 3, device=device), 0, torch.full((1, 3), 77, device=device))


def assert_usable() -> None:
    for device in range(torch.npu.device_count()):
        torch.npu.synchronize(device)
        assert (torch.ones(3, device=f"npu:{device}") + 1).tolist() == [2.0] * 3


# ---- errors and the order between streams ----


def test_an_error_reaches_the_stream_that_waits(hold):
    """The consumer's work is dropped, not run on memory that was never written."""
    producer, consumer = torch.npu.Stream(), torch.npu.Stream()
    result = torch.zeros(1, 3, device="npu")
    torch.npu.synchronize()
    hold(match="gather")
    with torch.npu.stream(producer):
        value = gather_out_of_range()
    consumer.wait_stream(producer)
    with torch.npu.stream(consumer):
        result.copy_(value + 1)
        result.add_(5)
    hold.release()
    with pytest.raises(RuntimeError, match="aten::gather.*index 77 is out of bounds"):
        consumer.synchronize()
    producer.synchronize()  # the error was raised: the stream it came from has none any more
    assert_usable()
    assert result.eq(0).all()


def test_an_error_reaches_another_device():
    first, second = torch.npu.Stream("npu:0"), torch.npu.Stream("npu:1")
    with torch.npu.stream(first):
        value = gather_out_of_range()
    with torch.npu.stream(first), torch.npu.stream(second):
        copied = value.to("npu:1", non_blocking=True)  # ordered on both streams
        total = copied.sum()
    with pytest.raises(RuntimeError, match="index 77 is out of bounds"), torch.npu.stream(second):
        total.item()
    torch.npu.synchronize(0)
    assert_usable()


def test_the_failed_stream_raises_and_so_does_the_one_that_waited():
    producer, consumer = torch.npu.Stream(), torch.npu.Stream()
    with torch.npu.stream(producer):
        gather_out_of_range()
    consumer.wait_stream(producer)
    for stream in (producer, consumer):  # upstream first: the consumer's dropped work is news of its own
        with pytest.raises(RuntimeError, match="index 77 is out of bounds"):
            stream.synchronize()
    for stream in (producer, consumer):
        stream.synchronize()
    assert_usable()


def test_waiting_for_an_old_event_after_the_error_was_raised():
    stream, other = torch.npu.Stream(), torch.npu.Stream()
    with torch.npu.stream(stream):
        gather_out_of_range()
        event = stream.record_event()
    with pytest.raises(RuntimeError, match="index 77"):
        stream.synchronize()
    other.wait_event(event)
    with torch.npu.stream(other):
        assert (torch.ones(2, device="npu") * 4).tolist() == [4.0, 4.0]


def test_an_event_in_front_of_the_error_is_a_good_one():
    stream, other = torch.npu.Stream(), torch.npu.Stream()
    value = torch.zeros(4, device="npu")
    torch.npu.synchronize()
    with torch.npu.stream(stream):
        value.add_(1)
        event = stream.record_event()
        gather_out_of_range()
    other.wait_event(event)
    with torch.npu.stream(other):
        assert (value * 2).tolist() == [2.0] * 4
    with pytest.raises(RuntimeError, match="index 77"):
        stream.synchronize()


def test_a_device_wide_wait_raises_once_and_clears_every_stream():
    streams = [torch.npu.Stream() for _ in range(4)]
    for stream in streams:
        with torch.npu.stream(stream):
            gather_out_of_range()
    with pytest.raises(RuntimeError, match="index 77"):
        torch.npu.synchronize()
    torch.npu.synchronize()
    for stream in streams:
        stream.synchronize()
    assert_usable()


def test_every_thread_that_waits_hears_of_the_error(hold):
    """Two threads share a stream; the work of both is dropped, so both must be told."""
    value = torch.zeros(4, device="npu")
    torch.npu.synchronize()
    hold(match="gather")
    gather_out_of_range()
    value.add_(1)
    heard, ready = [], threading.Barrier(3)

    def wait() -> None:
        ready.wait()
        try:
            torch.npu.default_stream().synchronize()
        except RuntimeError as error:
            heard.append("index 77" in str(error))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait()
    hold.release()
    for thread in threads:
        thread.join()
    # A thread that comes when the other has been told already finds a stream that works again.
    assert heard in ([True], [True, True])
    assert_usable()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (1, ValueError),
        (2, torch.OutOfMemoryError),
        (3, NotImplementedError),
        (5, RuntimeError),
        (6, IndexError),
        (7, TypeError),
        (8, RuntimeError),
    ],
)
def test_each_status_of_a_task_has_its_exception(status, kind):
    value = torch.zeros(4, device="npu")
    torch.npu.synchronize()
    _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="aten::add", count=1, status=status)
    value.add_(1)
    with pytest.raises(kind, match="aten::add") as caught:
        torch.npu.synchronize()
    assert type(caught.value) is kind
    assert_usable()
    assert value.tolist() == [0.0] * 4


# ---- out of memory ----


def test_out_of_memory_again_and_again(run_python):
    done = run_python(
        """
        import torch
        keep = torch.ones(1 << 20, device="npu")
        torch.npu.synchronize()
        kept = torch.npu.memory_allocated()
        for round in range(20):
            blocks = []
            try:
                while True:
                    blocks.append(torch.full((8 << 20,), float(round), device="npu"))
            except torch.OutOfMemoryError as error:
                assert "NPU out of memory. Tried to allocate" in str(error), error
            assert blocks and all(block[-1].item() == round for block in blocks)
            try:
                blocks[0] @ torch.empty(1 << 40, device="npu")
            except torch.OutOfMemoryError:
                pass
            try:
                torch.cat(blocks)
            except torch.OutOfMemoryError:
                pass
            del blocks
            assert keep.sum().item() == 1 << 20
            assert torch.npu.memory_allocated() == kept
            assert torch.npu.memory_reserved() <= 256 << 20
        print(torch.npu.memory_stats()["num_ooms"] >= 60)
        """,
        NPU_HOST_MEMORY="256MiB",
    )
    assert done.stdout == "True\n" and done.stderr == ""


def test_out_of_memory_in_the_backward_pass(run_python):
    done = run_python(
        """
        import torch
        x = torch.ones(12 << 20, device="npu", requires_grad=True)
        ballast = [torch.empty(8 << 20, device="npu") for _ in range(3)]
        loss = (x * x).sum()
        del_me = []
        try:
            while True:
                del_me.append(torch.empty(1 << 20, device="npu"))
        except torch.OutOfMemoryError:
            pass
        try:
            loss.backward()
        except torch.OutOfMemoryError:
            print("out of memory")
        del ballast, del_me, loss
        x.grad = None
        (x * 3).sum().backward()
        print(x.grad.eq(3).all().item())
        """,
        NPU_HOST_MEMORY="256MiB",
    )
    assert done.stdout.splitlines() == ["out of memory", "True"]


# ---- ordinals ----


@pytest.mark.parametrize(
    "use",
    [
        lambda: torch.npu.set_device(99),
        lambda: torch.empty(1, device="npu:99"),
        lambda: torch.ones(1).to("npu:99"),
        lambda: torch.npu.Stream("npu:99"),
        lambda: torch.npu.current_stream(99),
        lambda: torch.npu.synchronize(99),
        lambda: torch.npu.device(99).__enter__(),
        lambda: torch.Generator(device="npu:99"),
        lambda: torch.ones(1, device="npu").to("npu:99"),
        lambda: torch.npu.stop_device(99),
        lambda: torch.npu.restart_device(99),
    ],
)
def test_an_invalid_ordinal(use):
    with pytest.raises(RuntimeError, match="99|out of range|Invalid device"):
        use()
    assert torch.npu.current_device() == 0
    assert_usable()


# ---- autograd ----


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("in the backward thread")


def train_once() -> list[float]:
    x = torch.full((3,), 2.0, device="npu", requires_grad=True)
    (x * x).sum().backward()
    return x.grad.tolist()


def test_python_error_in_the_backward_thread():
    x = torch.ones(3, device="npu", requires_grad=True)
    for _ in range(3):
        with pytest.raises(ValueError, match="in the backward thread"):
            FailingBackward.apply(x * 1).sum().backward()
    assert train_once() == [4.0] * 3


def test_error_in_a_gradient_hook():
    x = torch.ones(3, device="npu", requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: gradient + torch.ones(5, device="npu"))
    with pytest.raises(RuntimeError, match="size"):
        y.sum().backward()
    assert train_once() == [4.0] * 3


def test_kernel_error_in_the_backward_pass():
    x = torch.ones(3, device="npu", requires_grad=True)
    loss = (x * 3).sum()
    torch.npu.synchronize()
    _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="mul", count=1)
    with pytest.raises(RuntimeError, match="mul"):
        loss.backward()
        torch.npu.synchronize()
    assert train_once() == [4.0] * 3


def test_error_of_a_waiting_operator_in_the_backward_thread():
    """An operator that waits inside the backward thread raises there; the caller of backward() gets it."""

    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            gather_out_of_range().sum().item()
            return gradient

    x = torch.ones(3, device="npu", requires_grad=True)
    with pytest.raises(RuntimeError, match="index 77 is out of bounds"):
        Reads.apply(x).sum().backward()
    assert train_once() == [4.0] * 3


# ---- sync debug mode ----


def test_sync_debug_error_leaves_no_task_behind(hold):
    value = torch.arange(4.0, device="npu")
    host = torch.arange(1 << 19, dtype=torch.float64)
    torch.npu.synchronize()
    torch.npu.set_sync_debug_mode("error")
    try:
        for use in (value.nonzero, value.cpu, value.tolist, lambda: host.to("npu")):
            with pytest.raises(RuntimeError, match="called a synchronizing NPU operation"):
                use()
    finally:
        torch.npu.set_sync_debug_mode(0)
    assert_usable()
