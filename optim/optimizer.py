"""`Optimizer`: a torch optimizer whose steps are made by a whole swarm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Self, Unpack, cast

import torch

from hivemind.clock import Deadline
from hivemind.config import check_count, make_options
from hivemind.dht import DHT
from hivemind.errors import ConfigError, HivemindError
from hivemind.log import get_logger
from hivemind.optim.catch_up import CatchUp
from hivemind.optim.config import OptimizerKeywords, OptimizerOptions
from hivemind.optim.epoch import LocalTrainingProgress, Readiness, state_is_stale
from hivemind.optim.global_step import GlobalStep, StepReport
from hivemind.optim.grad_averager import GradientAverager
from hivemind.optim.state_averager import TrainingStateAverager
from hivemind.optim.tracker import ProgressTracker
from hivemind.optim.training_state import (
    LRSchedulerBase,
    OptimizerFactory,
    Parameters,
    ParamGroups,
    SchedulerFactory,
    TorchOptimizer,
)
from hivemind.runtime import wait_for

__all__ = ["Optimizer"]

logger = get_logger(__name__)

#: Seconds to wait at the start for the first view on the swarm.
_FIRST_VIEW_SECONDS = 5.0


class Optimizer(torch.optim.Optimizer):
    """Trains one model together with all peers of the same ``run_id``; a drop-in for a torch optimizer.

    Peers call `step` after each batch of their own. Gradients accumulate until the swarm has gathered
    ``target_batch_size`` samples; then all peers average them, weighted by samples, make the same step, average their
    parameters, and enter the next *epoch*, as one such global step is called. Peers may join, leave or die at any
    time: one that is behind downloads the state of the others; one that is missing is left out. With
    ``average_state_every=1`` all peers of a round leave it with the same parameters.

    Everything happens within `step`, in the caller's thread; each wait has a bound (see `OptimizerOptions`). Not
    thread-safe.

    :param dht: a running DHT of the swarm
    :param run_id: names the run, without dots; all its peers use the same
    :param target_batch_size: samples of the whole swarm that end an epoch; all peers use the same
    :param batch_size_per_step: samples of one call of `step`; may also be given there
    :param optimizer: a torch optimizer, or a factory that is called with ``params``
    :param params: parameters or groups of them, for a factory
    :param scheduler: a schedule of ``optimizer`` or a factory of one, called with the optimizer; stepped once an epoch
    :param options: see `OptimizerOptions`
    :raises ConfigError: (a `ValueError`) on an argument that makes no sense, or an unknown option
    """

    def __init__(
        self,
        *,
        dht: DHT,
        run_id: str,
        target_batch_size: int,
        batch_size_per_step: int | None = None,
        optimizer: TorchOptimizer | OptimizerFactory,
        params: Parameters | ParamGroups | None = None,
        scheduler: LRSchedulerBase | SchedulerFactory | None = None,
        **options: Unpack[OptimizerKeywords],
    ) -> None:
        # torch's own constructor is not called: it would make groups and state of its own, while `param_groups` and
        # `state` here are those of the optimizer within
        settings = make_options(OptimizerOptions, options, where="Optimizer")
        _check_arguments(dht, run_id, target_batch_size, batch_size_per_step, settings)
        self.dht = dht
        self.run_id = run_id
        self.target_batch_size = target_batch_size
        self.batch_size_per_step = batch_size_per_step
        self.options = settings
        self.auxiliary = settings.auxiliary
        self.client_mode = dht.client_mode if settings.client_mode is None else settings.client_mode
        self.status_loglevel = logging.INFO if settings.verbose else logging.DEBUG
        self.last_step: StepReport | None = None
        self._closed = False
        self._started: list[Callable[[], None]] = []
        try:
            self.state_averager = self._make_state_averager(optimizer=optimizer, params=params, scheduler=scheduler)
            self._started.append(self.state_averager.shutdown)
            self.grad_averager = self._make_gradient_averager()
            self._started.append(self.grad_averager.shutdown)
            self.tracker = self._make_progress_tracker()
            self._started.append(self.tracker.shutdown)
            self._global_step = GlobalStep(self.tracker, self.grad_averager, self.state_averager, settings)
            self._catch_up = CatchUp(run_id, self.tracker, self.state_averager)
            self.tracker.wait_until_fetched(_FIRST_VIEW_SECONDS)
        except BaseException:
            self.shutdown()
            raise

    # --- parts, made by methods that subclasses may override ---

    def _make_state_averager(self, **kwargs: Any) -> TrainingStateAverager:
        options = {
            **self._averager_options(),
            "compression": self.options.state_averaging_compression,
            "state_compression": self.options.load_state_compression,
            **(self.options.averager_opts or {}),
        }
        return TrainingStateAverager(
            dht=self.dht,
            prefix=f"{self.run_id}_state_averager",
            average_opt_statistics=self.options.average_opt_statistics,
            extra_tensors=self.options.extra_tensors,
            status_loglevel=self.status_loglevel,
            start=True,
            **kwargs,
            **options,
        )

    def _make_gradient_averager(self, **kwargs: Any) -> GradientAverager:
        factory = self.options.grad_averager_factory or GradientAverager
        options = {
            **self._averager_options(),
            "compression": self.options.grad_compression,
            **(self.options.averager_opts or {}),
        }
        made = factory(
            dht=self.dht,
            prefix=f"{self.run_id}_grad_averager",
            parameters=self.state_averager.main_parameters,
            reuse_grad_buffers=self.options.reuse_grad_buffers,
            start=True,
            **kwargs,
            **options,
        )
        if not isinstance(made, GradientAverager):
            raise ConfigError("grad_averager_factory", type(made).__name__, "a factory of a GradientAverager")
        return made

    def _make_progress_tracker(self, **kwargs: Any) -> ProgressTracker:
        options = {
            "performance_ema_alpha": self.options.performance_ema_alpha,
            "status_loglevel": self.status_loglevel,
            **(self.options.tracker_opts or {}),
        }
        return ProgressTracker(
            self.dht, self.run_id, self.target_batch_size, client_mode=self.client_mode, start=True, **kwargs, **options
        )

    def _averager_options(self) -> dict[str, Any]:
        return {
            "min_matchmaking_time": self.options.matchmaking_time,
            "request_timeout": min(3.0, self.options.matchmaking_time / 2),
            "allreduce_timeout": self.options.round_timeout,
            "next_chunk_timeout": self.options.chunk_timeout,
            "shutdown_timeout": self.options.shutdown_timeout,
            "client_mode": self.client_mode,
            "auxiliary": self.auxiliary,
        }

    # --- training ---

    def step(  # type: ignore[override]
        self,
        closure: Callable[[], torch.Tensor] | None = None,
        batch_size: int | None = None,
        grad_scaler: Any = None,
    ) -> torch.Tensor | None:
        """Count one batch, whose gradients stand in the parameters; end the epoch if the swarm is ready.

        A call may take long: when an epoch ends, and when this peer has to download the state first (the batch is
        then not counted). An auxiliary peer calls it regularly without arguments.

        :param closure: computes the gradients anew and returns the loss
        :param batch_size: samples of this batch; None: ``batch_size_per_step``
        :param grad_scaler: must be None
        :returns: what ``closure`` returned
        :raises ConfigError: (a `ValueError`) on an argument that makes no sense
        :raises DeadlineExceeded: if this peer is behind and could not download the state in ``load_state_timeout``
        """
        size = self._checked_batch_size(closure, batch_size, grad_scaler)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._global_step.finish_delayed(wait=False)
        if self._should_load_state_from_peers():
            logger.log(self.status_loglevel, "%s: behind the swarm, downloading its state", self.run_id)
            self.load_state_from_peers()
            return loss
        if size is not None:
            self.grad_averager.accumulate_grads_(size)
            self.tracker.report_local_progress(self.local_epoch, self.grad_averager.local_samples_accumulated)
        reason = self.tracker.readiness
        if reason:
            self._update_global_epoch(reason)
        else:
            self._global_step.plan()
        return loss

    def _checked_batch_size(self, closure: object, batch_size: int | None, grad_scaler: object) -> int | None:
        if self._closed:
            raise RuntimeError("the optimizer has been shut down")
        if grad_scaler is not None:
            raise ConfigError("grad_scaler", type(grad_scaler).__name__, "None: gradient scaling is not supported yet")
        if self.auxiliary:
            for name, value in (("closure", closure), ("batch_size", batch_size)):
                if value is not None:
                    raise ConfigError(name, value, "None on an auxiliary peer: it has no data")
            return None
        size = self.batch_size_per_step if batch_size is None else batch_size
        if size is None:
            raise ConfigError("batch_size", None, "the samples of this batch, here or as batch_size_per_step")
        check_count("batch_size", size)
        return size

    def _update_global_epoch(self, reason: Readiness) -> None:
        """End the epoch with the others; download the state instead if they have ended it without this peer."""
        behind = reason is Readiness.PEERS_AHEAD
        if behind and not self._global_step.can_join():
            self.load_state_from_peers()
            return
        with self.tracker.pause_updates():
            report = self._global_step.run(reason)
        if report is None:
            self.load_state_from_peers()
            return
        self.last_step = report
        self._catch_up.epoch_entered()
        self._set_priorities()
        logger.log(
            self.status_loglevel,
            "%s: epoch %d begins, as %s; %d peers averaged gradients, %d the state, in %.3f s",
            self.run_id,
            report.epoch,
            reason.value,
            report.gradient_peers,
            report.state_peers,
            report.seconds,
        )

    def _set_priorities(self) -> None:
        if not self.client_mode and not self.auxiliary:
            # the newest state is asked for first
            self.state_averager.state_sharing_priority = self.local_epoch
            self.grad_averager.state_sharing_priority = self.local_epoch

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients in the parameters, as torch optimizers do.

        :raises ConfigError: with ``reuse_grad_buffers``: they hold what was accumulated
        """
        if self.options.reuse_grad_buffers:
            raise ConfigError("zero_grad", "a call", "none with reuse_grad_buffers: gradients are accumulating")
        self.opt.zero_grad(set_to_none=set_to_none)

    # --- the swarm's state ---

    def is_synchronized_with_peers(self) -> bool:
        """Whether this peer is at most one epoch behind."""
        return not state_is_stale(self.local_epoch, self.tracker.global_epoch, strict=False)

    def _should_load_state_from_peers(self) -> bool:
        """Whether this peer is behind and has to download the state."""
        return self._catch_up.is_due()

    def load_state_from_peers(self, *, timeout: float | None = None) -> None:
        """Download the state of the most advanced peer; what was accumulated is dropped. Does nothing if no other
        peer has a state to give.

        :param timeout: seconds; None: ``load_state_timeout``
        :raises DeadlineExceeded: if there are peers, but none gave its state in time
        """
        self._global_step.leave_rounds()
        self._catch_up.download(Deadline.after(self.options.load_state_timeout if timeout is None else timeout))
        self.grad_averager.reset_accumulated_grads_()
        self._set_priorities()

    # --- checkpoints, and what torch optimizers have ---

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer, with the epoch as ``state["local_epoch"]``."""
        return self.state_averager.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; what was accumulated is dropped. If the swarm is further, the next `step` downloads
        its state."""
        self._global_step.leave_rounds()
        self.state_averager.load_state_dict(state_dict)
        self.grad_averager.reset_accumulated_grads_()
        self.tracker.update_epoch(self.local_epoch)
        self._catch_up.epoch_entered()
        self._set_priorities()

    @property
    def opt(self) -> TorchOptimizer:
        """The optimizer within."""
        return self.state_averager.optimizer

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """The statistics of the optimizer within."""
        return self.opt.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the optimizer within."""
        return self.opt.param_groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """
        :raises ConfigError: always: all peers average the same parameters from the start
        """
        raise ConfigError("param_group", "a new one", "all groups when the optimizer is made")

    @property
    def local_epoch(self) -> int:
        """Global steps behind this peer."""
        return self.state_averager.local_epoch

    @property
    def local_progress(self) -> LocalTrainingProgress:
        """How far this peer is in its epoch."""
        return self.tracker.local_progress

    @property
    def use_local_updates(self) -> bool:
        """Whether the optimizer steps locally between rounds."""
        return self.options.use_local_updates

    @property
    def use_gradient_averaging(self) -> bool:
        """Whether gradients are averaged."""
        return not self.options.use_local_updates

    def __repr__(self) -> str:
        return f"hivemind.Optimizer(run_id={self.run_id!r}, epoch {self.local_epoch}, optimizer={self.opt!r})"

    # --- life ---

    def is_alive(self) -> bool:
        """Whether it can train: it was not shut down, and neither were its parts."""
        return not self._closed and self.state_averager.is_alive() and self.grad_averager.is_alive()

    def shutdown(self) -> None:
        """Leave the run: end rounds in order, withdraw the report, stop sharing the state. The DHT is left as it is.
        Idempotent; bounded by ``shutdown_timeout`` for the rounds and about a second for each part."""
        if self._closed:
            return
        self._closed = True
        if len(self._started) == 3:
            self._finish_rounds(Deadline.after(self.options.shutdown_timeout))
        for stop in reversed(self._started):
            stop()

    def _finish_rounds(self, deadline: Deadline) -> None:
        """Others wait for this peer in the rounds it has joined: be there, with weight 0."""
        for control in self._global_step.leave_rounds():
            try:
                wait_for(control, deadline, "the round that this peer leaves")
            except HivemindError as error:
                logger.debug("while leaving %s: %s", self.run_id, error)
                control.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()


def _check_arguments(
    dht: object, run_id: object, target_batch_size: int, batch_size_per_step: int | None, options: OptimizerOptions
) -> None:
    if not isinstance(dht, DHT):
        raise ConfigError("dht", type(dht).__name__, "a hivemind.DHT")
    if not isinstance(run_id, str) or not run_id or "." in run_id:
        raise ConfigError("run_id", run_id, "text without dots, not empty")
    check_count("target_batch_size", target_batch_size)
    check_count("batch_size_per_step", batch_size_per_step, optional=True)
    if options.auxiliary and batch_size_per_step is not None:
        raise ConfigError("batch_size_per_step", batch_size_per_step, "None on an auxiliary peer: it has no data")
    if options.client_mode is False and dht.client_mode:
        raise ConfigError("client_mode", False, "True or None: the DHT is in client mode, so nobody can reach it")
    if options.auxiliary and (options.client_mode or dht.client_mode):
        raise ConfigError("auxiliary", True, "False in client mode: nobody could reach a peer that only helps")
    for name in ("averager_opts", "tracker_opts"):
        value = cast("object", getattr(options, name))
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(name, type(value).__name__, "a mapping of options")
