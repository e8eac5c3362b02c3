"""Options of an averager, and the finite defaults of every wait."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypedDict

from hivemind.averaging.group_key import check_bits
from hivemind.compression import CompressionBase, CompressionInfo, NoCompression
from hivemind.config import check_count, check_seconds
from hivemind.errors import ConfigError

__all__ = ["AveragerKeywords", "AveragerOptions", "Timeouts", "allreduce_seconds", "check_share", "step_seconds"]


@dataclass(frozen=True, kw_only=True)
class AveragerOptions:
    """How an averager finds groups and exchanges tensors. All members of a group need the same ``compression`` and
    ``part_size_bytes``: the partition is computed from them."""

    #: a group with so many members begins at once; None = begin when everybody known is there, or when the time is up
    target_group_size: int | None = None
    #: fewer members are no group
    min_group_size: int = 2
    #: the cell in the grid of groups in which to begin, text of 0 and 1
    initial_group_bits: str = ""
    #: seconds that peers are waited for, at the most, if not all that are known have come
    min_matchmaking_time: float = 5.0
    #: seconds for a leader's first answer; less than ``min_matchmaking_time``
    request_timeout: float = 3.0
    #: how far to go to the average: 1 = all the way
    averaging_alpha: float = 1.0
    #: bytes of one part before compression; smaller parts overlap better, larger ones cost fewer messages
    part_size_bytes: int = 524288
    #: seconds for the exchange of one round; None = 60, and 2 s more for each MB of tensors
    allreduce_timeout: float | None = None
    #: seconds between two messages of a state download, and the default of ``sender_timeout``; None = 15
    next_chunk_timeout: float | None = None
    #: seconds after which a silent sender is left out; None = ``next_chunk_timeout``, or 15 and 1 more for each member
    sender_timeout: float | None = None
    #: seconds after which a silent reducer counts as failed, more than ``sender_timeout``; None = twice that
    reducer_timeout: float | None = None
    #: seconds for a whole step that is called without a timeout; None = 300 and the ``allreduce_timeout``
    step_timeout: float | None = None
    #: how tensors travel in a round
    compression: CompressionBase = field(default_factory=NoCompression)
    #: how tensors travel in a state download
    state_compression: CompressionBase = field(default_factory=NoCompression)
    #: what the tensors are, for adaptive compression; None = parts of a whole without names
    tensor_infos: tuple[CompressionInfo, ...] | None = None
    #: relative, >= 0: how much of the reduction to do for others; 0 = none; None = as the mean of the group
    bandwidth: float | None = None
    #: elements; members whose share would be smaller reduce nothing (only where bandwidths are given)
    min_vector_size: int = 0
    #: reduce for others and receive the average, but contribute nothing
    auxiliary: bool = False
    #: answer state downloads; None = unless in client mode or auxiliary
    allow_state_sharing: bool | None = None
    #: seconds for which a declaration of this peer holds; also how long others may wait for it after it has died
    declare_state_period: float = 30.0
    #: bytes of tensors that a state download may bring; None = 1 GiB, or 16 times the own tensors where that is more
    max_state_bytes: int | None = None
    #: only call, never be called; None = as the DHT
    client_mode: bool | None = None
    #: ignored, kept from hivemind 1.1: nothing outlives the process
    daemon: bool = True
    #: seconds that `shutdown` may take
    shutdown_timeout: float = 5.0

    def __post_init__(self) -> None:
        check_count("target_group_size", self.target_group_size, least=2, optional=True)
        check_count("min_group_size", self.min_group_size, least=2)
        check_bits(self.initial_group_bits)
        for name in ("min_matchmaking_time", "request_timeout", "declare_state_period", "shutdown_timeout"):
            check_seconds(name, getattr(self, name))
        for name in ("allreduce_timeout", "next_chunk_timeout", "sender_timeout", "reducer_timeout", "step_timeout"):
            check_seconds(name, getattr(self, name), optional=True)
        if self.request_timeout >= self.min_matchmaking_time:
            raise ConfigError("request_timeout", self.request_timeout, "seconds < min_matchmaking_time")
        if self.target_group_size is not None and self.target_group_size < self.min_group_size:
            raise ConfigError("target_group_size", self.target_group_size, f">= min_group_size {self.min_group_size}")
        check_count("part_size_bytes", self.part_size_bytes)
        check_count("min_vector_size", self.min_vector_size, least=0)
        check_count("max_state_bytes", self.max_state_bytes, optional=True)
        for name in ("averaging_alpha", "bandwidth"):
            check_share(name, getattr(self, name))
        if self.client_mode and self.auxiliary:
            raise ConfigError("auxiliary", True, "False in client mode: nobody could reach a peer that only reduces")
        if self.client_mode and self.allow_state_sharing:
            raise ConfigError("allow_state_sharing", True, "False in client mode: nobody could reach it")
        if self.reducer_timeout is not None and self.reducer_timeout <= (self.sender_timeout or 0.0):
            raise ConfigError("reducer_timeout", self.reducer_timeout, "seconds > sender_timeout")


class AveragerKeywords(TypedDict, total=False):
    """The options of `AveragerOptions` as keywords, for signatures."""

    target_group_size: int | None
    min_group_size: int
    initial_group_bits: str
    min_matchmaking_time: float
    request_timeout: float
    averaging_alpha: float
    part_size_bytes: int
    allreduce_timeout: float | None
    next_chunk_timeout: float | None
    sender_timeout: float | None
    reducer_timeout: float | None
    step_timeout: float | None
    compression: CompressionBase
    state_compression: CompressionBase
    tensor_infos: tuple[CompressionInfo, ...] | None
    bandwidth: float | None
    min_vector_size: int
    auxiliary: bool
    allow_state_sharing: bool | None
    declare_state_period: float
    max_state_bytes: int | None
    client_mode: bool | None
    daemon: bool
    shutdown_timeout: float


@dataclass(frozen=True)
class Timeouts:
    """The waits of one round in seconds; all finite."""

    sender: float
    reducer: float
    allreduce: float

    @classmethod
    def of_round(cls, options: AveragerOptions, *, group_size: int, total_bytes: int) -> Timeouts:
        """The waits of a round of ``group_size`` peers over ``total_bytes`` of tensors.

        A sender's link is shared by the streams to all reducers, hence the default's term by member.
        """
        sender = options.sender_timeout or options.next_chunk_timeout or 15.0 + max(0, group_size - 1)
        reducer = options.reducer_timeout or 2 * sender
        return cls(sender, max(reducer, math.nextafter(sender, math.inf)), allreduce_seconds(options, total_bytes))


def allreduce_seconds(options: AveragerOptions, total_bytes: int) -> float:
    """Seconds for the exchange of one round."""
    return options.allreduce_timeout or 60.0 + 2 * total_bytes / 1e6


def step_seconds(options: AveragerOptions, total_bytes: int) -> float:
    """Seconds for a step that is called without a timeout."""
    return options.step_timeout or 300.0 + allreduce_seconds(options, total_bytes)


def check_share(name: str, value: float | None) -> None:
    """
    :raises ConfigError: unless ``value`` is a finite number >= 0, or None
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 <= value < math.inf):
        raise ConfigError(name, value, "a finite number >= 0")
