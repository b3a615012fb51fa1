"""A short run of the random program; ``nox -s soak -- --calls 20000`` is the long one."""

from __future__ import annotations

import pytest
from soak import begin, chunk, end, growth


@pytest.mark.parametrize(("size", "calls"), ((2, 120), (4, 60)))
def test_random_calls_give_what_they_must(ranks, size: int, calls: int) -> None:
    team = ranks(size)
    team.run(begin, 20, 3)
    samples = [team.run(chunk, calls) for _ in range(3)]
    for rank in range(size):
        grown = growth([sample[rank] for sample in samples])
        assert not [text for text in grown if not text.startswith(("heap", "shared"))], grown  # too short for memory
    counts = team.run(end)
    assert sum(counts[0].values()) > calls
    # Again from the same seed, in other groups.
    team.run(begin, 20, 3)
    team.run(chunk, calls)
    assert team.run(end)[0].keys() <= counts[0].keys()
