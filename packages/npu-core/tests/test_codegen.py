"""The generator of the structured ops' kernels: what it covers, and that it writes only what changed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="torchgen, which the generator uses, needs PyYAML (a build requirement)")

_CODEGEN = Path(__file__).parents[1] / "codegen"


@pytest.fixture(scope="module", autouse=True)
def codegen_on_path() -> Iterator[None]:
    sys.path.insert(0, str(_CODEGEN))
    yield
    sys.path.remove(str(_CODEGEN))


@pytest.fixture(scope="module")
def groups(codegen_on_path: None) -> list:
    from structured.groups import structured_groups

    return structured_groups()


@pytest.fixture(scope="module")
def files(groups: list) -> dict[str, str]:
    from structured.shards import render

    return render(groups, 10)


def registered(files: dict[str, str]) -> list[str]:
    return re.findall(r'm\.impl\("([^"]+)"', "".join(files.values()))


def test_every_structured_op_is_generated(groups: list, files: dict[str, str]) -> None:
    from structured.groups import overload_names

    assert len(groups) >= 275
    names = registered(files)
    assert len(names) >= 655
    assert len(names) == len(set(names))
    assert set(names) == {name for group in groups for name in overload_names(group)}
    # One worker per op serves its functional, in-place and out= overloads.
    assert len(re.findall(r"^void run_\w+\(", "".join(files.values()), re.M)) == len(groups)


def test_registered_names_exist_in_torch(files: dict[str, str]) -> None:
    import torch

    for name in registered(files):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CPU"), name


def test_each_overload_of_an_op_writes_to_the_right_output(files: dict[str, str]) -> None:
    text = "".join(files.values())
    assert 'launch_op<&run_add_Tensor>("aten::add.Tensor", op.output(0), self, other, alpha);' in text
    assert "StructuredMeta<at::meta::structured_add_Tensor, 1> op(OutputMode::kInPlace, {self});" in text
    assert "StructuredMeta<at::meta::structured_topk, 2> op(OutputMode::kResize, {values, indices});" in text
    assert "return std::forward_as_tuple(values, indices);" in text


def test_special_cases_name_existing_ops(groups: list) -> None:
    from structured import special_cases
    from structured.fast_path import FAST_PATHS
    from structured.groups import functional_name

    names = {functional_name(group) for group in groups}
    assert set(FAST_PATHS) <= names
    assert special_cases.PREPARED_ARGUMENTS.keys() <= names
    assert special_cases.META_ARGUMENTS.keys() <= names
    assert special_cases.SHRINKING_OUTPUT <= names
    assert special_cases.FINAL_SIZE.keys() <= names
    assert special_cases.COPIED_RESULT.keys() <= names
    assert special_cases.OUTPUT_FORMAT_FROM.keys() <= names
    assert special_cases.FLOAT_ACCUMULATION <= names
    assert special_cases.HAND_WRITTEN <= names


def test_baddbmm_does_not_copy_in_meta(files: dict[str, str]) -> None:
    text = "".join(files.values())
    assert "op.meta(self, batch1, batch2, at::Scalar(0), alpha);" in text
    assert 'launch_op<&run_baddbmm>("aten::baddbmm", op.output(0), self, batch1, batch2, beta, alpha);' in text


def test_masks_are_counted_once(files: dict[str, str]) -> None:
    text = "".join(files.values())
    assert text.count("const auto indices_ready = indices_on_device(self, indices);") == 2
    assert "op.meta(self, at::IOptTensorListRef(indices_ready));" in text


def test_fast_path_only_where_the_table_says(files: dict[str, str]) -> None:
    from structured.fast_path import FAST_PATHS

    text = "".join(files.values())
    functional = r"^at::Tensor npu_\w+\([^)]*\) \{\n(.*?)^\}"
    bodies = {re.search(r"\"aten::([\w.]+)\"", body)[1]: body for body in re.findall(functional, text, re.M | re.S)}
    fast = {name for name, body in bodies.items() if "pointwise_lead" in body}
    assert fast == set(FAST_PATHS)


def test_a_fast_path_is_refused_for_ops_that_are_not_pointwise(groups: list, monkeypatch: pytest.MonkeyPatch) -> None:
    from structured import fast_path
    from structured.groups import functional_name
    from structured.kernels import generate_group

    monkeypatch.setitem(fast_path.FAST_PATHS, "mm", fast_path.FastPath())
    mm = next(group for group in groups if functional_name(group) == "mm")
    with pytest.raises(ValueError, match="mm is no pointwise op"):
        generate_group(mm)


def test_skipped_ops_are_left_out_and_unknown_ones_refused(groups: list) -> None:
    from structured.groups import functional_name, structured_groups

    rest = structured_groups(frozenset({"sum.dim_IntList"}))
    assert {functional_name(g) for g in groups} - {functional_name(g) for g in rest} == {"sum.dim_IntList"}
    with pytest.raises(ValueError, match="no_such_op"):
        structured_groups(frozenset({"no_such_op"}))


def test_output_is_stable_and_ops_stay_in_their_file(groups: list, files: dict[str, str]) -> None:
    from structured.shards import render

    assert render(groups, 10) == files
    fewer = render(groups[1:], 10)
    assert sum(fewer[name] != files[name] for name in files) == 1


def test_only_changed_files_are_written(files: dict[str, str], tmp_path: Path) -> None:
    from structured.shards import write

    assert set(write(files, tmp_path)) == set(files)
    stamps = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert write(files, tmp_path) == []
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == stamps

    (tmp_path / "generated_3.cpp").write_text("changed")
    (tmp_path / "generated_99.cpp").write_text("left by a build with more files")
    assert write(files, tmp_path) == ["generated_3.cpp"]
    assert not (tmp_path / "generated_99.cpp").exists()


def test_the_source_list_names_every_file(files: dict[str, str]) -> None:
    listed = set(re.findall(r"generated_\d+\.cpp", files["generated_sources.cmake"]))
    assert listed == {name for name in files if name.endswith(".cpp")}
