"""Fixtures: every test of an operator runs on CPU tensors and on npu tensors."""

from collections.abc import Iterator

import pytest
import torch

import npu_ops_vision
from npu_ops_vision import library


def pytest_report_header() -> str:
    return f"npu-ops-vision {npu_ops_vision.__version__}, kernels for {library.kernel_isa()}"


@pytest.fixture(params=["cpu", "npu"], ids=["on_cpu", "on_npu"])
def device(request: pytest.FixtureRequest) -> str:
    """Device of the test's tensors.  A missing npu-core fails the npu half: ``-k "not on_npu"`` leaves it out."""
    if request.param == "npu":
        try:
            import torch_npu  # noqa: F401
        except ImportError as error:
            pytest.fail(f"the npu half of the tests needs npu-core: {error}", pytrace=False)
    return request.param


def _isas_of_this_cpu() -> list[str]:
    in_force = library.kernel_isa()
    names = ["base", "avx2", "avx512", "avx512_bf16", "amx"]
    found = [name for name in names if library.kernel_isa(name) == name]
    library.kernel_isa(in_force)
    return found


@pytest.fixture(params=_isas_of_this_cpu())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this CPU in turn."""
    in_force = library.kernel_isa()
    assert library.kernel_isa(request.param) == request.param
    yield request.param
    library.kernel_isa(in_force)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)
