"""Ranks as processes: ``ranks(size)`` gives a group that stays up between tests, ``fresh_ranks(size)`` one of its own.

A function of a test file runs on every rank as ``function(rank, size, *arguments)``; what it returns or raises comes
back to the test.  After every test nothing may be left: no process, shared memory, descriptor or temporary file.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from hccl_testing import leaks  # noqa: E402
from hccl_testing.processes import SERVER_OF_SESSION, TEMPORARY, Ranks  # noqa: E402

# torch keeps compiled code where it always does: tests get a folder for temporary files that must stay empty.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(TEMPORARY, f"torchinductor_{getpass.getuser()}"))

# Groups that outlive a test on purpose.
shared_groups: list[Ranks] = []


@pytest.fixture(scope="session", autouse=True)
def server_of_session() -> Iterator[None]:
    """Ends the process that ranks are forked from."""
    if importlib.util.find_spec("torch") is not None:
        # The first store of a process opens a pipe that stays as long as the process.
        from torch.distributed import TCPStore

        TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield
    SERVER_OF_SESSION.close()


def assert_nothing_left(before: leaks.Before, temporary: Path, whose: str) -> None:
    """Fail when there is more than `before` and what the session keeps on purpose."""
    expected = set().union(*(group.pids for group in shared_groups), SERVER_OF_SESSION.pids)
    before.allow(SERVER_OF_SESSION.descriptors, *(group.descriptors for group in shared_groups))
    left = before.left_behind(SERVER_OF_SESSION.pids, expected, temporary)
    assert not left, f"{whose} left behind:\n" + "\n".join(left)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_by_file() -> Iterator[None]:
    """Nothing of a file's tests and groups may be left."""
    before = leaks.Before()
    yield
    with tempfile.TemporaryDirectory() as empty:
        assert_nothing_left(before, Path(empty), "the tests of this file have")


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test that leaves something behind fails."""
    tmp_path_factory.getbasetemp()  # made where temporary files of the session go, not in the folder below
    with tempfile.TemporaryDirectory(prefix="npu-test-") as name, monkeypatch.context() as patch:
        patch.setenv("TMPDIR", name)
        patch.setattr(tempfile, "tempdir", name)
        before = leaks.Before()
        yield
        assert_nothing_left(before, Path(name), "the test has")


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Ranks]]:
    """Groups by size, shared by the tests of a file and replaced after a failure."""
    groups: dict[int, Ranks] = {}

    def get(size: int) -> Ranks:
        if size in groups and not groups[size].alive:
            shared_groups.remove(groups[size])
            groups.pop(size).discard()
        if size not in groups:
            groups[size] = Ranks(request.path, size)
            shared_groups.append(groups[size])
        return groups[size]

    yield get
    left = []
    try:
        for group in groups.values():
            if group.alive:
                assert group.close() == [0] * group.size, group.logs()
    finally:
        for group in groups.values():
            shared_groups.remove(group)
            left += group.discard()
    assert not left, f"ranks have left temporary files behind: {left}"


@pytest.fixture
def fresh_ranks(request: pytest.FixtureRequest) -> Iterator[Callable[..., Ranks]]:
    """Makes groups of the test's own, with environment variables as keywords."""
    groups: list[Ranks] = []

    def make(size: int, **environment: str) -> Ranks:
        groups.append(Ranks(request.path, size, **environment))
        return groups[-1]

    yield make
    left = [file for group in groups for file in group.discard()]
    assert not left, f"ranks have left temporary files behind: {left}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need devices are skipped where npu-core is not installed."""
    if importlib.util.find_spec("torch_npu") is not None:
        return
    skip = pytest.mark.skip(reason="needs npu-core (pip install npu-core)")
    for item in items:
        if {"ranks", "fresh_ranks"} & set(getattr(item, "fixturenames", ())) and HERE in item.path.parents:
            item.add_marker(skip)
