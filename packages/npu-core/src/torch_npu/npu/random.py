"""Random numbers: one counter-based generator per device, state = (seed, offset)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from npu_core import _C
from torch_npu.npu.devices import _get_device_index
from torch_npu.npu.initialization import _lazy_call, _lazy_init

__all__ = [
    "get_rng_state",
    "get_rng_state_all",
    "initial_seed",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
]


def _index_of(device: Any) -> int:
    return _C._current_device() if isinstance(device, str) and device == "npu" else _get_device_index(device)


def _seeds(seed: int) -> int:
    # As torch.manual_seed does: negative values count from the top of the 64-bit range.
    seed = int(seed)
    return seed if seed >= 0 else seed + (1 << 64)


def manual_seed(seed: int) -> None:
    """Seed the generator of the current device; before initialisation this happens when it comes."""
    value = _seeds(seed)
    _lazy_call(lambda: _C._default_generator(_C._current_device()).manual_seed(value))


def manual_seed_all(seed: int) -> None:
    """Seed the generators of all devices."""
    value = _seeds(seed)

    def apply() -> None:
        for index in range(_C._device_count()):
            _C._default_generator(index).manual_seed(value)

    _lazy_call(apply)


def seed() -> None:
    """Give the current device's generator a new nondeterministic seed."""
    _lazy_call(lambda: _C._default_generator(_C._current_device()).seed())


def seed_all() -> None:
    """Give all generators the same new nondeterministic seed."""

    def apply() -> None:
        if _C._device_count() == 0:
            return
        value = _C._default_generator(0).seed()
        for index in range(1, _C._device_count()):
            _C._default_generator(index).manual_seed(value)

    _lazy_call(apply)


def initial_seed() -> int:
    """Return the seed of the current device's generator."""
    _lazy_init()
    return _C._default_generator(_C._current_device()).initial_seed()


def get_rng_state(device: torch.device | str | int = "npu") -> torch.Tensor:
    """Return the generator's state.

    Returns
    -------
    torch.Tensor
        16 bytes on the CPU: little-endian uint64 seed, then int64 offset.
    """
    _lazy_init()
    return _C._default_generator(_index_of(device)).get_state()


def get_rng_state_all() -> list[torch.Tensor]:
    """Return the states of all devices' generators."""
    _lazy_init()
    return [get_rng_state(index) for index in range(_C._device_count())]


def set_rng_state(new_state: torch.Tensor, device: torch.device | str | int = "npu") -> None:
    """Set the generator's state to what `get_rng_state` returned (or 8 bytes: the seed, offset 0)."""
    state = new_state.clone(memory_format=torch.contiguous_format)
    _lazy_call(lambda: _C._default_generator(_index_of(device)).set_state(state))


def set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    """Set the state of device i to the i-th of `new_states`."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)
