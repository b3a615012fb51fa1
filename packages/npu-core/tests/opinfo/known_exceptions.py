"""Cases of op_db that npu does not pass, each with its reason.  test_opinfo.py expects them to fail.

Keys are names of cases, or of entries with all their cases.  `WAITS` concerns the mode "unwaited" only: operators that
wait for the device before they return, as they do on other accelerators.
"""

from __future__ import annotations

ROUNDED_STEPS = (
    "a composition of many rounded steps; npu takes float16 products in float32, so its errors fall elsewhere than the"
    " CPU's and are as large"
)

KNOWN_EXCEPTIONS: dict[str, str] = {
    "nn.functional.linear_cross_entropy.chunked-float16-backward": ROUNDED_STEPS,
    "nn.functional.linear_cross_entropy.chunked_none-float16-backward": ROUNDED_STEPS,
}

SPARSE = "sparse operands go through the fallback, which waits"
RESULT_IS_DATA = "the result's shape, or a Python number it returns, depends on the data"
CHECKS_DATA = "torch's composition looks at the data to decide or to raise an error"
HOST_OPERAND = "torch's composition reads a tensor argument as a number"

WAITS: dict[str, str] = {
    "item": RESULT_IS_DATA,
    "allclose": RESULT_IS_DATA,
    "equal": RESULT_IS_DATA,
    "masked_select": RESULT_IS_DATA,
    "unique": RESULT_IS_DATA,
    "unique_consecutive": RESULT_IS_DATA,
    "nonzero": RESULT_IS_DATA,
    "argwhere": RESULT_IS_DATA,
    "repeat_interleave": RESULT_IS_DATA,
    "to_sparse": RESULT_IS_DATA,
    "sparse.sampled_addmm": SPARSE,
    "sparse.mm.reduce": SPARSE,
    "bincount": RESULT_IS_DATA,
    "nn.functional.one_hot": RESULT_IS_DATA + " (the number of classes)",
    "istft": CHECKS_DATA + " (the smallest overlap of the windows)",
    "linalg.lstsq": RESULT_IS_DATA + " (the residuals are empty for a matrix without full rank)",
    "linalg.lstsq.grad_oriented": RESULT_IS_DATA + " (the residuals are empty for a matrix without full rank)",
    "nn.functional.embedding_bag": "sizes of the auxiliary results depend on the algorithm that the CPU kernel picks",
    "combinations": CHECKS_DATA + " (masked_select)",
    "corrcoef": CHECKS_DATA + " (the sum of the weights)",
    "cov": CHECKS_DATA + " (the sum of the weights)",
    "nn.functional.gaussian_nll_loss": CHECKS_DATA + " (negative variances)",
    "nn.functional.ctc_loss": CHECKS_DATA + " (lengths given as tensors)",
    "linalg.cholesky": CHECKS_DATA + " (info)",
    "linalg.ldl_factor": CHECKS_DATA + " (info)",
    "linalg.lu_factor": CHECKS_DATA + " (info)",
    "linalg.inv": CHECKS_DATA + " (info)",
    "linalg.solve": CHECKS_DATA + " (info)",
    "linalg.tensorinv": CHECKS_DATA + " (info of linalg.inv)",
    "linalg.tensorsolve": CHECKS_DATA + " (info of linalg.solve)",
    "linalg.matrix_power": CHECKS_DATA + " (info of linalg.inv for negative powers)",
    "linspace.tensor_overload": HOST_OPERAND,
    "logspace.tensor_overload": HOST_OPERAND,
    "narrow": HOST_OPERAND + " (start)",
    "signal.windows.kaiser": HOST_OPERAND + " (the end of linspace)",
}


def reason(case_name: str) -> str | None:
    """Why the case is expected to fail, or None."""
    name, _, mode = case_name.rsplit("-", 2)
    if mode == "unwaited" and name in WAITS:
        return WAITS[name]
    return KNOWN_EXCEPTIONS.get(case_name, KNOWN_EXCEPTIONS.get(name))
