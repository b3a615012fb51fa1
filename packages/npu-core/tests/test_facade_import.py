"""How torch_npu is found and imported, each case in an interpreter of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
from packaging.version import Version

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def test_import_torch_alone_brings_the_device(run_python):
    done = run_python(
        "import torch; print(torch.npu.is_available(), torch.npu.device_count(), torch.npu.is_initialized())",
        TORCH_DEVICE_BACKEND_AUTOLOAD=None,
        NPU_HOST_DEVICE_COUNT="3",
    )
    assert done.stdout.split() == ["True", "3", "False"]


def test_autoload_can_be_turned_off_and_made_up_for(run_python):
    done = run_python(
        """
        import torch
        print(hasattr(torch, "npu"))
        import torch_npu
        print(torch.npu is torch_npu.npu)
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("value", [None, "1", "0"])
@pytest.mark.parametrize("first", ["torch", "torch_npu"])
def test_either_import_order_leaves_the_environment_alone(run_python, first, value):
    done = run_python(
        f"""
        import os
        import {first}, torch, torch_npu
        print(os.environ.get("{AUTOLOAD}"), torch.npu is torch_npu.npu, torch.device("npu:1").type)
        """,
        **{AUTOLOAD: value},
    )
    assert done.stdout.split() == [str(value), "True", "npu"]


def test_import_does_no_device_work(run_python):
    done = run_python(
        """
        import os, torch, torch_npu
        torch.manual_seed(3)
        torch.set_num_threads(1)
        torch.npu.empty_cache()
        torch.npu.memory_stats()
        print(torch.npu.is_initialized(), len(os.listdir("/proc/self/task")) <= 2 + torch.get_num_threads())
        """
    )
    assert done.stdout.split() == ["False", "True"]


def test_metadata_of_the_facade():
    import torch

    import torch_npu

    version = importlib.metadata.version("torch_npu")
    assert version == torch_npu.__version__ == torch_npu.version.__version__
    assert Version(version).base_version == Version(torch.__version__).base_version
    assert "torch_npu" in importlib.metadata.packages_distributions()
    assert importlib.util.find_spec("torch_npu").origin == torch_npu.__file__
    assert isinstance(torch_npu.version.git_version, str)


def test_wheel_version_is_the_one_the_package_reports():
    import npu_core

    assert importlib.metadata.version("npu-core") == npu_core.__version__


def test_npu_core_imports_no_torch(run_python):
    done = run_python("import sys, npu_core, npu_core.plugins, npu_core.environment; print('torch' in sys.modules)")
    assert done.stdout.split() == ["False"]


def test_a_build_for_another_torch_is_an_import_error(run_python):
    done = run_python(
        """
        import npu_core._build
        npu_core._build.TORCH_VERSION = "1.2.3"
        try:
            import torch_npu
        except ImportError as error:
            print(error)
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert "npu-core was built for torch 1.2, but torch" in done.stdout
    assert "pip install 'torch==1.2.*'" in done.stdout


def test_a_missing_driver_is_an_import_error(run_python):
    done = run_python(
        """
        try:
            import torch_npu
        except ImportError as error:
            print(error)
        """,
        NPU_DRIVER="nosuch",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert "NPU_DRIVER=nosuch names no installed driver" in done.stdout


@pytest.mark.parametrize("value", ["", "1,0"])
def test_import_works_with_no_device_visible(run_python, value):
    done = run_python(
        """
        import torch, torch_npu
        print(torch.npu.is_available(), torch.npu.device_count())
        try:
            torch.npu.init()
        except RuntimeError as error:
            print(error)
        """,
        ASCEND_RT_VISIBLE_DEVICES=value,
    )
    assert done.stdout.startswith("False 0")
    assert "No NPU devices are available: ASCEND_RT_VISIBLE_DEVICES hides all of them" in done.stdout


def test_transfer_switch_is_checked(run_python):
    done = run_python("import torch_npu", check=False, TORCH_TRANSFER_TO_NPU="2", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "ValueError: TORCH_TRANSFER_TO_NPU should be 0 or 1, but got '2'" in done.stderr


def test_an_error_pending_at_exit_goes_to_stderr(run_python):
    done = run_python(
        """
        import torch
        from npu_core import _C
        torch.npu.init()
        _C._inject_fault(0, _C._FAULT_FAIL_TASK, count=1)
        torch.ones(4, device="npu").add_(1)
        """
    )
    assert "an asynchronous error was pending on npu:0" in done.stderr
