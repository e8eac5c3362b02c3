"""Optimizers around optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["ClippingWrapper", "OptimizerWrapper"]


class OptimizerWrapper(torch.optim.Optimizer):
    """Passes all on to ``optim``; subclasses add to `step`."""

    def __init__(self, optim: torch.optim.Optimizer) -> None:
        # no call of the base class: the parameters and the state are the other optimizer's
        self.optim = optim

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Of the optimizer inside."""
        return self.optim.defaults

    @property
    def state(self) -> Any:  # type: ignore[override]
        """Of the optimizer inside."""
        return self.optim.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Of the optimizer inside."""
        return self.optim.param_groups

    def __getstate__(self) -> dict[str, Any]:
        return {"optim": self.optim}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.optim = state["optim"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optim!r})"

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer inside."""
        return self.optim.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the optimizer inside."""
        self.optim.load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """By the optimizer inside."""
        self.optim.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To the optimizer inside."""
        self.optim.add_param_group(param_group)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """By the optimizer inside."""
        return self.optim.step(closure) if closure is not None else self.optim.step()


class ClippingWrapper(OptimizerWrapper):
    """Before each step, scales the gradients of each group down to a norm of at most ``clip_grad_norm``."""

    def __init__(self, optim: torch.optim.Optimizer, clip_grad_norm: float) -> None:
        super().__init__(optim)
        self.clip_grad_norm = clip_grad_norm

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "clip_grad_norm": self.clip_grad_norm}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.clip_grad_norm = state["clip_grad_norm"]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Clip, then step."""
        for group in self.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], self.clip_grad_norm)
        return super().step(closure)
