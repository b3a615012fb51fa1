"""The test helpers of torch_npu.testing: that they accept and that they reject."""

from __future__ import annotations

import unittest

import numpy as np
import pytest
import torch

import torch_npu
from torch_npu.testing.common_utils import (
    SkipIfNotGteCANNVersion,
    SkipIfNotRegistered,
    SupportedDevices,
    create_common_tensor,
    create_dtype_tensor,
)


@pytest.fixture
def case():
    return torch_npu.testing.testcase.TestCase()


def test_equal_values_pass(case):
    x = torch.tensor([1.0, float("nan"), float("inf")])
    case.assertRtolEqual(x, x.npu())
    case.assertRtolEqual([1, 2.0], [1, 2.0])
    case.assertRtolEqual(x.bfloat16(), x.bfloat16().npu())
    case.assertRtolEqual(np.float16(1), torch.tensor(1.0), auto_trans_dtype=True)
    case.assertEqual(torch.ones(2), torch.ones(2).npu())
    case.assertEqual(1.0, 1.000001)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.ones(3), torch.ones(3) + 1e-2),
        (torch.ones(3), torch.ones(4)),
        (torch.ones(3), torch.ones(3).double()),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])),
        (torch.tensor([True]), torch.tensor([False])),
        (torch.ones(3).bfloat16(), torch.ones(3).bfloat16() * 1.1),
        (torch.tensor([float("inf")]), torch.tensor([1.0])),
        ([1, 2], [1, 2, 3]),
    ],
)
def test_different_values_fail(case, x, y):
    with pytest.raises(AssertionError):
        case.assertRtolEqual(x, y)


def test_small_absolute_and_few_relative_outliers_pass(case):
    x = torch.zeros(10)
    case.assertRtolEqual(x, x + 1e-6)
    big = torch.full((20000,), 100.0)
    other = big.clone()
    other[0] = 101
    case.assertRtolEqual(big, other)


def test_input_makers():
    cpu, npu = create_common_tensor([np.float16, -1, (2, 3)], -1, 1)
    assert npu.is_npu and cpu.dtype == torch.float16 and torch.equal(cpu, npu.cpu()) and cpu.abs().max() <= 1
    for dtype in (torch.bool, torch.int8, torch.bfloat16, torch.complex64):
        cpu, npu = create_dtype_tensor((4,), dtype)
        assert cpu.dtype == dtype and torch.equal(cpu, npu.cpu())


def test_conditions():
    @SupportedDevices(["Ascend910B"])
    @SkipIfNotGteCANNVersion("8.0.0")
    def runs():
        return 1

    @SkipIfNotGteCANNVersion("99")
    def skipped():
        raise AssertionError

    @SkipIfNotRegistered("no_such_operator")
    def also_skipped():
        raise AssertionError

    assert runs() == 1
    for function in (skipped, also_skipped):
        with pytest.raises(unittest.SkipTest):
            function()
