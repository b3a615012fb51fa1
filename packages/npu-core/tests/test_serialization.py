"""Saving, loading, copying and sending npu tensors."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch


def saved(obj, **options) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(obj, file, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("legacy", [False, True])
def test_round_trip_keeps_device_values_and_views(legacy):
    base = torch.arange(12.0, device="npu:1").view(3, 4)
    file = saved({"base": base, "view": base.t()[1:]}, _use_new_zipfile_serialization=not legacy)
    loaded = torch.load(file)
    assert loaded["base"].device == torch.device("npu:1")
    assert torch.equal(loaded["base"].cpu(), base.cpu()) and torch.equal(loaded["view"].cpu(), base.t()[1:].cpu())
    loaded["base"].zero_()
    assert loaded["view"].abs().sum().item() == 0, "sharing of storage survives"


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize(
    ("location", "device"),
    [
        ("cpu", "cpu"),
        (torch.device("cpu"), "cpu"),
        ("npu:0", "npu:0"),
        ({"npu:1": "npu:0"}, "npu:0"),
        (lambda storage, tag: storage, "cpu"),
        (None, "npu:1"),
    ],
)
def test_map_location(location, device, weights_only):
    tensor = torch.arange(5, device="npu:1")
    loaded = torch.load(saved(tensor), map_location=location, weights_only=weights_only)
    assert loaded.device == torch.device(device) and loaded.tolist() == [0, 1, 2, 3, 4]


def test_cpu_file_to_npu():
    loaded = torch.load(saved(torch.arange(3)), map_location="npu")
    assert loaded.is_npu and loaded.tolist() == [0, 1, 2]


def test_missing_device_is_explained(run_python, tmp_path):
    path = tmp_path / "tensor.pt"
    torch.save(torch.ones(2, device="npu:1"), path)
    code = f"""
        import torch
        try:
            torch.load({str(path)!r})
        except RuntimeError as error:
            print(error)
        print(torch.load({str(path)!r}, map_location="cpu").tolist())
        """
    done = run_python(code, NPU_HOST_DEVICE_COUNT="1")
    assert "Attempting to deserialize object on NPU device 1 but torch.npu.device_count() is 1." in done.stdout
    assert done.stdout.endswith("[1.0, 1.0]\n")
    done = run_python(code, ASCEND_RT_VISIBLE_DEVICES="")
    assert "map_location=torch.device('cpu')" in done.stdout and done.stdout.endswith("[1.0, 1.0]\n")


def test_load_is_possible_right_after_import(run_python, tmp_path):
    path = tmp_path / "tensor.pt"
    torch.save(torch.ones(2, device="npu"), path)
    done = run_python(f"import torch; print(torch.load({str(path)!r}).device)")
    assert done.stdout.split() == ["npu:0"]


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64, torch.float64]
)
def test_dtypes(dtype):
    tensor = torch.ones(3, 2).to(dtype).npu()
    assert torch.equal(torch.load(saved(tensor)).cpu(), tensor.cpu())


def test_model_and_optimizer_state():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).npu()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 4, device="npu")).sum().backward()
    optimizer.step()
    loaded = torch.load(saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).npu()
    other.load_state_dict(loaded["model"])
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine.cpu(), theirs.cpu())
    torch.optim.Adam(other.parameters()).load_state_dict(loaded["optimizer"])


def test_pickle_and_deepcopy():
    parameter = torch.nn.Parameter(torch.arange(4.0, device="npu:1"))
    for copied in (copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))):
        assert isinstance(copied, torch.nn.Parameter) and copied.device == parameter.device
        assert copied.data_ptr() != parameter.data_ptr() and copied.tolist() == [0, 1, 2, 3]
    tensors = [torch.ones(2, device="npu")]
    tensors.append(tensors[0][1:])
    copies = copy.deepcopy(tensors)
    copies[0].zero_()
    assert copies[1].item() == 0 and tensors[1].item() == 1
    mapping = OrderedDict(a=torch.ones(1, device="npu"))
    assert copy.deepcopy(mapping)["a"].is_npu


def test_rng_state_in_a_checkpoint():
    torch.npu.manual_seed(5)
    file = saved(torch.npu.get_rng_state())
    first = torch.rand(3, device="npu")
    torch.npu.set_rng_state(torch.load(file))
    assert torch.equal(torch.rand(3, device="npu"), first)


def test_storages():
    tensor = torch.arange(4.0, device="npu")
    storage = tensor.untyped_storage()
    assert (
        storage.is_npu
        and storage.cpu().device.type == "cpu"
        and list(storage.cpu()) == list(tensor.cpu().untyped_storage())
    )
    assert torch.UntypedStorage(8).npu(1).device == torch.device("npu:1")
    typed = tensor.storage()
    assert isinstance(typed, torch.npu.FloatStorage) and not isinstance(typed, torch.npu.HalfStorage)
    assert typed.tolist() == [0, 1, 2, 3]
    assert torch.npu.FloatStorage(4).device.type == "npu"
    assert torch.is_storage(torch.npu.FloatStorage(4))


def test_legacy_tensor_types():
    tensor = torch.npu.FloatTensor([1.0, 2.0])
    assert tensor.is_npu and tensor.tolist() == [1, 2]
    assert torch.npu.FloatTensor(2, 3).shape == (2, 3) and torch.npu.FloatTensor().numel() == 0
    assert isinstance(tensor, torch.npu.FloatTensor) and not isinstance(tensor, torch.npu.HalfTensor)
    assert not isinstance(tensor.cpu(), torch.npu.FloatTensor)
    assert tensor.type() == "torch.npu.FloatTensor"
    assert tensor.type("torch.npu.HalfTensor").dtype == torch.float16
    assert torch.ones(2).type(torch.npu.HalfTensor).is_npu
    assert tensor.type("torch.FloatTensor").device.type == "cpu"


# ---- pickle and copy


def test_pickle_keeps_geometry_and_deepcopy_sharing_too():
    base = torch.arange(12.0, device="npu:1").view(3, 4)
    views = [base, base.t(), base[1:, ::2], base[2, 3], base[:0]]
    for again in (pickle.loads(pickle.dumps(views)), copy.deepcopy(views)):
        for mine, theirs in zip(again, views, strict=True):
            assert (mine.device, mine.shape, mine.stride()) == (theirs.device, theirs.shape, theirs.stride())
            assert torch.equal(mine.cpu(), theirs.cpu())
    # Plain pickle stores each tensor by itself on every device; torch.save keeps the sharing.
    again[0].fill_(-1)
    assert again[1].sum().item() == -12 and again[3].item() == -1
    assert base.sum().item() == 66


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64, torch.int64])
def test_pickle_and_deepcopy_of_dtypes(dtype):
    tensor = torch.tensor([0, 1, 3]).to(dtype).npu()
    for again in (pickle.loads(pickle.dumps(tensor)), copy.deepcopy(tensor)):
        assert again.dtype == dtype and again.is_npu and torch.equal(again.cpu(), tensor.cpu())


def test_shallow_copies_share_memory():
    tensor = torch.ones(3, device="npu")
    again = copy.copy(tensor)
    assert again is not tensor and again.data_ptr() == tensor.data_ptr()
    again.zero_()
    assert tensor.sum().item() == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_modules_keep_tied_weights_and_buffers(duplicate):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).npu()
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    again = duplicate(model)
    assert again[0].weight is again[1].weight and not again[0].bias.requires_grad
    assert again[2].running_var.is_npu and again[0].weight.data_ptr() != model[0].weight.data_ptr()
    x = torch.randn(4, 3, device="npu")
    assert torch.equal(again(x).cpu(), model(x).cpu())


def test_deepcopy_keeps_gradients_and_refuses_non_leaves():
    tensor = torch.ones(2, device="npu", requires_grad=True)
    (tensor * 2).sum().backward()
    again = copy.deepcopy(tensor)
    assert again.requires_grad and again.grad.tolist() == [2, 2] and again.grad.data_ptr() != tensor.grad.data_ptr()
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(tensor * 2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))], ids=["copy", "pickle"])
def test_generators(duplicate):
    generator = torch.Generator("npu:1").manual_seed(11)
    torch.rand(5, device="npu:1", generator=generator)
    again = duplicate(generator)
    assert again.device == torch.device("npu:1") and again.initial_seed() == 11
    expected = torch.rand(5, device="npu:1", generator=generator)
    assert torch.equal(torch.rand(5, device="npu:1", generator=again).cpu(), expected.cpu())


def test_storages_are_copied_and_saved():
    storage = torch.arange(6, dtype=torch.uint8, device="npu:1").untyped_storage()
    for again in (copy.deepcopy(storage), storage.clone(), torch.load(saved(storage), weights_only=False)):
        assert again.device == torch.device("npu:1") and again.data_ptr() != storage.data_ptr()
        assert again.tolist() == [0, 1, 2, 3, 4, 5]
    typed = torch.arange(3.0, device="npu").storage()
    assert pickle.loads(pickle.dumps(typed)).tolist() == [0, 1, 2]


# ---- files


@pytest.mark.parametrize("location", [None, "cpu", "npu:0", {"npu:1": "npu:0"}])
@pytest.mark.parametrize("mmap", [True, False])
def test_files_with_and_without_mapping(tmp_path, location, mmap):
    base = torch.arange(1000.0, device="npu:1")
    path = tmp_path / "tensors.pt"
    torch.save({"base": base, "part": base[10:20:3], "parameter": torch.nn.Parameter(base[:2])}, path)
    loaded = torch.load(path, map_location=location, mmap=mmap, weights_only=True)
    device = torch.device("npu:1" if location is None else location if isinstance(location, str) else "npu:0")
    assert {tensor.device for tensor in loaded.values()} == {device}
    assert isinstance(loaded["parameter"], torch.nn.Parameter)
    assert loaded["part"].tolist() == [10, 13, 16, 19] and loaded["part"].stride() == (3,)
    loaded["base"].fill_(0)
    assert loaded["part"].sum().item() == 0
    assert torch.load(path, map_location="cpu")["base"].sum().item() == 499500, "the file is not written to"


def test_files_do_not_depend_on_the_device():
    """What is written is what a CPU tensor writes, but for the location."""

    def payload(tensor):
        with zipfile.ZipFile(saved(tensor)) as archive:
            return next(archive.read(name) for name in archive.namelist() if name.endswith("/data/0"))

    tensor = torch.arange(100, dtype=torch.int16)
    assert payload(tensor.npu()) == payload(tensor) == tensor.numpy().tobytes()


def test_loading_inside_device_contexts(tmp_path):
    path = tmp_path / "tensor.pt"
    torch.save(torch.arange(3, device="npu:1"), path)
    with torch.device("npu:0"):
        assert torch.load(path).device == torch.device("npu:1")
    assert torch.load(path, map_location="meta").device.type == "meta"


def test_state_dict_of_an_optimizer_between_devices(tmp_path):
    model = torch.nn.Linear(3, 2).npu()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, device="npu")).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    other = torch.nn.Linear(3, 2)
    restored = torch.optim.AdamW(other.parameters(), lr=0.1)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", map_location="cpu")
    other.load_state_dict(checkpoint["model"])
    restored.load_state_dict(checkpoint["optimizer"])
    for network, optimiser, device in ((model, optimizer, "npu"), (other, restored, "cpu")):
        network.zero_grad()
        network(torch.ones(1, 3, device=device)).sum().backward()
        optimiser.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)
