"""Forked processes: workers that die, children that hold what their parent had on the device."""

LOADER = """
import os, signal, torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if index >= {stuck}:
            signal.pause()  # a worker that never answers
        return torch.full((100,), float(index))

keep = torch.arange(8.0, device="npu")
pinned = torch.arange(1000.0).pin_memory()
side = torch.npu.Stream()
with torch.npu.stream(side):
    queued = pinned.to("npu", non_blocking=True) * 2
"""

STILL_FINE = """
side.synchronize()
assert queued.sum().item() == 999000 and keep.tolist() == list(range(8))
assert (pinned + 1).sum().item() == 500500 and pinned.is_pinned()
again = DataLoader(Numbers(), batch_size=4, num_workers=0, pin_memory=True)
assert next(iter(again)).npu(non_blocking=True).mean().item() == 1.5
print("usable")
"""


def test_a_killed_worker(run_python):
    done = run_python(
        LOADER.replace("{stuck}", "8")
        + """
loader = DataLoader(Numbers(), batch_size=4, num_workers=2, pin_memory=True)
iterator = iter(loader)
first, second = next(iterator), next(iterator)
assert first.is_pinned() and first.npu(non_blocking=True).mean().item() == 1.5
for worker in iterator._workers:
    os.kill(worker.pid, signal.SIGKILL)
try:
    next(iterator)
except RuntimeError as error:
    print("DataLoader worker" in str(error))
del iterator, loader, first, second
"""
        + STILL_FINE
    )
    assert done.stdout.splitlines() == ["True", "usable"]
    assert "terminate called" not in done.stderr and "npu" not in done.stderr


def test_workers_of_a_loader_that_ends_in_order(run_python):
    done = run_python(
        LOADER.replace("{stuck}", "64")
        + """
total = 0.0
for epoch in range(2):
    for batch in DataLoader(Numbers(), batch_size=8, num_workers=2, pin_memory=True):
        total += batch.npu(non_blocking=True).sum().item()
print(total)
"""
        + STILL_FINE
    )
    assert done.stdout.splitlines() == [str(2 * 100.0 * sum(range(64))), "usable"]
    assert done.stderr == ""


def test_a_worker_that_touches_npu_is_told(run_python):
    done = run_python(
        """
        import torch
        from torch.utils.data import DataLoader, Dataset
        class Wrong(Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                return torch.ones(2, device="npu")
        torch.npu.init()
        try:
            next(iter(DataLoader(Wrong(), num_workers=1)))
        except RuntimeError as error:
            print("you must use the 'spawn' start method" in str(error))
        print((torch.ones(2, device="npu") + 1).tolist())
        """
    )
    assert done.stdout.splitlines() == ["True", "[2.0, 2.0]"]


def test_a_forked_child_may_drop_what_it_inherited(run_python):
    """Tensors, events, streams, generators, pinned memory: the child frees its copies, the parent keeps its own."""
    done = run_python(
        """
        import gc, os, sys, torch
        value = torch.arange(1000.0, device="npu")
        torch.npu.synchronize()
        pinned = torch.arange(1000.0).pin_memory()
        event = torch.npu.Event()
        event.record()
        generator = torch.Generator(device="npu").manual_seed(3)
        stream = torch.npu.Stream()
        with torch.npu.stream(stream):
            doubled = value * 2
        child = os.fork()
        if child == 0:
            host = pinned.sum().item()
            for use in (lambda: value + 1, lambda: event.synchronize(), lambda: torch.ones(2).pin_memory(),
                        lambda: stream.synchronize(), lambda: torch.npu.stop_device(0)):
                try:
                    use()
                    print("no error", flush=True)
                except RuntimeError as error:
                    if "spawn" not in str(error):
                        print(error, flush=True)
            del value, pinned, event, generator, doubled, use
            gc.collect()
            print("child", host, flush=True)
            sys.exit(4)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        stream.synchronize()
        print(doubled.sum().item(), pinned.sum().item(), torch.rand(1, device="npu", generator=generator).numel())
        """
    )
    assert done.stdout.splitlines() == ["child 499500.0", "4", "999000.0 499500.0 1"]
    assert done.stderr == ""
