"""Accumulates gradients of this peer and averages them with those of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import torch

from hivemind.averaging import AveragerKeywords, DecentralizedAverager, StepControl
from hivemind.clock import Deadline, DHTExpiration
from hivemind.compression import CompressionInfo, TensorRole
from hivemind.dht import DHT
from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.optim.accumulate import GradientAccumulator
from hivemind.runtime import wait_for

__all__ = ["GradientAverager"]

logger = get_logger(__name__)


class GradientAverager(DecentralizedAverager):
    """Averages gradients, weighted by the samples they are the mean of.

    Accumulation (`accumulate_grads_`), averaging (`step`) and use (`use_averaged_gradients`) are three steps; the
    accumulated gradients are kept apart from those that are averaged, so that a failed round, or one that is only
    followed to its end for the sake of the others, costs no samples. Used by one thread at a time.

    :param parameters: in the order that all peers share
    :param dht: a running DHT
    :param prefix: all peers to average with have the same
    :param reuse_grad_buffers: accumulate in ``parameter.grad``, see `GradientAccumulator`
    :param accumulate_grads_on: device of the accumulated gradients; None: beside each parameter
    :param warn: tell of gradients that are used more than once, or never
    :param averaged_grads: tensors for the averaged gradients, one per parameter; by default new ones
    :param start: begin at once
    :param options: see `hivemind.averaging.AveragerOptions`
    :raises ConfigError: on an argument that makes no sense, or an unknown option
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        dht: DHT,
        prefix: str,
        reuse_grad_buffers: bool = False,
        accumulate_grads_on: torch.device | str | None = None,
        warn: bool = True,
        averaged_grads: Sequence[torch.Tensor] = (),
        start: bool = False,
        **options: Unpack[AveragerKeywords],
    ) -> None:
        self.parameters = tuple(parameters)
        self.warn = warn
        self._accumulator = GradientAccumulator(
            self.parameters, reuse_grad_buffers=reuse_grad_buffers, device=accumulate_grads_on
        )
        self._averaged = _check_averaged(averaged_grads, self.parameters) or _zeros(self.parameters)
        self._new_averaged_grads = False
        if options.get("tensor_infos") is None:
            options["tensor_infos"] = tuple(
                CompressionInfo.from_tensor(tensor, key=index, role=TensorRole.GRADIENT)
                for index, tensor in enumerate(self._averaged)
            )
        super().__init__(self._averaged, dht, start=start, prefix=prefix, **options)

    @property
    def reuse_grad_buffers(self) -> bool:
        """Whether gradients accumulate in ``parameter.grad``."""
        return self._accumulator.reuse_grad_buffers

    @property
    def local_samples_accumulated(self) -> int:
        """Samples since the last reset."""
        return self._accumulator.samples

    @property
    def local_times_accumulated(self) -> int:
        """Calls of `accumulate_grads_` since the last reset."""
        return self._accumulator.microbatches

    def accumulate_grads_(self, batch_size: int) -> None:
        """Take over the gradients that stand in the parameters, the mean over ``batch_size`` samples.

        :raises ConfigError: unless it is an int >= 1
        """
        if self._new_averaged_grads and self.warn:
            logger.warning("averaged gradients of %s were not used before new ones were accumulated", self.prefix)
            self._new_averaged_grads = False
        self._accumulator.add(batch_size)

    def load_accumulators_into_averager_(self) -> None:
        """Make the mean of the accumulated gradients this peer's share of the next round."""
        with self.get_tensors():
            self._accumulator.write_mean(self._averaged)

    def reset_accumulated_grads_(self) -> None:
        """Forget what was accumulated, and what was averaged."""
        self._accumulator.reset()
        self._new_averaged_grads = False

    def schedule_step(
        self,
        scheduled_time: DHTExpiration | None = None,
        *,
        timeout: float | None = None,
        known_peers: int | Iterable[PeerID] | None = None,
        **kwargs: Any,
    ) -> StepControl:
        """Look for a group ahead of time, for a later `step` with this control.

        :param scheduled_time: DHT time at which the gradients are expected to be there
        :param timeout: seconds for all of it
        :param kwargs: further arguments of `DecentralizedAverager.step`
        :raises ConfigError: on a weight: it follows from the samples
        """
        if "weight" in kwargs:
            raise ConfigError("weight", kwargs["weight"], "nothing here: the samples at the time of step() decide")
        return super().step(
            scheduled_time=scheduled_time,
            timeout=timeout,
            known_peers=known_peers,
            require_trigger=True,
            wait=False,
            **kwargs,
        )

    def step(  # type: ignore[override]
        self,
        weight: float | None = None,
        reset_accumulators: bool = True,
        control: StepControl | None = None,
        timeout: float | None = None,
        wait: bool = True,
        **kwargs: Any,
    ) -> StepControl | Mapping[PeerID, Any]:
        """Average the accumulated gradients.

        :param weight: None: the number of accumulated samples; 0 for an auxiliary peer
        :param reset_accumulators: forget what was accumulated
        :param control: of `schedule_step`; None: look for a group now
        :param timeout: seconds for all of it; with ``control``, seconds to wait for it
        :param wait: return the result instead of the control
        :param kwargs: further arguments of `schedule_step`
        :raises AllreduceException: if no round succeeded; `use_averaged_gradients` then gives the own gradients
        """
        if control is None:
            control = self.schedule_step(timeout=timeout, **kwargs)
        elif kwargs:
            raise ConfigError(next(iter(kwargs)), next(iter(kwargs.values())), "nothing with a control: it has its own")
        self.load_accumulators_into_averager_()
        if not control.began_allreduce:
            control.weight = float(self._accumulator.samples) if weight is None else weight
        if reset_accumulators:
            self.reset_accumulated_grads_()
        self._new_averaged_grads = True
        control.allow_allreduce()
        if not wait:
            return control
        try:
            bound = control.get_timeout() if timeout is None else timeout
            return wait_for(control, Deadline.after(bound), "averaging gradients")
        except BaseException:
            control.cancel()
            raise

    @contextmanager
    def use_averaged_gradients(self) -> Iterator[None]:
        """Within this block ``parameter.grad`` are the averaged gradients."""
        own = [parameter.grad for parameter in self.parameters]
        try:
            with self.get_tensors(), torch.no_grad():
                for parameter, averaged in zip(self.parameters, self._averaged, strict=True):
                    parameter.grad = averaged.to(parameter.device, parameter.dtype)
            yield
        finally:
            for parameter, grad in zip(self.parameters, own, strict=True):
                parameter.grad = grad

    def notify_used_averaged_gradients(self) -> None:
        """The averaged gradients have served; new ones may be accumulated."""
        self._new_averaged_grads = False


def _zeros(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [torch.zeros_like(p, requires_grad=False, memory_format=torch.contiguous_format) for p in parameters]


def _check_averaged(tensors: Sequence[torch.Tensor], parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    if tensors and [t.shape for t in tensors] != [p.shape for p in parameters]:
        raise ConfigError("averaged_grads", [tuple(t.shape) for t in tensors], "one tensor of its shape per parameter")
    return list(tensors)
