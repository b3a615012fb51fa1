"""`TestCase` with the tolerance rules the vendor's tests are written for."""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np
import torch

__all__ = ["TestCase", "run_tests"]

_PREC, _PREC16 = 1e-4, 1e-3
# Keeps the relative error finite around zero: below the smallest float16 subnormal, and for everything else.
_TINY16, _TINY = 6e-8, 1e-9


def run_tests() -> None:
    """Run the tests of the calling script."""
    unittest.main()


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _is_bfloat16(*values: Any) -> bool:
    return any(isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 for value in values)


class TestCase(unittest.TestCase):
    """`unittest.TestCase` with numeric comparisons."""

    def assertRtolEqual(
        self,
        x: Any,
        y: Any,
        prec: float = _PREC,
        prec16: float = _PREC16,
        auto_trans_dtype: bool = False,
        message: str | None = None,
    ) -> None:
        """Compare tensors, arrays, numbers or lists of them.

        Shapes, dtypes and positions of NaN must match. Elements may differ by more than the precision in relative
        terms, or in absolute terms, as long as one of the two counts stays within the precision times the size.

        Parameters
        ----------
        prec, prec16 : float
            Precision, and the one for float16 and bfloat16.
        auto_trans_dtype : bool
            Cast `x` to the dtype of `y` first.
        """
        if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
            self.assertEqual(len(x), len(y), message)
            for left, right in zip(x, y, strict=True):
                self.assertRtolEqual(left, right, prec, prec16, auto_trans_dtype, message)
            return
        if _is_bfloat16(x, y):
            self.assertEqual(x.dtype, y.dtype, message)
            left, right = _as_array(x), _as_array(y)
            self.assertEqual(left.shape, right.shape, message)
            close = np.allclose(left, right, rtol=prec16, atol=prec16, equal_nan=True)
            self.assertTrue(close, message or f"bfloat16 values differ by more than {prec16}")
            return
        left, right = _as_array(x), _as_array(y)
        if auto_trans_dtype:
            left = left.astype(right.dtype)
        self.assertEqual(left.shape, right.shape, message)
        self.assertEqual(left.dtype, right.dtype, message)
        self._compare(left, right, prec, prec16, message)

    def _compare(self, left: np.ndarray, right: np.ndarray, prec: float, prec16: float, message: str | None) -> None:
        if left.dtype == bool:
            self.assertTrue(bool((left == right).all()), message or "boolean values differ")
            return
        is_half = left.dtype == np.float16
        precision, tiny = (prec16, _TINY16) if is_half else (prec, _TINY)
        wide = np.complex128 if np.iscomplexobj(left) else np.float64
        left, right = left.astype(wide), right.astype(wide)
        self.assertTrue(bool((np.isnan(left) == np.isnan(right)).all()), message or "NaN stand at different places")
        compared = ~(np.isnan(left) | (left == right))
        left, right, size = left[compared], right[compared], left.size
        error = np.abs(left - right)
        with np.errstate(invalid="ignore"):
            relative = error / (np.maximum(np.abs(left), np.abs(right)) + tiny)
        # An infinity against a number gives NaN, which must count as bad.
        bad_relative, bad_absolute = int((~(relative <= precision)).sum()), int((error > precision).sum())
        allowed = size * precision
        if bad_relative > allowed and bad_absolute > allowed:
            self.fail(
                message
                or f"{bad_relative} of {size} elements differ by more than {precision} relatively and {bad_absolute} "
                f"absolutely; the largest difference is {error.max()}"
            )

    def assertEqual(self, x: Any, y: Any, prec: Any = None, message: str | None = None) -> None:  # type: ignore[override]
        """Compare as unittest does, or tensors and numbers with an absolute precision (1e-5 by default)."""
        if isinstance(prec, str):
            prec, message = None, prec
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            tolerance = 1e-5 if prec is None else prec
            torch.testing.assert_close(
                x.cpu(), y.cpu(), rtol=0, atol=tolerance, equal_nan=True, check_stride=False, msg=message
            )
        elif isinstance(x, float) and isinstance(y, (int, float)):
            self.assertLessEqual(abs(x - y), 1e-5 if prec is None else prec, message)
        else:
            super().assertEqual(x, y, message)
