"""Every entry of torch's operator database with a CPU kernel, on npu: all cases in float32, a sample of the others.

`nox -s opinfo` runs every case of every dtype.
"""

from __future__ import annotations

import pytest
import torch
from known_exceptions import reason
from opinfo_cases import DTYPES, Case, Inapplicable, all_cases, run_case

SAMPLED = tuple(dtype for dtype in DTYPES if dtype is not torch.float32)
EVERY = 13  # prime to the number of modes and of dtypes: the sample reaches all of them


def _parameters() -> list:
    parameters = []
    for case in [*all_cases((torch.float32,)), *list(all_cases(SAMPLED))[::EVERY]]:
        why = reason(case.name)
        # Strict: an exception that starts to pass must be taken off the list.
        marks = [pytest.mark.xfail(reason=why, strict=True)] if why else []
        parameters.append(pytest.param(case, id=case.name, marks=marks))
    return parameters


@pytest.mark.parametrize("case", _parameters())
def test_matches_cpu(case: Case) -> None:
    try:
        run_case(case)
    except Inapplicable as reason_:
        pytest.skip(f"the CPU has no result to compare with: {reason_}")
