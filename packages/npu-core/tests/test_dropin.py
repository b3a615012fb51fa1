"""What scripts written for other accelerators and for the vendor's plugin do without asking."""

from __future__ import annotations

import importlib

import pytest
import torch

import torch_npu


@pytest.mark.parametrize(
    "name",
    [
        "npu.utils",
        "npu.amp",
        "npu.random",
        "npu.memory",
        "contrib",
        "utils.collect_env",
        "testing.testcase",
        "testing.common_utils",
        "_C",
    ],
)
def test_submodules_import(name):
    assert importlib.import_module(f"torch_npu.{name}").__name__ == f"torch_npu.{name}"


def test_names_of_the_device_module():
    names = """current_device set_device device_count synchronize current_stream default_stream Stream stream Event
        mem_get_info device default_generators is_bf16_supported memory MemoryError_ ipc_collect _lazy_call
        is_current_stream_capturing FloatTensor set_stream StreamContext get_rng_state_all manual_seed_all""".split()
    assert [name for name in names if not hasattr(torch.npu, name)] == ["MemoryError_"]
    assert [
        name for name in ("autocast", "GradScaler", "custom_fwd", "custom_bwd") if not hasattr(torch.npu.amp, name)
    ] == []
    assert torch.npu.memory.memory_stats is torch.npu.memory_stats
    assert torch.npu.random.get_rng_state is torch.npu.get_rng_state


def test_toolkit_version():
    from torch_npu.utils.collect_env import get_cann_version

    assert get_cann_version() == torch.version.cann == get_cann_version("HCCL")
    assert get_cann_version("nothing") == ""


def test_mixed_devices_are_refused():
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(2, device="npu") + torch.ones(2)
    assert (torch.ones(2, device="npu") + torch.tensor(1.0)).tolist() == [2, 2]


def test_packed_sequence_moves():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    assert packed.npu().is_npu and not packed.is_npu


TRANSFER = """
    import torch, warnings
    from torch_npu.contrib import transfer_to_npu
    """


def test_transfer_runs_a_cuda_script(run_python):
    done = run_python(
        TRANSFER
        + """
    assert torch.cuda.is_available() and torch.cuda.device_count() == 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.cuda.manual_seed_all(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.cuda.amp.GradScaler(init_scale=16.0)
    x = torch.randn(5, 4, device="cuda")
    y = torch.zeros(5, dtype=torch.long).cuda(non_blocking=True)
    assert x.is_cuda and x.get_device() == 0 and next(model.parameters()).is_cuda
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.amp.autocast(dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        z = x * 2
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize("cuda:0")
    with torch.cuda.device("cuda:1"):
        assert torch.cuda.current_device() == 1
        assert torch.ones(1, device=device).get_device() == 1
    print(z.device, x.new_zeros(2, device="cuda:1").device, torch.cuda.memory_allocated() > 0)
    """
    )
    assert done.stdout.split() == ["npu:0", "npu:1", "True"]


def test_transfer_of_device_arguments(run_python, tmp_path):
    path = tmp_path / "tensor.pt"
    torch.save(torch.ones(2), path)
    done = run_python(
        TRANSFER
        + f"""
    print(torch.load({str(path)!r}, map_location="cuda:1").device)
    print(torch.load({str(path)!r}, map_location={{"cpu": "cuda:0"}}).device)
    generator = torch.Generator(device="cuda").manual_seed(3)
    assert isinstance(generator, torch.Generator)
    print(torch.rand(2, device="cuda", generator=generator).device)
    with torch.autocast("cuda"), torch.autocast(device_type="cuda", dtype=torch.bfloat16):
        print((torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype)
    print(torch.amp.GradScaler().scale(torch.ones(1, device="cuda")).device)
    with torch.device("cuda:1"):
        print(torch.ones(1).device)
    with torch.random.fork_rng():
        torch.rand(1, device="cuda")
    print(torch.zeros_like(torch.ones(2), device=torch.device("cuda", 1)).device, torch.ones(2).to("cuda").device)
    print(torch.ones(2).to("cpu").device, torch.tensor([1], device="cpu").device)
    """
    )
    assert done.stdout.split() == [
        *("npu:1", "npu:0", "npu:0", "torch.bfloat16", "npu:0", "npu:1", "npu:1", "npu:0", "cpu", "cpu"),
    ]


def test_transfer_by_environment_leaves_strings_alone(run_python):
    done = run_python(
        """
        import torch
        from torch_npu.contrib.transfer_to_npu import translate
        print(torch.cuda.is_available(), translate("cuda_graphs"), translate({"cuda:0": "cuda:1", "x": ["cuda", 1]}))
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert torch.jit.script(len) is len
        print(caught[0].category.__name__)
        """,
        TORCH_TRANSFER_TO_NPU="1",
    )
    assert done.stdout.splitlines() == [
        "True cuda_graphs {'npu:0': 'npu:1', 'x': ['npu', 1]}",
        "RuntimeWarning",
    ]


def test_facade_file_and_path():
    assert torch_npu.__file__ and list(torch_npu.__path__)
