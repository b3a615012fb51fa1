"""Calls of npu_advance_step_flashattn for test_every_operator.py."""

from collections.abc import Iterator
from typing import Any

import torch


def samples() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, positional arguments, keyword arguments."""

    def numbers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape)

    plain = (numbers(9, 5), numbers(99, 3, 1), numbers(9, 5), numbers(11, 5), numbers(9, 5), numbers(40, 5, 3), 5, 3, 4)
    yield "npu_advance_step_flashattn", plain, {}
    flat = [numbers(6, 12) for _ in range(4)]
    spec = {"spec_token": numbers(99, 4, 2), "accepted_num": numbers(3, 4)}
    sampled = numbers(99, 4, 3) - torch.tensor([0, 0, 100])
    arguments = (flat[0], sampled, *flat[1:], numbers(40, 4, 3), 4, 4, 4)
    yield "npu_advance_step_flashattn", arguments, spec
