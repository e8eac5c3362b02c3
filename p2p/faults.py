"""Faults of the in-memory network, as plain values: what holds between two peers at a time. No clock, no loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hivemind.errors import ConfigError
from hivemind.identity import PeerID

__all__ = ["CLEAR", "Conditions", "Fault", "combine"]

INFINITE = float("inf")


@dataclass(frozen=True)
class Conditions:
    """What a message meets on its way from one peer to another.

    :param cut: nothing arrives before the fault is healed
    :param delay: seconds from sending to arrival
    :param jitter: up to so many seconds more, drawn for each message; messages of one stream keep their order
    :param loss: probability with which a message is lost and its connection breaks
    :param rate: bytes per second
    """

    cut: bool = False
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: float = INFINITE

    def __post_init__(self) -> None:
        if not self.delay >= 0 or not self.jitter >= 0:
            raise ConfigError("delay", (self.delay, self.jitter), "seconds >= 0")
        if not 0 <= self.loss <= 1:
            raise ConfigError("drop", self.loss, "a probability from 0 to 1")
        if not self.rate > 0:
            raise ConfigError("bandwidth", self.rate, "bytes per second > 0")


CLEAR = Conditions()


class Fault:
    """A fault in force; `heal` or the end of a ``with`` block ends it.

    :param applies: whether it bears on a message from the first peer to the second; None: it bears on all
    """

    def __init__(self, what: str, conditions: Conditions, applies: Callable[[PeerID, PeerID], bool] | None) -> None:
        self.what = what
        self.conditions = conditions
        self.applies = applies
        #: set by the network: forgets this fault
        self.on_heal: Callable[[Fault], None] | None = None

    def bears_on(self, source: PeerID, target: PeerID) -> bool:
        """Whether a message from ``source`` to ``target`` meets it."""
        return self.applies is None or self.applies(source, target)

    def heal(self) -> None:
        """End the fault. Idempotent."""
        on_heal, self.on_heal = self.on_heal, None
        if on_heal is not None:
            on_heal(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()

    def __repr__(self) -> str:
        return f"<Fault {self.what}>"


def combine(conditions: Iterable[Conditions]) -> Conditions:
    """Several conditions as one: delays add up, the narrowest rate counts, losses are independent."""
    bearing = list(conditions)
    if len(bearing) < 2:
        return bearing[0] if bearing else CLEAR
    passing = 1.0
    for each in bearing:
        passing *= 1.0 - each.loss
    return Conditions(
        cut=any(each.cut for each in bearing),
        delay=sum(each.delay for each in bearing),
        jitter=sum(each.jitter for each in bearing),
        loss=1.0 - passing,
        rate=min(each.rate for each in bearing),
    )
