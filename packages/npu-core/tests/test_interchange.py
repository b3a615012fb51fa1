"""npu tensors and other libraries: DLPack, numpy, safetensors."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils.dlpack import DLDeviceType, from_dlpack, to_dlpack

from npu_core import _C

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
]


# ---- DLPack


@pytest.mark.parametrize("device", ["npu:0", "npu:1"])
def test_device(device):
    tensor = torch.ones(2, device=device)
    assert tensor.__dlpack_device__() == (DLDeviceType.kDLExtDev, torch.device(device).index)
    assert torch.ones(2).__dlpack_device__() == (DLDeviceType.kDLCPU, 0)
    assert tensor.data.__dlpack_device__()[0].value == 12


@pytest.mark.parametrize(
    "exchange", [torch.from_dlpack, lambda t: from_dlpack(to_dlpack(t))], ids=["object", "capsule"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_shares_memory(dtype, exchange):
    base = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype).to("npu:1")
    for tensor in (base, base.t(), base[1:, ::2], base[0, 1], base[:0]):
        again = exchange(tensor)
        assert (again.device, again.dtype) == (tensor.device, dtype)
        assert (again.shape, again.stride()) == (tensor.shape, tensor.stride())
        assert again.data_ptr() == tensor.data_ptr() and torch.equal(again.cpu(), tensor.cpu())
    shared = exchange(base)
    shared.zero_()
    assert base.cpu().to(torch.complex64).abs().sum().item() == 0


def test_capsule_keeps_the_memory():
    tensor = torch.full((1000,), 3.0, device="npu")
    capsule = to_dlpack(tensor)
    del tensor
    torch.full((1000,), 9.0, device="npu")
    assert from_dlpack(capsule).sum().item() == 3000
    before = torch.npu.memory_allocated()
    unused = to_dlpack(torch.ones(1 << 20, device="npu"))
    assert torch.npu.memory_allocated() > before
    del unused
    assert torch.npu.memory_allocated() == before


def test_copies_on_request():
    tensor = torch.arange(4.0, device="npu")
    assert torch.from_dlpack(tensor, copy=False).data_ptr() == tensor.data_ptr()
    copied = torch.from_dlpack(tensor, copy=True)
    assert copied.data_ptr() != tensor.data_ptr() and copied.device == tensor.device
    assert torch.equal(copied.cpu(), tensor.cpu())


def test_between_devices():
    tensor = torch.arange(4.0, device="npu:0")
    assert torch.from_dlpack(tensor, device="npu:0").data_ptr() == tensor.data_ptr()
    for device in ("npu:1", "cpu"):
        moved = torch.from_dlpack(tensor, device=device)
        assert moved.device == torch.device(device) and moved.tolist() == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="without copying"):
            torch.from_dlpack(tensor, device=device, copy=False)
    assert torch.from_dlpack(torch.arange(3), device="npu:1").device == torch.device("npu:1")


def test_host_capsule():
    tensor = torch.arange(4.0, device="npu") * 2
    host = torch.from_dlpack(tensor.__dlpack__(dl_device=(DLDeviceType.kDLCPU, 0), max_version=(1, 0)))
    assert host.device.type == "cpu" and host.tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="without copying"):
        tensor.__dlpack__(dl_device=(DLDeviceType.kDLCPU, 0), copy=False)


def test_consumer_that_knows_no_npu():
    tensor = torch.arange(4.0, device="npu")
    with pytest.raises((RuntimeError, BufferError), match="[Dd]evice"):
        np.from_dlpack(tensor)
    host = np.from_dlpack(tensor.cpu())
    assert host.tolist() == [0, 1, 2, 3]


def test_what_cannot_be_exported():
    with pytest.raises(BufferError, match="require gradient"):
        torch.ones(2, device="npu", requires_grad=True).__dlpack__()
    with pytest.raises(BufferError, match="conjugate"):
        torch.ones(2, dtype=torch.complex64, device="npu").conj().__dlpack__()


@pytest.fixture
def slow_multiplication():
    torch.npu.init()
    _C._inject_fault(0, _C._FAULT_DELAY_TASK, match="aten::mul", count=1, delay_ns=300_000_000)
    yield
    _C._inject_fault(0, _C._FAULT_NONE)
    torch.npu.synchronize()


@pytest.mark.parametrize("named", ["handle", "default"])
def test_the_consumers_stream_waits(slow_multiplication, named):
    producer = torch.npu.Stream()
    consumer = torch.npu.Stream() if named == "handle" else torch.npu.default_stream()
    with torch.npu.stream(producer):
        tensor = torch.ones(16, device="npu") * 5
        capsule = tensor.__dlpack__(stream=consumer.npu_stream if named == "handle" else None)
    with torch.npu.stream(consumer):
        assert from_dlpack(capsule).cpu().tolist() == [5.0] * 16


def test_streams_that_do_not_exist():
    tensor = torch.ones(2, device="npu")
    tensor.__dlpack__(stream=-1)
    tensor.__dlpack__(stream=torch.npu.current_stream().npu_stream)
    with pytest.raises(ValueError, match="12345 is no handle of a stream of npu:0"):
        tensor.__dlpack__(stream=12345)
    with pytest.raises(ValueError, match="no handle of a stream of npu:0"):
        tensor.__dlpack__(stream=torch.npu.Stream(device="npu:1").npu_stream)
    with pytest.raises(TypeError, match="stream must be None, -1 or"):
        tensor.__dlpack__(stream="default")
    with pytest.raises(TypeError, match="stream must be None, -1 or"):
        tensor.__dlpack__(stream=True)


def test_host_tensors_are_as_before():
    tensor = torch.arange(3)
    assert np.from_dlpack(tensor).tolist() == [0, 1, 2]
    assert torch.from_dlpack(np.arange(3)).tolist() == [0, 1, 2]
    with pytest.raises(AssertionError, match="stream should be None on cpu"):
        tensor.__dlpack__(stream=5)


def test_subclasses_still_intercept():
    class Loud(torch.Tensor):
        seen: list[str] = []

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.seen.append(getattr(function, "__name__", ""))
            return super().__torch_function__(function, types, args, kwargs or {})

    tensor = torch.ones(2, device="npu").as_subclass(Loud)
    assert torch.from_dlpack(tensor).tolist() == [1, 1]
    assert "__dlpack__" in Loud.seen


# ---- numpy


def test_numpy_needs_a_host_tensor():
    tensor = torch.arange(3.0, device="npu")
    for convert in (torch.Tensor.numpy, np.asarray, np.array):
        with pytest.raises(TypeError, match=r"can't convert npu:0 device type tensor to numpy. Use Tensor.cpu\(\)"):
            convert(tensor)
    assert np.asarray(tensor.cpu()).tolist() == tensor.numpy(force=True).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.bool_, np.complex64]
)
@pytest.mark.parametrize("create", [torch.as_tensor, torch.tensor, torch.asarray])
def test_from_numpy(create, dtype):
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    for source in (array, array.T, array[:, ::2], array[:0], array[1, 2]):
        tensor = create(source, device="npu:1")
        assert tensor.device == torch.device("npu:1") and tensor.dtype == torch.from_numpy(array).dtype
        assert np.array_equal(tensor.cpu().numpy(), source)
    # A copy: the array may be changed at once.
    tensor = create(array, device="npu")
    array[...] = 0
    assert tensor.cpu().to(torch.complex64).abs().sum().item() > 0


def test_elements_go_where_numpy_wants_them():
    tensor = torch.arange(4, device="npu")
    assert np.arange(10)[tensor[2]] == 2 and float(tensor[3]) == 3 and [10, 20, 30][tensor[1]] == 20
    array = np.zeros(4)
    array[:] = tensor.tolist()
    assert array.tolist() == [0, 1, 2, 3]


# ---- safetensors


@pytest.mark.parametrize(("device", "expected"), [("npu", "npu:0"), ("npu:1", "npu:1"), (1, "npu:1"), ("cpu", "cpu")])
@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_safetensors_files(tmp_path, dtype, device, expected):
    tensors = {
        "matrix": torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype).npu(),
        "scalar": torch.tensor(1).to(dtype).npu(),
        "empty": torch.empty(0, 3, dtype=dtype, device="npu"),
    }
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    loaded = safetensors.torch.load_file(path, device=device)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded[name].device, loaded[name].dtype) == (torch.device(expected), dtype)
        assert torch.equal(loaded[name].cpu(), tensor.cpu())


def test_safetensors_slices_and_bytes(tmp_path):
    tensor = torch.arange(12.0, device="npu").view(3, 4)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"x": tensor}, path)
    with safetensors.safe_open(path, framework="pt", device="npu:1") as file:
        part = file.get_slice("x")[1:, :2]
        assert part.device == torch.device("npu:1") and part.tolist() == [[4, 5], [8, 9]]
    data = safetensors.torch.save({"x": tensor})
    assert torch.equal(safetensors.torch.load(data)["x"], tensor.cpu())


def test_safetensors_models(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).npu()
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).npu()
    safetensors.torch.load_model(other, tmp_path / "model.safetensors", device="npu")
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert theirs.is_npu and torch.equal(mine.cpu(), theirs.cpu())


def test_safetensors_refuses_shared_memory(tmp_path):
    tensor = torch.ones(4, device="npu")
    with pytest.raises(RuntimeError, match="share memory"):
        safetensors.torch.save_file({"a": tensor, "b": tensor[1:]}, tmp_path / "model.safetensors")
