"""Options of `hivemind.Optimizer` and of its progress tracker: names and defaults of hivemind 1.1, checked here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from hivemind.compression import CompressionBase, NoCompression
from hivemind.config import check_count, check_fraction, check_seconds
from hivemind.errors import ConfigError

if TYPE_CHECKING:
    from hivemind.optim.grad_averager import GradientAverager

__all__ = ["GradientAveragerFactory", "OptimizerKeywords", "OptimizerOptions", "TrackerOptions"]

#: Makes the averager of gradients: called with the parameters, and with the keywords of `GradientAverager`.
GradientAveragerFactory = Callable[..., "GradientAverager"]


@dataclass(frozen=True, kw_only=True)
class TrackerOptions:
    """How often peers tell and ask each other how far they are.

    A fetch costs one DHT search and one signature check per peer of the swarm. The formula for the next one is
    ``clip(eta * n / max(n + expected_drift_peers, n * (1 + expected_drift_rate)), min, max)``: with ``n`` peers
    known, be back before as many newcomers as expected could have filled the batch.
    """

    #: Seconds between two fetches at the least. Swarms of few peers ask more often, see `hivemind.optim.epoch`.
    min_refresh_period: float = 0.5
    #: Seconds between two fetches at the most. Raising it delays the view on newcomers and on the dead.
    max_refresh_period: float = 10.0
    #: Seconds to the next fetch while no peer is known.
    default_refresh_period: float = 3.0
    #: So many peers may join within an epoch.
    expected_drift_peers: float = 3.0
    #: So large a share of the swarm may join within an epoch.
    expected_drift_rate: float = 0.2
    #: Weight of the newest measurement in the moving average of samples per second, 0 to 1.
    performance_ema_alpha: float = 0.1
    #: Seconds for which a report is valid; it is renewed after half of them. Raising it keeps the dead longer.
    metadata_expiration: float = 60.0
    #: Level of `logging` at which the state of the swarm is told.
    status_loglevel: int = logging.DEBUG

    def __post_init__(self) -> None:
        for name in ("min_refresh_period", "max_refresh_period", "default_refresh_period", "metadata_expiration"):
            check_seconds(name, getattr(self, name))
        for name in ("expected_drift_peers", "expected_drift_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigError(name, value, "a number >= 0")
        check_fraction("performance_ema_alpha", self.performance_ema_alpha)
        if self.max_refresh_period < self.min_refresh_period:
            raise ConfigError("max_refresh_period", self.max_refresh_period, f">= {self.min_refresh_period} s")


class OptimizerKeywords(TypedDict, total=False):
    """The keywords of `OptimizerOptions`, for type checkers and editors."""

    matchmaking_time: float
    averaging_timeout: float
    allreduce_timeout: float | None
    next_chunk_timeout: float | None
    load_state_timeout: float
    reuse_grad_buffers: bool
    offload_optimizer: bool | None
    delay_optimizer_step: bool | None
    delay_grad_averaging: bool
    delay_state_averaging: bool | None
    average_state_every: int
    use_local_updates: bool
    client_mode: bool | None
    auxiliary: bool
    grad_compression: CompressionBase
    grad_averager_factory: GradientAveragerFactory | None
    state_averaging_compression: CompressionBase
    load_state_compression: CompressionBase
    average_opt_statistics: Sequence[str]
    extra_tensors: Sequence[torch.Tensor]
    averager_opts: Mapping[str, Any] | None
    tracker_opts: Mapping[str, Any] | None
    performance_ema_alpha: float
    shutdown_timeout: float
    verbose: bool


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How a peer of a training run averages. All peers of a run must agree on the compressions,
    ``average_opt_statistics`` and ``extra_tensors``: peers that do not never meet, or fail their rounds."""

    #: Seconds to find the group of a round: rounds are planned so far ahead of the end of an epoch, and a round waits
    #: so long for peers that are known but not there. Raising it helps slow or distant peers to be in, and makes a
    #: peer that has died cost more, once.
    matchmaking_time: float = 15.0
    #: Seconds after which a round is given up; the peer goes on with its own gradients (or state).
    averaging_timeout: float = 60.0
    #: Seconds for the exchange itself once a group is found; None: ``averaging_timeout``.
    allreduce_timeout: float | None = None
    #: Seconds without a message after which a peer is left out of a round; None: ``matchmaking_time``.
    next_chunk_timeout: float | None = None
    #: Seconds within which the state of the run must have been downloaded.
    load_state_timeout: float = 600.0
    #: Accumulate in ``parameter.grad``: saves one copy of the gradients. The training loop must then not call
    #: ``zero_grad``, and every call of ``step`` counts alike, whatever its batch size.
    reuse_grad_buffers: bool = False
    #: Only None and False (the optimizer runs where the parameters are) are built.
    offload_optimizer: bool | None = None
    #: Only None and False are built: the optimizer runs within `Optimizer.step`.
    delay_optimizer_step: bool | None = None
    #: Only False is built: gradients are averaged within `Optimizer.step`.
    delay_grad_averaging: bool = False
    #: None and False: average the state within `Optimizer.step`, so that all peers leave it with the same parameters.
    #: True: in the background, while the next batches are computed; the result is taken over by a later `step`.
    delay_state_averaging: bool | None = None
    #: Epochs between two rounds of averaging parameters, statistics and extra tensors.
    average_state_every: int = 1
    #: Only False is built: peers average gradients.
    use_local_updates: bool = False
    #: Never accept connections from other peers; None: as the DHT.
    client_mode: bool | None = None
    #: Help to average without training: no data, no batch size.
    auxiliary: bool = False
    #: Codec of gradients on the wire.
    grad_compression: CompressionBase = field(default_factory=NoCompression)
    #: Makes the gradient averager; None: `hivemind.optim.GradientAverager`.
    grad_averager_factory: GradientAveragerFactory | None = None
    #: Codec of parameters and statistics on the wire.
    state_averaging_compression: CompressionBase = field(default_factory=NoCompression)
    #: Codec of the state that newcomers download from this peer.
    load_state_compression: CompressionBase = field(default_factory=NoCompression)
    #: Names of optimizer statistics that are averaged with the parameters, such as ``("exp_avg_sq",)``.
    average_opt_statistics: Sequence[str] = ()
    #: Tensors outside the optimizer that are averaged with the parameters and downloaded by newcomers.
    extra_tensors: Sequence[torch.Tensor] = ()
    #: Options of `hivemind.DecentralizedAverager` for both averagers (gradients and state).
    averager_opts: Mapping[str, Any] | None = None
    #: Options of `TrackerOptions`, and ``private_key``.
    tracker_opts: Mapping[str, Any] | None = None
    #: Weight of the newest measurement of samples per second, 0 to 1.
    performance_ema_alpha: float = 0.1
    #: Seconds that `Optimizer.shutdown` may take to leave rounds in order.
    shutdown_timeout: float = 5.0
    #: Tell the state of the run at level INFO instead of DEBUG.
    verbose: bool = False

    def __post_init__(self) -> None:
        for name in ("matchmaking_time", "averaging_timeout", "load_state_timeout", "shutdown_timeout"):
            check_seconds(name, getattr(self, name))
        for name in ("allreduce_timeout", "next_chunk_timeout"):
            check_seconds(name, getattr(self, name), optional=True)
        check_count("average_state_every", self.average_state_every)
        check_fraction("performance_ema_alpha", self.performance_ema_alpha)
        self._check_built()
        if isinstance(self.average_opt_statistics, str):
            raise ConfigError("average_opt_statistics", self.average_opt_statistics, "a sequence of names")
        for name in ("grad_compression", "state_averaging_compression", "load_state_compression"):
            if not isinstance(getattr(self, name), CompressionBase):
                raise ConfigError(name, getattr(self, name), "a codec such as hivemind.compression.NoCompression()")
        if self.auxiliary and self.client_mode:
            raise ConfigError("auxiliary", True, "False in client mode: others must be able to reach an auxiliary")

    def _check_built(self) -> None:
        for name, meaning in _NOT_BUILT.items():
            if getattr(self, name):
                raise ConfigError(name, getattr(self, name), f"False or its default: {meaning} is not supported yet")

    @property
    def round_timeout(self) -> float:
        """Seconds for the exchange of a round."""
        return self.averaging_timeout if self.allreduce_timeout is None else self.allreduce_timeout

    @property
    def chunk_timeout(self) -> float:
        """Seconds that a peer may be silent within a round."""
        return self.matchmaking_time if self.next_chunk_timeout is None else self.next_chunk_timeout


_NOT_BUILT = {
    "offload_optimizer": "keeping the optimizer apart from the parameters",
    "delay_optimizer_step": "running the optimizer in the background",
    "delay_grad_averaging": "averaging gradients in the background",
    "use_local_updates": "stepping locally between rounds",
}
