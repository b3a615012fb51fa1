"""Operators and other names on torch_npu."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import torch_npu


@pytest.fixture(scope="module")
def operator():
    """An operator of a third party, in the namespace everybody shares."""
    library = torch.library.Library("npu", "FRAGMENT")
    library.define("facade_probe(Tensor x, *, int times=2) -> Tensor")
    library.impl("facade_probe", lambda x, *, times=2: x * times, "CompositeExplicitAutograd")
    yield "facade_probe"
    library._destroy()


def test_an_operator_resolves_in_every_way(operator):
    x = torch.ones(2)
    assert torch_npu.facade_probe(x).tolist() == [2, 2]
    assert torch_npu.facade_probe is torch.ops.npu.facade_probe
    assert torch_npu.facade_probe.default(x, times=3).tolist() == [3, 3]
    assert operator in dir(torch_npu) and operator in torch_npu.__all__
    with mock.patch("torch_npu.facade_probe", return_value=7):
        assert torch_npu.facade_probe(x) == 7
    assert torch_npu.facade_probe(x).tolist() == [2, 2]


def test_unknown_names():
    assert not hasattr(torch_npu, "no_such_thing")
    assert not hasattr(torch.npu, "NPUGraph"), "what is not built must not exist"
    with pytest.raises(AttributeError, match=r"module 'torch_npu' \(npu-core .*\) has no attribute 'no_such_thing'"):
        _ = torch_npu.no_such_thing
    with pytest.raises(ImportError):
        from torch_npu import no_such_thing  # noqa: F401


def test_index_names_only_other_wheels():
    from torch_npu.wheel_index import NAMES

    names = [name for entries in NAMES.values() for name in entries]
    assert len(names) == len(set(names)) > 150
    assert set(NAMES) == {"npu-distributed", "npu-ops-llm", "npu-ops-vision", "npu-profiler"}


def test_dtype_ids():
    assert (torch_npu.float32, torch_npu.bfloat16, torch_npu.int4, torch_npu.hifloat8) == (256, 283, 285, 290)
    assert torch_npu.float8_e4m3fn == 292 and type(torch_npu.bool) is int


def test_operators_on_torch_itself_are_deprecated_stubs(run_python):
    done = run_python(
        """
        import torch
        library = torch.library.Library("npu", "FRAGMENT")
        library.define("stub_probe(Tensor x) -> Tensor")
        import torch_npu
        try:
            torch.stub_probe(torch.ones(1))
        except RuntimeError as error:
            print(error)
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert (
        "torch.stub_probe is deprecated and will be removed in future version. Use torch_npu.stub_probe" in done.stdout
    )
    assert "ERR00007 PTA feature not supported" in done.stdout
