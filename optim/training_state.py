"""The state of training on one peer: parameters, optimizer, schedule and epoch, changed as one."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard, cast

import torch

from hivemind.errors import ConfigError, SerializationError
from hivemind.optim.flatten import flatten_optimizer_state, unflatten_optimizer_state
from hivemind.optim.structure import OptimizerStructure

__all__ = [
    "CurrentState",
    "LRSchedulerBase",
    "OptimizerFactory",
    "ParamGroups",
    "Parameters",
    "SchedulerFactory",
    "TorchOptimizer",
    "TrainingState",
    "make_training_state",
]

Parameters: TypeAlias = Iterable[torch.Tensor]
ParamGroups: TypeAlias = Iterable[dict[str, Any]]
TorchOptimizer: TypeAlias = torch.optim.Optimizer
LRSchedulerBase: TypeAlias = torch.optim.lr_scheduler.LRScheduler
OptimizerFactory: TypeAlias = Callable[[Parameters | ParamGroups], TorchOptimizer]
SchedulerFactory: TypeAlias = Callable[[TorchOptimizer], LRSchedulerBase]

#: Options of a parameter group that say how *this* machine computes; a donor's are not taken over.
_LOCAL_OPTIONS = ("params", "param_names", "foreach", "fused", "capturable", "differentiable")


@dataclass(frozen=True)
class CurrentState:
    """What newcomers download.

    :param tensors: parameters, extra tensors, then the optimizer's, as `optimizer_metadata` refers to them
    """

    epoch: int
    optimizer_metadata: list[dict[str, Any]]
    tensors: list[torch.Tensor]


class TrainingState:
    """Owns the optimizer and all that belongs to a point in training.

    The training loop changes the state, the network thread copies it: each under `lock`, so that no copy is torn.

    :param optimizer: over all parameters of the model
    :param scheduler: stepped once an epoch; None: the learning rate stays
    :param average_opt_statistics: names of per-parameter statistics that belong to the averaged tensors
    :param extra_tensors: further averaged tensors, changed in place
    :raises ConfigError: if the optimizer has no parameters, or no statistic of a given name
    """

    def __init__(
        self,
        optimizer: TorchOptimizer,
        scheduler: LRSchedulerBase | None = None,
        *,
        average_opt_statistics: Sequence[str] = (),
        extra_tensors: Sequence[torch.Tensor] = (),
        initialize_optimizer: bool | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.parameters: tuple[torch.nn.Parameter, ...] = tuple(p for g in optimizer.param_groups for p in g["params"])
        self.extra_tensors = tuple(extra_tensors)
        self.statistics = tuple(average_opt_statistics)
        if not self.parameters:
            raise ConfigError("optimizer", "no parameters", "an optimizer over the parameters of a model")
        for index, tensor in enumerate(self.extra_tensors):
            if not isinstance(tensor, torch.Tensor) or tensor.grad_fn is not None:
                raise ConfigError(f"extra_tensors[{index}]", tensor, "a leaf tensor")
        #: guards all below it and the tensors themselves; its owner may put another lock here before use
        self.lock: AbstractContextManager[Any] = threading.Lock()
        self._epoch = 0
        self._structure = OptimizerStructure.learn(optimizer, initialize=initialize_optimizer)
        for name in self.statistics:
            if not self._structure.has_statistic(name):
                known = ", ".join(self._structure.statistic_names) or "none"
                raise ConfigError("average_opt_statistics", name, f"statistics of the optimizer: {known}")

    @property
    def epoch(self) -> int:
        """Global steps behind this state."""
        return self._epoch

    def advance(self, epoch: int, *, optimizer_step: bool) -> None:
        """Enter ``epoch``, with one step of the optimizer and the gradients that stand in the parameters if told so;
        the schedule follows. Nobody can copy the state in between."""
        with self.lock:
            if optimizer_step:
                self.optimizer.step()
            self._epoch = epoch
            self._advance_schedule()

    # --- averaging ---

    def averaged_like(self) -> list[torch.Tensor]:
        """New float32 tensors of the shapes and devices of the averaged ones: all parameters, then each named
        statistic of all parameters, then the extra tensors (hivemind 1.1 wire format)."""
        return [
            torch.zeros(source.shape, dtype=torch.float32, device=parameter.device)
            for parameter, source in self._averaged()
        ]

    def write_averaged(self, targets: Sequence[torch.Tensor]) -> None:
        """Copy the averaged tensors to ``targets``."""
        with self.lock, torch.no_grad():
            for target, (_, source) in zip(targets, self._averaged(), strict=True):
                if source.is_meta:
                    target.zero_()
                else:
                    target.copy_(source)

    def read_averaged(self, sources: Sequence[torch.Tensor]) -> None:
        """Take the averaged tensors over from ``sources``."""
        with self.lock, torch.no_grad():
            for source, (_, target) in zip(sources, self._averaged(), strict=True):
                if not target.is_meta:
                    target.copy_(source)

    def _averaged(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of a tensor that tells the device and the tensor itself; on "meta" where the optimizer has no such
        statistic yet."""
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = [(p, p.detach()) for p in self.parameters]
        for name in self.statistics:
            for index, parameter in enumerate(self.parameters):
                statistic = self.optimizer.state.get(parameter, {}).get(name)
                if not isinstance(statistic, torch.Tensor):
                    statistic = self._structure.placeholder(index, name)
                pairs.append((parameter, statistic))
        pairs.extend((tensor, tensor.detach()) for tensor in self.extra_tensors)
        return pairs

    # --- download ---

    def current(self) -> CurrentState:
        """The state as it is, not copied: hold `lock` until it is.

        :raises SerializationError: if the optimizer's state has values that cannot be sent
        """
        metadata, tensors = flatten_optimizer_state(self._structure.complete(self.optimizer.state_dict()))
        own = [tensor.detach() for tensor in self._own_tensors()]
        return CurrentState(self._epoch, metadata, own + tensors)

    def check(self, epoch: object, optimizer_metadata: object, tensors: Sequence[torch.Tensor]) -> None:
        """Whether a downloaded state can be taken over. Changes nothing and takes no lock: call it while the training
        loop waits for the download.

        :param epoch: of the donor
        :param optimizer_metadata: see `hivemind.optim.flatten`
        :param tensors: in the order of `CurrentState`
        :raises SerializationError: if it does not fit, is older than this state or is not finite
        """
        self._fitting(epoch, optimizer_metadata, tensors)

    def restore(self, epoch: object, optimizer_metadata: object, tensors: Sequence[torch.Tensor]) -> None:
        """Take a downloaded state over: as a whole, or, if anything does not fit, not at all. Arguments as `check`.

        :raises SerializationError: if it does not fit, is older than this state or is not finite; nothing has changed
        """
        with self.lock:
            new_epoch, loaded = self._fitting(epoch, optimizer_metadata, tensors)
            try:
                self.optimizer.load_state_dict(loaded)
            except (ValueError, KeyError, TypeError) as error:
                raise SerializationError(f"the optimizer refused the peer's state: {error}") from error
            with torch.no_grad():
                for mine, theirs in zip(self._own_tensors(), tensors, strict=False):
                    mine.copy_(theirs)
            self._epoch = new_epoch
            self._follow_schedule(loaded["param_groups"])

    def _own_tensors(self) -> tuple[torch.Tensor, ...]:
        return (*self.parameters, *self.extra_tensors)

    def _fitting(
        self, epoch: object, optimizer_metadata: object, tensors: Sequence[torch.Tensor]
    ) -> tuple[int, dict[str, Any]]:
        """Epoch and optimizer state of a download that fits in every respect."""
        if type(epoch) is not int or epoch < self._epoch:
            raise SerializationError(f"the peer's state is of epoch {epoch!r}, this peer's of {self._epoch}")
        own = self._own_tensors()
        if len(tensors) < len(own):
            raise SerializationError(f"the peer sent {len(tensors)} tensors, at least {len(own)} are needed")
        for index, (mine, theirs) in enumerate(zip(own, tensors, strict=False)):
            if mine.shape != theirs.shape:
                shapes = f"{tuple(theirs.shape)}, not {tuple(mine.shape)}"
                raise SerializationError(f"tensor {index} of the peer's state has the shape {shapes}")
        if not all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point()):
            raise SerializationError("the peer's state is not finite: its training has diverged")
        state = self._structure.complete(self.optimizer.state_dict())
        loaded = unflatten_optimizer_state(state, optimizer_metadata, tensors[len(own) :])
        for group, own_group in zip(loaded["param_groups"], state["param_groups"], strict=True):
            group.update({name: own_group[name] for name in _LOCAL_OPTIONS if name in own_group})
        return epoch, loaded

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own ``state_dict`` with the epoch as ``state["local_epoch"]``, as hivemind 1.1 writes it."""
        with self.lock:
            state = self.optimizer.state_dict()
            state["state"] = {**state["state"], "local_epoch": self._epoch}
            return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> int:
        """Take a checkpoint over; returns its epoch, or the epoch before where it holds none.

        :raises ConfigError: if the epoch is no int >= 0
        """
        inner = dict(state_dict["state"])
        with self.lock:
            epoch = inner.pop("local_epoch", self._epoch)
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
                raise ConfigError("local_epoch", epoch, "an int >= 0")
            self.optimizer.load_state_dict({**state_dict, "state": inner})
            self._epoch = epoch
            self._follow_schedule(copy.deepcopy(state_dict["param_groups"]))
            return epoch

    def _follow_schedule(self, groups: Sequence[dict[str, Any]]) -> None:
        """Advance the schedule, but keep the options of ``groups``: their learning rates are of this epoch already,
        and schedules that multiply the current rate would do so twice."""
        self._advance_schedule()
        for group, loaded in zip(self.optimizer.param_groups, groups, strict=True):
            group.update({key: value for key, value in loaded.items() if key not in _LOCAL_OPTIONS and key in group})

    def _advance_schedule(self) -> None:
        scheduler = self.scheduler
        if scheduler is None:
            return
        if scheduler._step_count <= self._epoch:
            # torch warns of a schedule that runs ahead of the optimizer; here other peers' steps count as well
            self.optimizer._opt_called = True  # type: ignore[attr-defined]
        while scheduler._step_count <= self._epoch:
            scheduler.step()


def make_training_state(
    optimizer: TorchOptimizer | OptimizerFactory,
    params: Parameters | ParamGroups | None,
    scheduler: LRSchedulerBase | SchedulerFactory | None,
    **options: Any,
) -> TrainingState:
    """From what users give: an optimizer, or parameters and a factory of one.

    :param options: further arguments of `TrainingState`
    :raises ConfigError: on any other combination
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        if params is not None:
            raise ConfigError("params", "given", "None with a ready optimizer, or a factory as optimizer")
        made = optimizer
    elif callable(optimizer) and params is not None:
        made = optimizer(cast("Parameters | ParamGroups", list(params)))
        if not isinstance(made, torch.optim.Optimizer):
            raise ConfigError("optimizer", type(made).__name__, "a factory that returns a torch optimizer")
        if _is_schedule(scheduler):
            raise ConfigError("scheduler", type(scheduler).__name__, "a factory where the optimizer is one")
    else:
        raise ConfigError(
            "optimizer", type(optimizer).__name__, "a torch optimizer, or params and a factory such as torch.optim.Adam"
        )
    if scheduler is not None and not _is_schedule(scheduler):
        if not callable(scheduler):
            raise ConfigError("scheduler", scheduler, "a torch.optim.lr_scheduler, or a factory of one")
        scheduler = scheduler(made)
        if not _is_schedule(scheduler):
            raise ConfigError("scheduler", type(scheduler).__name__, "a factory of a torch.optim.lr_scheduler")
    return TrainingState(made, scheduler, **options)


def _is_schedule(scheduler: object) -> TypeGuard[LRSchedulerBase]:
    """By what is used of it: some libraries have schedules that are no `LRScheduler`."""
    return hasattr(scheduler, "_step_count") and hasattr(scheduler, "step")
