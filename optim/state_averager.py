"""Averages parameters (and statistics of the optimizer) and hands the state of training to newcomers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import torch

from hivemind.averaging import AveragerKeywords, DecentralizedAverager, StepControl
from hivemind.clock import Deadline, DHTExpiration
from hivemind.compression import CompressionInfo, TensorRole
from hivemind.dht import DHT
from hivemind.errors import ConfigError, SerializationError, ValidationError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.optim.training_state import (
    LRSchedulerBase,
    OptimizerFactory,
    Parameters,
    ParamGroups,
    SchedulerFactory,
    TorchOptimizer,
    make_training_state,
)
from hivemind.runtime import wait_for

__all__ = ["TrainingStateAverager"]

logger = get_logger(__name__)


class TrainingStateAverager(DecentralizedAverager):
    """Keeps the training state of peers together.

    Averaged are float32 copies of all parameters, then of each statistic named in ``average_opt_statistics``, then of
    the extra tensors. Downloads carry the epoch and the whole state of the optimizer as well. Training calls come from
    one thread; downloads are answered meanwhile, never with a half-made step.

    :param dht: a running DHT
    :param prefix: all peers to average with have the same
    :param optimizer: a torch optimizer, or a factory of one that is called with ``params``
    :param params: parameters or groups of them, for a factory
    :param scheduler: a schedule of ``optimizer``, or a factory of one; stepped once an epoch
    :param initialize_optimizer: False: do not find out which statistics the optimizer will have
    :param average_opt_statistics: names of statistics of the optimizer, such as ``("exp_avg_sq",)``
    :param extra_tensors: averaged and downloaded with the parameters; changed in place
    :param status_loglevel: level of messages on how the run goes
    :param start: begin at once
    :param options: see `hivemind.averaging.AveragerOptions`
    :raises ConfigError: on an argument that makes no sense, or an unknown option
    """

    def __init__(
        self,
        *,
        dht: DHT,
        prefix: str,
        optimizer: TorchOptimizer | OptimizerFactory,
        params: Parameters | ParamGroups | None = None,
        scheduler: LRSchedulerBase | SchedulerFactory | None = None,
        initialize_optimizer: bool | None = None,
        average_opt_statistics: Sequence[str] = (),
        extra_tensors: Sequence[torch.Tensor] = (),
        status_loglevel: int = logging.DEBUG,
        start: bool = False,
        **options: Unpack[AveragerKeywords],
    ) -> None:
        self._state = make_training_state(
            optimizer,
            params,
            scheduler,
            average_opt_statistics=average_opt_statistics,
            extra_tensors=extra_tensors,
            initialize_optimizer=initialize_optimizer,
        )
        self.status_loglevel = status_loglevel
        self._buffers = self._state.averaged_like()
        if options.get("tensor_infos") is None:
            options["tensor_infos"] = tuple(self._infos(self._buffers))
        super().__init__(self._buffers, dht, start=False, prefix=prefix, **options)
        # one lock for buffers and state: neither is copied while a step changes it
        self._state.lock = self.lock_averaged_tensors
        if start:
            self.run_in_background(await_ready=True)

    @property
    def optimizer(self) -> TorchOptimizer:
        """The optimizer."""
        return self._state.optimizer

    @property
    def scheduler(self) -> LRSchedulerBase | None:
        """Its schedule."""
        return self._state.scheduler

    @property
    def main_parameters(self) -> tuple[torch.nn.Parameter, ...]:
        """The parameters in the order of the optimizer's groups."""
        return self._state.parameters

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        return self._state.optimizer.param_groups

    @property
    def opt_keys_for_averaging(self) -> tuple[str, ...]:
        """Names of the averaged statistics."""
        return self._state.statistics

    @property
    def extra_tensors(self) -> tuple[torch.Tensor, ...]:
        """Tensors averaged besides parameters and statistics."""
        return self._state.extra_tensors

    @property
    def local_epoch(self) -> int:
        """Global steps behind this peer."""
        return self._state.epoch

    @local_epoch.setter
    def local_epoch(self, epoch: int) -> None:
        self._state.advance(epoch, optimizer_step=False)

    def advance(self, epoch: int, *, optimizer_step: bool) -> None:
        """Enter ``epoch``, with a step of the optimizer if told so; the schedule follows."""
        self._state.advance(epoch, optimizer_step=optimizer_step)

    def schedule_step(
        self,
        scheduled_time: DHTExpiration | None = None,
        *,
        timeout: float | None = None,
        known_peers: int | Iterable[PeerID] | None = None,
        **kwargs: Any,
    ) -> StepControl:
        """Look for a group ahead of time, for a later `step` with this control. Arguments as
        `DecentralizedAverager.step`."""
        return super().step(
            scheduled_time=scheduled_time,
            timeout=timeout,
            known_peers=known_peers,
            require_trigger=True,
            wait=False,
            **kwargs,
        )

    def begin_round(self, control: StepControl) -> None:
        """Let the round of ``control`` begin with the state as it is."""
        self._state.write_averaged(self._buffers)
        control.allow_allreduce()

    def end_round(self) -> None:
        """Take the result of the round that has just ended well over."""
        self._state.read_averaged(self._buffers)

    def step(  # type: ignore[override]
        self,
        *,
        increment_epoch: bool = False,
        optimizer_step: bool = False,
        zero_grad: bool = False,
        averaging_round: bool = False,
        averaging_control: StepControl | None = None,
        set_to_none: bool = True,
        timeout: float | None = None,
        averaging_opts: Mapping[str, Any] | None = None,
    ) -> Mapping[PeerID, Any] | None:
        """Any of: a step of the optimizer, the next epoch, a round of averaging, in this order.

        :param averaging_control: of `schedule_step`; None: look for a group now
        :param timeout: seconds for the round
        :param averaging_opts: further arguments of `DecentralizedAverager.step`
        :returns: what the members of the round gave to gather; None without a round
        :raises AllreduceException: if the round failed
        """
        if optimizer_step or increment_epoch:
            self.advance(self.local_epoch + increment_epoch, optimizer_step=optimizer_step)
        if zero_grad:
            self.optimizer.zero_grad(set_to_none=set_to_none)
        if not averaging_round and averaging_control is None:
            return None
        options = {"gather": self.local_epoch, **(averaging_opts or {})}
        control = averaging_control or self.schedule_step(timeout=timeout, **options)
        self.begin_round(control)
        try:
            gathered = wait_for(control, Deadline.after(control.get_timeout()), "averaging the state")
        except BaseException:
            control.cancel()
            raise
        self.end_round()
        return gathered

    # --- state for newcomers ---

    def get_current_state(self) -> tuple[dict[str, Any], list[torch.Tensor], list[CompressionInfo]]:
        now = self._state.current()
        metadata = {
            "epoch": now.epoch,
            "group_bits": self._core.keys.group_bits,
            "optimizer_metadata": now.optimizer_metadata,
        }
        own = len(self._state.parameters) + len(self._state.extra_tensors)
        infos = [
            CompressionInfo.from_tensor(
                tensor, key=index, role=TensorRole.PARAMETER if index < own else TensorRole.OPTIMIZER
            )
            for index, tensor in enumerate(now.tensors)
        ]
        return metadata, now.tensors, infos

    def check_state(self, metadata: Any, tensors: Sequence[torch.Tensor], expected: int) -> None:
        try:
            self._state.check(*_parts(metadata), tensors)
        except SerializationError as error:
            raise ValidationError(str(error)) from error

    def load_state_from_peers(self, wait: bool = True, timeout: float | None = None) -> bool:
        """Download the state of the peer with the highest epoch and take it over: as a whole, or not at all.

        :param wait: must be True
        :param timeout: seconds for all of it; None: 600
        :returns: whether a state was taken over
        """
        if not wait:
            raise ConfigError("wait", wait, "True: the state is taken over in the caller's thread")
        loaded = super().load_state_from_peers(timeout=timeout)
        if loaded is None:
            return False
        metadata, tensors = loaded
        try:
            self._state.restore(*_parts(metadata), tensors)
        except SerializationError as error:
            logger.warning("the downloaded state was not taken over: %s", error)
            return False
        logger.log(self.status_loglevel, "took over the state of epoch %d", self.local_epoch)
        return True

    def state_dict(self) -> dict[str, Any]:
        """See `TrainingState.state_dict`."""
        return self._state.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> int:
        """See `TrainingState.load_state_dict`."""
        return self._state.load_state_dict(state_dict)

    def _infos(self, buffers: Sequence[torch.Tensor]) -> Iterable[CompressionInfo]:
        """Descriptions of the averaged tensors. That of a parameter names the dtype of the parameter, not of its
        float32 copy: peers of hivemind 1.1 cut the parts by it."""
        parameters = len(self._state.parameters)
        statistics = parameters * len(self._state.statistics)
        for index, parameter in enumerate(self._state.parameters):
            yield CompressionInfo.from_tensor(parameter.detach(), key=index, role=TensorRole.PARAMETER)
        for index, buffer in enumerate(buffers[parameters:], start=parameters):
            role = TensorRole.OPTIMIZER if index < parameters + statistics else TensorRole.UNSPECIFIED
            yield CompressionInfo.from_tensor(buffer, key=index, role=role)


def _parts(metadata: object) -> tuple[Any, Any]:
    if not isinstance(metadata, dict):
        raise SerializationError("the peer's state has no metadata of training")
    return metadata.get("epoch"), metadata.get("optimizer_metadata")
