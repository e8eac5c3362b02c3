"""Options of mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from hivemind.config import check_choice, check_count, check_seconds
from hivemind.errors import ConfigError
from hivemind.moe.client.calls import DEFAULT_TIMEOUT

__all__ = ["MixtureKeywords", "MixtureOptions", "SearchOptions", "SwitchOptions"]


@dataclass(frozen=True, kw_only=True)
class MixtureOptions:
    """Whom a mixture asks, and whom it waits for.

    :param k_best: experts for each sample
    :param k_min: answers that each sample must have in forward
    :param forward_timeout: seconds for all calls of forward; None = 120
    :param timeout_after_k_min: seconds that others are waited for once each sample has ``k_min`` answers, or as many as
        it can get; None = all are
    :param backward_k_min: as ``k_min``, in backward. A sample with fewer answers passes less gradient on, or none; it
        is an error if that is so for all
    :param backward_timeout: as ``forward_timeout``
    :param detect_anomalies: leave out experts whose outputs or gradients are not finite; refuse inputs that are not
    :param allow_zero_outputs: samples with fewer than ``k_min`` answers get the average of those, or zeros, instead of
        an error
    """

    k_best: int
    k_min: int = 1
    forward_timeout: float | None = None
    timeout_after_k_min: float | None = None
    backward_k_min: int = 1
    backward_timeout: float | None = None
    detect_anomalies: bool = False
    allow_zero_outputs: bool = False

    def __post_init__(self) -> None:
        check_count("k_best", self.k_best)
        for name in ("k_min", "backward_k_min"):
            check_count(name, getattr(self, name), least=0)
            if getattr(self, name) > self.k_best:
                raise ConfigError(name, getattr(self, name), f"at most k_best: {self.k_best}")
        check_seconds("forward_timeout", self.forward_timeout, optional=True)
        check_seconds("backward_timeout", self.backward_timeout, optional=True)
        check_seconds("timeout_after_k_min", self.timeout_after_k_min, optional=True, zero=True)
        check_choice("detect_anomalies", self.detect_anomalies, (True, False))
        check_choice("allow_zero_outputs", self.allow_zero_outputs, (True, False))

    def seconds(self, *, forward: bool) -> float:
        """For all calls of forward or of backward."""
        return (self.forward_timeout if forward else self.backward_timeout) or DEFAULT_TIMEOUT

    def least(self, *, forward: bool) -> int:
        """Answers that each sample should have in forward or in backward."""
        return self.k_min if forward else self.backward_k_min


@dataclass(frozen=True, kw_only=True)
class SwitchOptions(MixtureOptions):
    """Those of a mixture that keeps the load on its experts even, with other defaults.

    :param utilization_alpha: how much of the measured use is kept from batch to batch, 0 to 1
    :param grid_dropout: share of the coordinates of each axis that can be chosen in a batch of training; the
        probabilities are those among them
    :param jitter_eps: in training, what experts are chosen by is multiplied by random numbers from ``1 - jitter_eps``
        to ``1 + jitter_eps``
    """

    k_best: int = 1
    k_min: int = 0
    backward_k_min: int = 0
    allow_zero_outputs: bool = True
    utilization_alpha: float = 0.9
    grid_dropout: float = 1.0
    jitter_eps: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("utilization_alpha", "grid_dropout", "jitter_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(name, value, "a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How experts are looked up in the DHT.

    :param num_workers: requests that one look-up has under way at first; None = as the DHT has it
    :param negative_caching: remember in the DHT which prefixes nobody has declared, so that the next search is spared
        the look-up, also that of others. Grids with one axis have no such records: there they would hide experts
    :param cache_expiration: seconds for which that holds
    """

    num_workers: int | None = None
    negative_caching: bool = True
    cache_expiration: float = 300

    def __post_init__(self) -> None:
        check_count("num_workers", self.num_workers, optional=True)
        check_choice("negative_caching", self.negative_caching, (True, False))
        check_seconds("cache_expiration", self.cache_expiration)


class MixtureKeywords(TypedDict, total=False):
    """The options of `MixtureOptions`, `SwitchOptions` and `SearchOptions` that are keywords of the layers."""

    k_best: int
    k_min: int
    forward_timeout: float | None
    timeout_after_k_min: float | None
    backward_k_min: int
    backward_timeout: float | None
    detect_anomalies: bool
    allow_zero_outputs: bool
    utilization_alpha: float
    grid_dropout: float
    jitter_eps: float
    num_workers: int | None
    negative_caching: bool
    cache_expiration: float
