"""Gradient scaling with a scale that is decided on the host and reported when it changes."""

from __future__ import annotations

import math
from collections import abc, defaultdict
from typing import Any

import torch
from torch.amp.grad_scaler import OptState, _refresh_per_optimizer_state

from npu_core import _C
from torch_npu import notices
from torch_npu.utils._error_code import ErrCode, pta_error

__all__ = ["GradScaler"]


class GradScaler(torch.amp.GradScaler):
    """Scale losses so that float16 gradients do not underflow.

    Like `torch.amp.GradScaler`, with these differences: the scale may be constant, the fifth positional argument is
    `dynamic`, and skipped steps and changes of the scale are printed.

    Parameters
    ----------
    init_scale : float
        First scale.
    growth_factor, backoff_factor : float
        Factors by which the scale grows (more than 1) after `growth_interval` good steps and shrinks (less than 1)
        after an overflow.
    growth_interval : int
        Good steps in a row before the scale grows.
    dynamic : bool
        False keeps the scale constant and does not look for overflows.
    enabled : bool
        False makes every method pass through.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        dynamic: bool = True,
        enabled: bool = True,
    ) -> None:
        if enabled and _C._device_count() == 0:
            notices.warn("torch_npu.npu.amp.GradScaler is enabled, but no npu is visible. Disabling.", stacklevel=2)
            enabled = False
        if enabled and growth_factor <= 1.0:
            raise ValueError(f"The growth factor must be > 1.0, but got {growth_factor}{pta_error(ErrCode.VALUE)}")
        if enabled and backoff_factor >= 1.0:
            raise ValueError(f"The backoff factor must be < 1.0, but got {backoff_factor}{pta_error(ErrCode.VALUE)}")
        super().__init__("npu", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic

    def scale(self, outputs: Any) -> Any:
        """Return `outputs`, a tensor or nested iterables of tensors on npu, multiplied by the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, torch.Tensor):
            if outputs.device.type != "npu":
                raise ValueError(
                    f"Device type of outputs should be npu, but got {outputs.device.type}{pta_error(ErrCode.VALUE)}"
                )
            return super().scale(outputs)
        if isinstance(outputs, abc.Iterable):
            scaled = map(self.scale, outputs)
            return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled  # type: ignore[call-arg]
        raise TypeError(
            f"outputs must be a Tensor or an iterable of Tensors, but got {type(outputs).__name__}"
            f"{pta_error(ErrCode.TYPE)}"
        )

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: torch.Tensor,
        found_inf: torch.Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, torch.Tensor]:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not allow_fp16 and any(gradient.dtype == torch.float16 for gradient in gradients):
            raise TypeError(f"Attempting to unscale FP16 gradients.{pta_error(ErrCode.TYPE)}")
        if self._dynamic:
            return super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        with torch.no_grad():
            for gradient in gradients:
                gradient.mul_(inv_scale.to(gradient.device))
        return {found_inf.device: found_inf}

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Unscale the gradients, unless that was done, and step the optimizer unless they overflowed.

        Raises
        ------
        TypeError
            A gradient is float16.
        RuntimeError
            `closure` is given, or the optimizer has been stepped since the last `update`.
        """
        # Optimizers that would skip the step on the device are checked here like all others, so that the skip is
        # reported.
        on_device = self._enabled and self._dynamic and getattr(optimizer, "_step_supports_amp_scaling", False)
        if on_device and "closure" not in kwargs:
            state = self._per_optimizer_states[id(optimizer)]
            if state["stage"] is OptState.READY:
                self.unscale_(optimizer)
            if state["stage"] is OptState.UNSCALED and _overflowed([state]):
                print("Gradient overflow. Skipping step")
                state["stage"] = OptState.STEPPED
                return None
        return super().step(optimizer, *args, **kwargs)

    def _maybe_opt_step(
        self, optimizer: torch.optim.Optimizer, optimizer_state: dict[str, Any], *args: Any, **kwargs: Any
    ) -> float | None:
        if self._dynamic and _overflowed([optimizer_state]):
            print("Gradient overflow. Skipping step")
            return None
        return optimizer.step(*args, **kwargs)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Adapt the scale to the steps since the last call, or set it to `new_scale`."""
        if not self._enabled:
            return
        if new_scale is not None:
            super().update(new_scale)
            return
        scale, growth_tracker = self._check_scale_growth_tracker("update")
        if self._dynamic:
            states = self._per_optimizer_states.values()
            if not any(state["found_inf_per_device"] for state in states):
                raise AssertionError("No inf checks were recorded prior to update.")
            self._adapt(scale, growth_tracker, _overflowed(states))
        self._per_optimizer_states: dict[int, dict[str, Any]] = defaultdict(_refresh_per_optimizer_state)

    def _adapt(self, scale: torch.Tensor, growth_tracker: torch.Tensor, overflow: bool) -> None:
        if overflow:
            scale.mul_(self._backoff_factor)
            growth_tracker.zero_()
            print(f"Loss scaler reducing loss scale to {scale.item()}")
            return
        growth_tracker.add_(1)
        if growth_tracker.item() != self._growth_interval:
            return
        growth_tracker.zero_()
        # The scale is a float32: growing past its range would make every later loss infinite.
        if math.isfinite((scale * self._growth_factor).item()):
            scale.mul_(self._growth_factor)
            print(f"Loss scaler increasing loss scale to {scale.item()}")

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state; empty when disabled."""
        state = super().state_dict()
        if self._enabled:
            state["dynamic"] = self._dynamic
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(state_dict)
        if self._enabled:
            self._dynamic = state_dict.get("dynamic", self._dynamic)


def _overflowed(states: abc.Iterable[dict[str, Any]]) -> bool:
    return any(found.item() != 0 for state in states for found in state["found_inf_per_device"].values())
