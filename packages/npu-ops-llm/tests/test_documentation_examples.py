"""The examples in the documentation of the operators print what they say."""

import doctest

import pytest
import torch

from npu_ops_llm import OPERATORS

DERIVED = ("_backward", "_grad", "_grad_v2")


def documentation(name: str) -> str:
    return getattr(torch.ops.npu, name).__doc__ or ""


@pytest.mark.parametrize("name", [name for name in OPERATORS if ">>>" in documentation(name)])
def test_examples(name: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(documentation(name), {"torch": torch}, name, None, None)
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=report.append)
    assert failed == 0, "".join(report)


def test_every_public_operator_has_an_example() -> None:
    public = [name for name in OPERATORS if not name.startswith("_") and not name.endswith(DERIVED)]
    assert not [name for name in public if ">>>" not in documentation(name)]
