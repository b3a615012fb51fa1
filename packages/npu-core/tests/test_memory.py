"""torch.npu.memory: what is counted, what is returned, what is raised."""

from __future__ import annotations

import gc
import re

import pytest
import torch


@pytest.fixture(autouse=True)
def quiet_device():
    gc.collect()
    torch.npu.synchronize()
    torch.npu.empty_cache()


def test_statistics_follow_a_tensor():
    before = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    tensor = torch.empty(1000, dtype=torch.uint8, device="npu")
    assert torch.npu.memory_allocated() == before + 1536  # 1000 + 32, rounded up to 512
    stats = torch.npu.memory_stats()
    assert stats["requested_bytes.all.current"] >= 1000
    assert stats["active_bytes.all.current"] >= stats["allocated_bytes.all.current"]
    del tensor
    assert torch.npu.memory_allocated() == before
    assert torch.npu.max_memory_allocated() == before + 1536
    assert torch.npu.memory_reserved() > 0


def test_keys_are_flat_and_sorted():
    torch.empty(1, device="npu")
    stats = torch.npu.memory_stats()
    assert list(stats) == sorted(stats)
    for metric in ("allocation", "segment", "active", "inactive_split", "allocated_bytes", "reserved_bytes"):
        for pool in ("all", "small_pool", "large_pool"):
            for counter in ("current", "peak", "allocated", "freed"):
                assert isinstance(stats[f"{metric}.{pool}.{counter}"], int)
            current, allocated, freed = (
                stats[f"{metric}.{pool}.{counter}"] for counter in ("current", "allocated", "freed")
            )
            assert current == allocated - freed
    assert stats["num_ooms"] >= 0 and "num_alloc_retries" in stats
    nested = torch.npu.memory_stats_as_nested_dict()
    assert nested["reserved_bytes"]["all"]["current"] == stats["reserved_bytes.all.current"]


def test_no_statistics_before_initialisation(run_python):
    done = run_python(
        """
        import torch
        torch.npu.empty_cache()
        print(dict(torch.npu.memory_stats()), torch.npu.memory_allocated(), torch.npu.memory_snapshot())
        print(torch.npu.is_initialized())
        """
    )
    assert done.stdout.split() == ["{}", "0", "[]", "False"]


def test_empty_cache_returns_memory_to_the_driver():
    free, total = torch.npu.mem_get_info()
    assert total == torch.npu.get_device_properties(0).total_memory and 0 <= free <= total
    tensor = torch.empty(64 << 20, dtype=torch.uint8, device="npu")
    assert torch.npu.mem_get_info()[0] <= free - (64 << 20)
    del tensor
    assert torch.npu.mem_get_info()[0] <= free - (64 << 20), "cached memory counts as used"
    torch.npu.empty_cache()
    assert torch.npu.mem_get_info()[0] >= free


def test_reset_of_totals_and_peaks():
    torch.empty(100, device="npu")
    torch.npu.reset_accumulated_memory_stats()
    assert torch.npu.memory_stats()["allocation.all.allocated"] == 0
    torch.npu.reset_peak_memory_stats()
    assert torch.npu.max_memory_allocated() == torch.npu.memory_allocated()
    assert torch.npu.max_memory_reserved() == torch.npu.memory_reserved()
    with pytest.warns(DeprecationWarning):
        assert torch.npu.memory_cached() == torch.npu.memory_reserved()
    with pytest.warns(DeprecationWarning):
        torch.npu.reset_max_memory_allocated()


def test_raw_allocations_count_like_tensors():
    before = torch.npu.memory_allocated()
    address = torch.npu.caching_allocator_alloc(4096)
    assert torch.npu.memory_allocated() > before
    torch.npu.caching_allocator_delete(address)
    assert torch.npu.memory_allocated() == before
    address = torch.npu.caching_allocator_alloc(4096, stream=torch.npu.Stream())
    torch.npu.caching_allocator_delete(address)
    with pytest.raises(RuntimeError, match="invalid device pointer"):
        torch.npu.caching_allocator_delete(12345)
    with pytest.raises(TypeError, match="Invalid type for stream argument"):
        torch.npu.caching_allocator_alloc(4096, stream="side")


def test_snapshot_tiles_its_segments():
    held = [torch.empty(size, dtype=torch.uint8, device="npu") for size in (10, 5000, 3 << 20)]
    segments = torch.npu.memory_snapshot()
    addresses = {tensor.data_ptr() for tensor in held}
    live = set()
    for segment in segments:
        position = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == position
            position += block["size"]
            if block["state"] == "active_allocated":
                live.add(block["address"])
        assert position == segment["address"] + segment["total_size"]
        assert segment["segment_type"] in ("small", "large") and isinstance(segment["device"], int)
    assert addresses <= live
    assert torch.npu.memory_snapshot(mempool_id=(0, 99)) == []
    assert len(torch.npu.memory._snapshot(0)["segments"]) <= len(segments)


def test_fraction_limits_and_reports():
    total = torch.npu.get_device_properties(0).total_memory
    limit = 256 << 20
    torch.npu.set_per_process_memory_fraction(limit / total)
    try:
        assert torch.npu.get_per_process_memory_fraction() == pytest.approx(limit / total)
        before = torch.npu.memory_stats()["num_ooms"]
        with pytest.raises(
            torch.OutOfMemoryError,
            match="NPU out of memory. Tried to allocate 51[24].00 MiB .NPU 0; .* 256.00 MiB allowed;",
        ):
            torch.empty(512 << 20, dtype=torch.uint8, device="npu")
        assert torch.npu.memory_stats()["num_ooms"] == before + 1
        torch.empty(64 << 20, dtype=torch.uint8, device="npu")
    finally:
        torch.npu.set_per_process_memory_fraction(1.0)
    for bad in (-0.1, 1.5):
        with pytest.raises(ValueError, match="Allowed range: 0~1"):
            torch.npu.set_per_process_memory_fraction(bad)


def test_capacity_is_enforced(run_python):
    done = run_python(
        """
        import torch
        held = torch.empty(100 << 20, dtype=torch.uint8, device="npu")
        try:
            torch.empty(100 << 20, dtype=torch.uint8, device="npu")
        except torch.OutOfMemoryError as error:
            print(str(error).splitlines()[0])
        del held
        print(torch.empty(100 << 20, dtype=torch.uint8, device="npu").numel())
        """,
        NPU_HOST_MEMORY="128MiB",
    )
    first, second = done.stdout.splitlines()
    assert (
        re.match("NPU out of memory. Tried to allocate 10[0-2].00 MiB", first) and "128.00 MiB total capacity" in first
    )
    assert second == str(100 << 20)


def test_summary_is_a_table():
    torch.empty(3 << 20, dtype=torch.uint8, device="npu")
    lines = torch.npu.memory_summary().splitlines()
    assert all(line.startswith("|") and line.endswith("|") and len(line) == 77 for line in lines)
    assert "PyTorch NPU memory summary, device ID 0" in lines[1]
    assert sum("from large pool" in line for line in lines) == 8
    short = torch.npu.memory_summary(abbreviated=True)
    assert "from large pool" not in short and len(short) < len("\n".join(lines))


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [
        (768 * 1024 - 1, 768 * 1024 - 1, " 786431 B "),
        (768 * 1024, 768 * 1024, "    768 KB"),
        (0, 3 << 30, "      0 MB"),
        (5 << 30, 5 << 30, "   5120 MB"),
    ],
)
def test_summary_units(value, scale, text):
    from torch_npu.npu.memory_report import _format

    assert _format(value, scale, True) == text


def test_pinned_memory_is_cached():
    torch.npu.init()
    torch.npu.host_empty_cache()
    tensor = torch.empty(5000, dtype=torch.uint8, pin_memory=True)
    assert tensor.is_pinned() and not torch.empty(3).is_pinned()
    stats = torch.npu.host_memory_stats()
    assert stats["active_requests.current"] >= 1 and stats["active_bytes.current"] >= 5000
    address = tensor.data_ptr()
    del tensor
    assert torch.empty(5000, dtype=torch.uint8).pin_memory().is_pinned()
    again = torch.empty(5000, dtype=torch.uint8, pin_memory=True)
    assert again.data_ptr() == address


def test_pinned_copies_are_asynchronous_and_right():
    source = torch.arange(1 << 16, dtype=torch.float32).pin_memory()
    device = source.to("npu", non_blocking=True)
    back = torch.empty_like(source, pin_memory=True)
    back.copy_(device, non_blocking=True)
    torch.npu.synchronize()
    assert torch.equal(back, source)


def test_data_loader_pins():
    data = torch.utils.data.TensorDataset(torch.arange(12.0).view(6, 2), torch.arange(6))
    torch.ones(1, device="npu")
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(data, batch_size=3, pin_memory=True, num_workers=workers)
        batches = list(loader)
        assert len(batches) == 2 and all(part.is_pinned() for batch in batches for part in batch)
        moved = [part.to("npu", non_blocking=True) for batch in batches for part in batch]
        assert moved[0].cpu().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_accelerator_interface_agrees():
    tensor = torch.empty(10000, device="npu")
    assert torch.accelerator.memory_allocated() == torch.npu.memory_allocated()
    assert torch.accelerator.memory_reserved() == torch.npu.memory_reserved()
    del tensor
    torch.accelerator.empty_cache()
    assert torch.accelerator.memory_reserved() == torch.npu.memory_reserved()


def test_pinned_statistics_are_complete():
    torch.npu.init()
    torch.npu.host_empty_cache()
    torch.npu.reset_accumulated_host_memory_stats()
    torch.npu.reset_peak_host_memory_stats()
    before = torch.npu.host_memory_stats()
    # A size of its own, so that no cached block serves it.
    tensor = torch.empty(70_000_000, dtype=torch.uint8, pin_memory=True)
    during = torch.npu.host_memory_stats()
    assert during["active_bytes.current"] - before["active_bytes.current"] == 1 << 27
    assert during["active_bytes.peak"] == during["active_bytes.current"]
    assert during["active_requests.allocated"] == 1 and during["num_host_alloc"] == 1
    assert during["host_alloc_time.count"] == 1
    del tensor
    torch.npu.host_empty_cache()
    after = torch.npu.host_memory_stats()
    assert after["allocated_bytes.freed"] == 1 << 27 and after["num_host_free"] == 1
    assert after["active_bytes.current"] == before["active_bytes.current"]
    metrics = ("allocations", "allocated_bytes", "active_requests", "active_bytes")
    expected = {f"{metric}.{part}" for metric in metrics for part in ("current", "peak", "allocated", "freed")}
    expected |= {
        f"host_{call}_time.{part}" for call in ("alloc", "free") for part in ("total", "max", "min", "count", "avg")
    }
    assert set(after) == expected | {"num_host_alloc", "num_host_free"}
    assert list(after) == sorted(after)
    nested = torch.npu.host_memory_stats_as_nested_dict()
    assert nested["allocated_bytes"]["freed"] == 1 << 27 and nested["num_host_free"] == 1
    torch.npu.reset_accumulated_host_memory_stats()
    assert torch.npu.host_memory_stats()["allocated_bytes.freed"] == 0


def test_the_address_cache_is_emptied_too():
    torch.empty(30 << 20, dtype=torch.uint8, device="npu")
    assert torch.npu.memory_reserved() >= 30 << 20
    before = torch.npu.memory_stats()["num_device_free"]
    torch.npu.empty_virt_addr_cache()
    assert torch.npu.memory_stats()["num_device_free"] > before
