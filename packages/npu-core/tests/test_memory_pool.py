"""Memory pools, pluggable allocators and expandable segments from Python."""

from __future__ import annotations

import ctypes.util
import gc
import threading

import pytest
import torch

from torch_npu.npu.memory import MemPool, NPUPluggableAllocator, change_current_allocator, use_mem_pool

LIBC = ctypes.util.find_library("c")


@pytest.fixture(autouse=True)
def quiet_device():
    gc.collect()
    torch.npu.synchronize()
    torch.npu.empty_cache()


def empty(mib: int, device: str = "npu") -> torch.Tensor:
    return torch.empty(mib << 20, dtype=torch.uint8, device=device)


def reserved_by(pool: MemPool) -> int:
    return sum(segment["total_size"] for segment in pool.snapshot())


def test_a_pool_has_its_own_segments():
    pool = MemPool()
    assert pool.id[0] == 0 and MemPool().id != pool.id
    assert pool.allocator is None and pool.use_count() == 1
    outside = empty(5)
    with use_mem_pool(pool):
        assert pool.use_count() == 2
        inside = empty(5)
        with torch.npu.stream(torch.npu.Stream()):
            on_another_stream = torch.ones(1000, device="npu")
    assert pool.use_count() == 1
    after = empty(5)
    addresses = {block["address"] for segment in pool.snapshot() for block in segment["blocks"]}
    assert {inside.data_ptr(), on_another_stream.data_ptr()} <= addresses
    assert not {outside.data_ptr(), after.data_ptr()} & addresses
    assert reserved_by(pool) == (20 << 20) + (2 << 20)
    assert torch.npu.memory_snapshot(pool.id) == pool.snapshot()
    assert {segment["segment_pool_id"] for segment in pool.snapshot()} == {pool.id}
    assert all(segment["segment_pool_id"] != pool.id for segment in torch.npu.memory_snapshot((0, 0)))
    torch.npu.synchronize()
    assert on_another_stream.cpu().eq(1).all()


def test_emptying_the_cache_spares_a_living_pool():
    pool = MemPool()
    with use_mem_pool(pool):
        empty(30)
    torch.npu.empty_cache()
    assert reserved_by(pool) == 32 << 20
    before = torch.npu.memory_reserved()
    identity = pool.id
    del pool
    gc.collect()
    assert torch.npu.memory_snapshot(identity) == []
    assert torch.npu.memory_reserved() == before - (32 << 20)


def test_tensors_outlive_their_pool():
    pool = MemPool()
    with use_mem_pool(pool):
        kept = torch.full((1000,), 7, device="npu")
    identity = pool.id
    del pool
    gc.collect()
    assert kept.cpu().eq(7).all() and len(torch.npu.memory_snapshot(identity)) == 1
    del kept
    torch.npu.empty_cache()
    assert torch.npu.memory_snapshot(identity) == []


def test_other_threads_and_devices_are_not_concerned():
    pool = MemPool()
    kept: list[torch.Tensor] = []
    with use_mem_pool(pool):
        thread = threading.Thread(target=lambda into: into.append(empty(5)), args=(kept,))
        thread.start()
        thread.join()
        kept.append(empty(5, "npu:1"))
        assert pool.snapshot() == []
    with use_mem_pool(pool, device=1):
        kept.append(empty(5))
        assert pool.snapshot() == []
        kept.append(empty(5, "npu:1"))
        assert [segment["device"] for segment in pool.snapshot()] == [1]
    del kept
    gc.collect()
    torch.npu.empty_cache()
    assert pool.snapshot() == []


def test_a_pool_survives_an_error_inside():
    pool = MemPool()
    with pytest.raises(ZeroDivisionError), use_mem_pool(pool):
        raise ZeroDivisionError
    assert pool.use_count() == 1
    empty(5)
    assert pool.snapshot() == []


def test_blocks_of_a_pool_without_splitting():
    pool = MemPool(no_split=True)
    with use_mem_pool(pool):
        kept = [torch.empty(10, device="npu") for _ in range(3)]
    assert len(pool.snapshot()) == 3
    assert all(len(segment["blocks"]) == 1 for segment in pool.snapshot())
    del kept


def test_a_pool_of_foreign_memory():
    allocator = NPUPluggableAllocator(LIBC, "malloc", "free").allocator()
    pool = MemPool(allocator)
    assert pool.allocator is allocator
    with use_mem_pool(pool):
        a = torch.arange(1000.0, device="npu")
        b = (a * 2).sum()
    assert b.item() == 999000.0
    assert a.data_ptr() in {segment["address"] for segment in pool.snapshot()} | {
        block["address"] for segment in pool.snapshot() for block in segment["blocks"]
    }


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"expected allocator to be what .*allocator\(\) returns, but got str"):
        MemPool(allocator="malloc")
    with pytest.raises(TypeError, match="expected pool to be a MemPool, but got tuple"), use_mem_pool((0, 1)):
        pass
    with pytest.raises(AttributeError, match="no_such_function"):
        NPUPluggableAllocator(LIBC, "no_such_function", "free")
    with pytest.raises(OSError, match="no_such_library"):
        NPUPluggableAllocator("no_such_library.so", "malloc", "free")
    with pytest.raises(TypeError, match="expected an NPUPluggableAllocator, but got int"):
        change_current_allocator(3)
    native = NPUPluggableAllocator(LIBC, "malloc", "free").allocator()
    with pytest.raises(NotImplementedError, match="set_record_stream_fn: expected only set_init_fn"):
        native.set_record_stream_fn(1)


def test_the_allocator_cannot_change_once_memory_is_used():
    tensor = torch.ones(1, device="npu")
    with pytest.raises(RuntimeError, match="Can't swap an already initialized allocator"):
        change_current_allocator(NPUPluggableAllocator(LIBC, "malloc", "free"))
    assert tensor.item() == 1


def test_all_memory_from_a_library(run_python):
    done = run_python(
        """
        import ctypes.util, torch
        libc = ctypes.util.find_library("c")
        allocator = torch.npu.memory.NPUPluggableAllocator(libc, "malloc", "free")
        torch.npu.memory.change_current_allocator(allocator)
        def counts():
            stats = torch.npu.memory_stats()
            return stats["num_device_alloc"], stats["num_device_free"]
        a = torch.arange(1000.0, device="npu")
        b = a * 2
        print(counts(), b.sum().item())
        del a
        before = counts()
        side = torch.npu.Stream()
        with torch.npu.stream(side):
            c = b + 1
        b.record_stream(side)
        del b
        after = counts()
        print(after[0] - before[0], after[1] - before[1], c.cpu().sum().item())
        weight = torch.ones(64, 64, device="npu", requires_grad=True)
        (weight @ weight).sum().backward()
        print(weight.grad.cpu().eq(128).all().item())
        try:
            torch.npu.memory.change_current_allocator(allocator)
        except RuntimeError as error:
            print(str(error).splitlines()[0])
        """
    )
    first, second, third, fourth = done.stdout.splitlines()
    assert first == "(2, 0) 999000.0"
    assert second == "1 1 1000000.0"
    assert third == "True"
    assert fourth.startswith("Can't swap an already initialized allocator")


def test_expandable_segments_are_used_as_one(run_python):
    done = run_python(
        """
        import torch

        def piece(mib):
            # With the padding a block of exactly `mib`.
            return torch.ones((mib << 20) - 32, dtype=torch.uint8, device="npu")

        def held():
            segments = torch.npu.memory_snapshot()
            assert all(segment["is_expandable"] for segment in segments)
            assert sum(segment["total_size"] for segment in segments) == torch.npu.memory_reserved()
            return [segment["total_size"] >> 20 for segment in segments]

        pieces = [piece(20) for _ in range(6)]
        print(held(), torch.npu.memory_stats()["segment.all.current"])
        del pieces[2:]
        before = torch.npu.memory_stats()["num_device_alloc"]
        whole = piece(80)  # of the memory of four pieces
        print(held(), torch.npu.memory_stats()["num_device_alloc"] - before)
        del whole, pieces[0]
        torch.npu.empty_cache()
        print(held(), pieces[0].cpu().eq(1).all().item())
        torch.npu.set_per_process_memory_fraction(0.5)  # 80 MiB
        try:
            piece(70)
        except torch.OutOfMemoryError as error:
            print("80.00 MiB allowed" in str(error))
        """,
        PYTORCH_NPU_ALLOC_CONF="expandable_segments:True",
        NPU_HOST_MEMORY="160MiB",
    )
    assert done.stdout.splitlines() == ["[120] 1", "[120] 0", "[20] True", "True"]
