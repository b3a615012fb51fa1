"""The caching allocator under real work: asynchronous streams, several at once, little memory.

What needs control over when a stream runs is tested in C++ (tests/runtime), against a driver stepped by hand.
"""

from __future__ import annotations

import gc
import random

import pytest
import torch

from npu_core import _C

DELAY = 0.3


@pytest.fixture(autouse=True)
def quiet_device():
    gc.collect()
    torch.npu.synchronize()
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()


def delay_next_task() -> None:
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, count=1, delay_ns=int(DELAY * 1e9))


@pytest.mark.parametrize(
    ("requested", "block", "segment", "pool"),
    [
        (40, 512, 2097152, "small_pool"),
        (481, 1024, 2097152, "small_pool"),
        (1048544, 1048576, 2097152, "small_pool"),
        (1048576, 1049088, 20971520, "large_pool"),
        (10485760, 10486272, 12582912, "large_pool"),
    ],
)
def test_documented_block_and_segment_sizes(requested, block, segment, pool):
    def amounts():
        stats = torch.npu.memory_stats()
        keys = ("requested_bytes", "allocated_bytes", "active_bytes", "reserved_bytes", "allocation", "segment")
        return [stats[f"{key}.{pool}.current"] for key in keys]

    before = amounts()
    tensor = torch.empty(requested, dtype=torch.uint8, device="npu")
    assert [now - then for now, then in zip(amounts(), before, strict=True)] == [requested, block, block, segment, 1, 1]
    del tensor
    torch.npu.empty_cache()
    assert amounts() == before


def test_empty_tensors_take_no_memory():
    before = torch.npu.memory_stats()["allocation.all.allocated"]
    tensor = torch.empty(0, device="npu")
    assert tensor.device == torch.device("npu", 0) and tensor.data_ptr() == 0
    assert torch.npu.memory_stats()["allocation.all.allocated"] == before


def test_memory_is_reused_at_once_on_the_same_stream():
    delay_next_task()
    first = torch.full((1000,), 1.0, device="npu")
    address = first.data_ptr()
    doubled = first * 2
    del first
    second = torch.full((1000,), 5.0, device="npu")
    assert second.data_ptr() == address  # although `first` is still being computed
    assert doubled.cpu().eq(2).all() and second.cpu().eq(5).all()


def test_a_recorded_stream_protects_the_memory_it_reads():
    side = torch.npu.Stream()
    source = torch.full((1 << 20,), 1.0, device="npu")
    address = source.data_ptr()
    torch.npu.synchronize()
    with torch.npu.stream(side):
        delay_next_task()
        doubled = source * 2
    source.record_stream(side)
    del source
    assert torch.npu.memory_stats()["active_bytes.all.current"] > torch.npu.memory_allocated()
    # Without the record this would take over the memory and be written before the delayed multiplication reads it.
    other = torch.full((1 << 20,), 7.0, device="npu")
    assert other.data_ptr() != address
    assert doubled.cpu().eq(2).all() and other.cpu().eq(7).all()
    torch.npu.synchronize()
    assert torch.npu.memory_stats()["active_bytes.all.current"] == torch.npu.memory_allocated()
    assert torch.full((1 << 20,), 7.0, device="npu").data_ptr() == address


def test_erase_stream_lets_go_of_the_memory():
    side = torch.npu.Stream()
    tensor = torch.zeros(1000, device="npu")
    address = tensor.data_ptr()
    torch.npu.synchronize()
    with torch.npu.stream(side):
        delay_next_task()
        result = tensor + 1
    tensor.record_stream(side)
    torch.npu.current_stream().wait_stream(side)
    _C._erase_stream(address, side.stream_id, 0)
    del tensor
    again = torch.zeros(1000, device="npu")
    assert again.data_ptr() == address
    assert result.cpu().eq(1).all()


def test_results_survive_streams_sharing_the_allocator():
    """Random sizes on three streams; every tensor still holds its own number when it is read back."""
    numbers = random.Random(0)
    streams = [torch.npu.current_stream(), torch.npu.Stream(), torch.npu.Stream(priority=-1)]
    kept: list[tuple[torch.Tensor, float]] = []
    for step in range(600):
        with torch.npu.stream(numbers.choice(streams)):
            size = 1 << numbers.randrange(4, 18)
            value = float(step)
            tensor = torch.full((size,), value, device="npu")
            tensor = (tensor + 1) - 1
            kept.append((tensor, value))
        del tensor
        if len(kept) > 24:
            victim, expected = kept.pop(numbers.randrange(len(kept)))
            if numbers.random() < 0.2:
                torch.npu.synchronize()
                assert victim.cpu().eq(expected).all()
            del victim
    torch.npu.synchronize()
    for tensor, expected in kept:
        assert tensor.cpu().eq(expected).all()


def test_statistics_agree_with_the_snapshot():
    numbers = random.Random(1)
    held = [torch.empty(numbers.randrange(1, 3_000_000), dtype=torch.uint8, device="npu") for _ in range(60)]
    for _ in range(30):
        held.pop(numbers.randrange(len(held)))
    stats = torch.npu.memory_stats()
    segments = [segment for segment in torch.npu.memory_snapshot() if segment["device"] == 0]
    assert stats["reserved_bytes.all.current"] == sum(segment["total_size"] for segment in segments)
    assert stats["allocated_bytes.all.current"] == sum(segment["allocated_size"] for segment in segments)
    assert stats["segment.all.current"] == len(segments)
    blocks = [block for segment in segments for block in segment["blocks"]]
    assert stats["allocation.all.current"] == sum(block["state"] == "active_allocated" for block in blocks)
    assert stats["requested_bytes.all.current"] == sum(block["requested_size"] for block in blocks)
    split = [
        block["size"]
        for segment in segments
        for block in segment["blocks"]
        if block["state"] == "inactive" and len(segment["blocks"]) > 1
    ]
    assert stats["inactive_split.all.current"] == len(split)
    assert stats["inactive_split_bytes.all.current"] == sum(split)
    for name in ("allocation", "segment", "active", "inactive_split", "allocated_bytes", "reserved_bytes"):
        for pool in ("all", "small_pool", "large_pool"):
            parts = {part: stats[f"{name}.{pool}.{part}"] for part in ("current", "peak", "allocated", "freed")}
            assert parts["peak"] >= parts["current"] >= 0
    for name in ("allocation", "allocated_bytes", "reserved_bytes", "inactive_split_bytes"):
        assert stats[f"{name}.all.current"] == sum(
            stats[f"{name}.{pool}.current"] for pool in ("small_pool", "large_pool")
        )


def test_a_loop_reaches_a_steady_state():
    def step() -> None:
        a = torch.ones(300, 300, device="npu")
        b = a @ a
        (b + a).sum().item()

    step()
    torch.npu.empty_cache()
    step()
    stats = torch.npu.memory_stats()
    for _ in range(50):
        step()
    after = torch.npu.memory_stats()
    assert after["num_device_alloc"] == stats["num_device_alloc"]
    assert after["reserved_bytes.all.current"] == stats["reserved_bytes.all.current"]


def test_fragmented_work_fits_into_little_memory(run_python):
    done = run_python(
        """
        import random, torch
        numbers, held = random.Random(3), []
        for step in range(3000):
            held.append(torch.full((numbers.randrange(1, 4_000_000),), step % 100, dtype=torch.uint8, device="npu"))
            if sum(t.numel() for t in held) > 60_000_000:
                del held[: len(held) // 2]
        for tensor in held:
            assert (tensor.cpu() == tensor[0].item()).all()
        stats = torch.npu.memory_stats()
        print(stats["num_ooms"], stats["reserved_bytes.all.peak"] < 128 << 20)
        """,
        NPU_HOST_MEMORY="128MiB",
    )
    assert done.stdout.split() == ["0", "True"]


def test_cached_memory_makes_room_while_work_is_queued(run_python):
    done = run_python(
        """
        import torch
        from npu_core import _C
        torch.npu.init()
        _C._inject_fault(0, _C._FAULT_DELAY_TASK, count=1, delay_ns=200_000_000)
        total = torch.empty((), dtype=torch.int64, device="npu")
        first = torch.full((60 << 20,), 1, dtype=torch.uint8, device="npu")
        torch.sum(first[:1000], dim=0, out=total)
        del first  # its memory is cached, and the tasks that use it have yet to run
        second = torch.full((100 << 20,), 2, dtype=torch.uint8, device="npu")
        print(total.item(), second[-1].item(), torch.npu.memory_stats()["num_alloc_retries"])
        """,
        NPU_HOST_MEMORY="128MiB",
    )
    assert done.stdout.split() == ["1000", "2", "1"]


def test_no_caching_returns_every_free(run_python):
    done = run_python(
        """
        import torch
        tensor = torch.ones(1000, device="npu")
        print(torch.npu.memory_reserved() > 0)
        del tensor
        torch.npu.synchronize()
        print(torch.npu.memory_reserved(), torch.npu.memory_stats()["num_device_free"])
        a = torch.ones(1000, device="npu")
        for _ in range(20):
            a = a + 1
        print(a.cpu().eq(21).all().item())
        """,
        PYTORCH_NO_NPU_MEMORY_CACHING="1",
    )
    assert done.stdout.split() == ["True", "0", "1", "True"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense:1", "Unrecognized key 'nonsense'"),
        ("max_split_size_mb:20", "must be an integer greater than 20, but got '20'"),
        ("expandable_segments:True,max_split_size_mb:64", "cannot be combined"),
        ("base_addr_aligned_kb:17", r"must be [0~16]"),
    ],
)
def test_bad_settings_are_errors_at_first_use(run_python, setting, message):
    done = run_python(
        "import torch; torch.ones(1, device='npu')",
        check=False,
        PYTORCH_NPU_ALLOC_CONF=setting,
        NPU_HOST_MEMORY="64MiB",
    )
    assert done.returncode != 0 and message in done.stderr


def test_settings_are_honoured(run_python):
    done = run_python(
        """
        import torch
        tensor = torch.empty(1 << 20, device="npu")
        segment = torch.npu.memory_snapshot()[0]
        print(segment["is_expandable"], segment["total_size"] >> 20, torch.npu.get_per_process_memory_fraction())
        """,
        PYTORCH_NPU_ALLOC_CONF="expandable_segments:True,large_segment_size_mb:32,per_process_memory_fraction:0.5",
    )
    assert done.stdout.split() == ["True", "32", "0.5"]


def test_tensors_may_die_in_a_forked_child(run_python):
    done = run_python(
        """
        import os, torch
        tensor = torch.ones(1000, device="npu")
        child = os.fork()
        if child == 0:
            del tensor
            try:
                torch.ones(1, device="npu")
            except RuntimeError as error:
                os._exit(0 if "Cannot re-initialize NPU in forked subprocess" in str(error) else 2)
            os._exit(3)
        print(os.waitpid(child, 0)[1], tensor.sum().item())
        """
    )
    assert done.stdout.split() == ["0", "1000.0"]


def test_old_cached_memory_goes_before_the_device_grows_past_the_threshold(run_python):
    done = run_python(
        """
        import torch

        def take(mib):
            return torch.empty(mib << 20, dtype=torch.uint8, device="npu")

        def segments():
            return sorted(segment["total_size"] >> 20 for segment in torch.npu.memory_snapshot())

        torch.npu.set_per_process_memory_fraction(0.5)  # 128 MiB, so the threshold is 64
        old, young = take(20), take(24)
        del old
        del young
        print(segments())
        kept = take(38)
        print(segments(), torch.npu.memory_stats()["num_device_free"])
        torch.npu.set_per_process_memory_fraction(1.0)
        more = take(60)
        print(segments(), torch.npu.memory_stats()["num_device_free"])
        """,
        NPU_HOST_MEMORY="256MiB",
        PYTORCH_NPU_ALLOC_CONF="garbage_collection_threshold:0.5",
    )
    assert done.stdout.splitlines() == ["[22, 26]", "[40] 2", "[40, 62] 2"]
