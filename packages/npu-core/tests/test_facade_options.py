"""Switches of the device module."""

from __future__ import annotations

import pytest
import torch

import torch_npu


def test_set_option_checks_names_and_values():
    option = {"ACL_AICORE_NUM": 8, "ACL_PRECISION_MODE": "must_keep_origin_dtype"}
    torch.npu.set_option(option)
    assert option["ACL_AICORE_NUM"] == "8"
    assert torch_npu._C._npu_getOption("ACL_AICORE_NUM") == b"8"
    assert torch_npu._C._npu_getOption("never set") is None
    with pytest.raises(TypeError, match="npu option must be a dict."):
        torch.npu.set_option([("ACL_AICORE_NUM", "8")])
    with pytest.raises(ValueError, match="value of ACL_AICORE_NUM should be in .* but got 33"):
        torch.npu.set_option({"ACL_AICORE_NUM": 33})
    with pytest.raises(RuntimeError, match="invalid npu option name:nosuch"):
        torch.npu.set_option({"nosuch": 1})


def test_an_invalid_entry_changes_nothing():
    torch.npu.set_option({"ACL_OP_DEBUG_LEVEL": 1})
    with pytest.raises(RuntimeError):
        torch.npu.set_option({"ACL_OP_DEBUG_LEVEL": 2, "nosuch": 1})
    assert torch_npu._C._npu_getOption("ACL_OP_DEBUG_LEVEL") == b"1"


def test_hf32_switches():
    assert torch.npu.matmul.allow_hf32 is False
    assert torch.npu.conv.allow_hf32 is True
    try:
        torch.npu.conv.allow_hf32 = False
        assert torch.npu.aclnn.allow_hf32 is False
        with torch.npu.aclnn.flags(allow_hf32=True):
            assert torch.npu.conv.allow_hf32 is True
        assert torch.npu.conv.allow_hf32 is False
    finally:
        torch.npu.conv.allow_hf32 = True
    with pytest.raises(TypeError, match="allow_hf32 must be a bool, but got int"):
        torch.npu.matmul.allow_hf32 = 1
    torch.npu.matmul.anything = 1
    assert torch.npu.matmul.anything is None


def test_cube_math_type():
    kinds = torch.npu.CubeMathType
    torch.npu.matmul.cube_math_type = kinds.USE_HF32
    assert torch.npu.matmul.cube_math_type is kinds.USE_HF32
    with pytest.raises(TypeError, match="must be a torch_npu.npu.CubeMathType"):
        torch.npu.matmul.cube_math_type = 3
    torch.npu.matmul.cube_math_type = kinds.KEEP_DTYPE


def test_internal_format_and_modes():
    try:
        torch.npu.config.allow_internal_format = 1
        assert torch.npu.config.allow_internal_format is True
        assert torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"enable"
    finally:
        torch.npu.config.allow_internal_format = False
    torch.npu.config.unknown = 3
    torch.npu.set_compile_mode(jit_compile=True)
    assert not torch.npu.is_jit_compile_false()
    torch.npu.set_compile_mode(jit_compile=False)
    assert torch.npu.is_jit_compile_false()
    torch.npu.set_mm_bmm_format_nd(False)
    assert not torch.npu.get_mm_bmm_format_nd()
    torch.npu.set_mm_bmm_format_nd()
    assert torch.npu.get_mm_bmm_format_nd()


def test_deterministic_region_in_forward_and_backward():
    seen = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(("forward", torch.are_deterministic_algorithms_enabled()))
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            seen.append(("backward", torch.are_deterministic_algorithms_enabled()))
            return gradient * 2

    x = torch.ones(2, device="npu", requires_grad=True)
    y = torch.npu.enable_deterministic_with_backward(Spy.apply(x))
    y = torch.npu.disable_deterministic_with_backward(Spy.apply(y))
    Spy.apply(y).sum().backward()
    assert seen == [
        *(("forward", False), ("forward", True), ("forward", False)),
        *(("backward", False), ("backward", True), ("backward", False)),
    ]
    assert not torch.are_deterministic_algorithms_enabled()
    assert x.grad.tolist() == [8, 8]


def test_deterministic_level():
    try:
        with pytest.warns(UserWarning, match="do not mix"):
            torch.npu.set_deterministic_level(2)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    with pytest.raises(ValueError, match="level should be 0, 1, 2 or 3, but got 4"):
        torch.npu.set_deterministic_level(4)


def test_overflow_flag_belongs_to_another_mode():
    with pytest.raises(RuntimeError, match="please use npu_check_overflow"):
        torch.npu.get_npu_overflow_flag()
    with pytest.warns(UserWarning, match="useless"):
        torch.npu.clear_npu_overflow_flag()


def test_aoe_makes_its_folder(tmp_path):
    torch.npu.set_aoe(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(TypeError, match="Type of dump_path is invalid."):
        torch.npu.set_aoe(3)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Value of dump_path is invalid."):
        torch.npu.set_aoe(str(tmp_path / "file"))


@pytest.mark.parametrize(("variables", "count"), [({}, 1), ({"TORCH_NPU_WARNING_DISABLE": "1"}, 0), ({"RANK": "1"}, 0)])
def test_warnings_can_be_silenced(monkeypatch, recwarn, variables, count):
    for name in ("TORCH_NPU_WARNING_DISABLE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    torch.npu.current_blas_handle()
    assert [str(entry.message) for entry in recwarn] == ["NPU does not use blas handle."] * count
    assert all(entry.filename == __file__ for entry in recwarn), "a warning points at its caller"


def test_saturation_mode_is_refused(monkeypatch):
    monkeypatch.setenv("INF_NAN_MODE_ENABLE", "0")
    with pytest.raises(RuntimeError, match="INF_NAN_MODE_ENABLE shouldn't be set to 0"):
        torch_npu.npu.utils.is_support_inf_nan()
