"""What an optimizer's state will look like once it has made a step, without making one.

A newcomer reads a downloaded state by the structure of its own optimizer, and a donor may be asked before its first
step, when most optimizers of torch have no statistics yet.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch

from hivemind.log import get_logger

__all__ = ["OptimizerStructure"]

logger = get_logger(__name__)


@dataclass(frozen=True)
class OptimizerStructure:
    """The statistics of each parameter before the first step.

    Exact for statistics that begin as zeros, as a constant or as a count ``step``. A running product (NAdam's) is one
    step ahead, which only matters to a newcomer that downloads from a peer that has made no step yet.

    :param statistics: by index of the parameter, as in ``state_dict()["state"]``; a tensor that begins as zeros
        stands on the "meta" device, where it needs no memory
    """

    statistics: dict[int, dict[str, Any]]

    @classmethod
    def learn(cls, optimizer: torch.optim.Optimizer, *, initialize: bool | None = None) -> OptimizerStructure:
        """Try a step with gradients of zero and undo it.

        An optimizer that has statistics already, or that cannot step so (one that needs a closure), is taken as it is.

        :param initialize: False: never try
        """
        if optimizer.state or initialize is False:
            return cls(_fresh(optimizer.state_dict()["state"], trained=bool(optimizer.state)))
        parameters: list[torch.Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        before = [(p.detach().clone(), p.grad) for p in parameters]
        groups = [{k: _kept(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        try:
            for p in parameters:
                p.detach().zero_()  # else weight decay would leave its trace in the statistics
                p.grad = torch.zeros_like(p) if p.requires_grad else None
            # not optimizer.step: a scheduler has wrapped it to count the steps
            cast("Any", type(optimizer)).step(optimizer)
            return cls(_fresh(optimizer.state_dict()["state"], trained=False))
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            logger.debug("%s makes no step without data: %s", type(optimizer).__name__, error)
            return cls({})
        finally:
            with torch.no_grad():
                for p, (data, grad) in zip(parameters, before, strict=True):
                    p.copy_(data)
                    p.grad = grad
            optimizer.state.clear()
            for group, options in zip(optimizer.param_groups, groups, strict=True):
                group.update(options)

    @property
    def statistic_names(self) -> list[str]:
        """The names of the statistics that are tensors."""
        return sorted({n for s in self.statistics.values() for n, v in s.items() if isinstance(v, torch.Tensor)})

    def has_statistic(self, name: str) -> bool:
        """Whether any parameter has a statistic ``name`` that is a tensor."""
        return name in self.statistic_names

    def placeholder(self, index: int, name: str) -> torch.Tensor:
        """The statistic of a parameter that has made no step; on "meta" if it is zeros, of no elements if the
        parameter has no such statistic."""
        value = self.statistics.get(index, {}).get(name)
        return value if isinstance(value, torch.Tensor) else torch.empty(0, device="meta")

    def complete(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """``state_dict`` with the statistics of the parameters that have none yet."""
        state = dict(state_dict["state"])
        for index, statistics in self.statistics.items():
            if index not in state:
                state[index] = {name: _materialize(value) for name, value in statistics.items()}
        return {**state_dict, "state": {index: state[index] for index in sorted(state)}}


def _kept(option: Any) -> Any:
    return option if isinstance(option, torch.Tensor) else copy.deepcopy(option)


def _fresh(state: dict[Any, dict[str, Any]], *, trained: bool) -> dict[int, dict[str, Any]]:
    """``state`` as it was before the step that made it: all counts of steps are zero.

    :param trained: it was made by training, so that its values say nothing of how they began
    """
    return {
        index: {
            name: _zeroed(value) if name == "step" else _compact(value, zeros=trained)
            for name, value in statistics.items()
        }
        for index, statistics in state.items()
    }


def _zeroed(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else type(value)(0)


def _compact(value: Any, *, zeros: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    if zeros or bool((value == 0).all()):
        return torch.empty_like(value, device="meta")
    return value.detach().clone()


def _materialize(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_meta:
        return torch.zeros(value.shape, dtype=value.dtype)
    return copy.deepcopy(value)
