"""Time: the network's clock, deadlines, and the one place where a simulation replaces both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hivemind.errors import ConfigError, DeadlineExceeded

__all__ = [
    "MAX_DHT_TIME_DISCREPANCY_SECONDS",
    "DHTExpiration",
    "Deadline",
    "get_dht_time",
    "monotonic",
    "simulated_time",
]

#: A point in the network's time: seconds since the Unix epoch.
DHTExpiration = float

#: Peers whose clocks differ by more than this many seconds refuse to meet.
MAX_DHT_TIME_DISCREPANCY_SECONDS = 3.0


@dataclass(frozen=True)
class _Source:
    wall: Callable[[], float]
    monotonic: Callable[[], float]


_REAL = _Source(time.time, time.monotonic)
#: Replaced only by `simulated_time`, for a whole process.
_source = _REAL


def get_dht_time() -> DHTExpiration:
    """The network's time in seconds since the Unix epoch; peers are expected to be within 3 s of each other."""
    return _source.wall()


def monotonic() -> float:
    """Seconds on a clock that never goes back, for measuring waits."""
    return _source.monotonic()


@contextmanager
def simulated_time(now: Callable[[], float], *, epoch: float = 1_700_000_000.0) -> Iterator[None]:
    """Run the process on simulated time: ``now`` (seconds since the start) replaces both clocks.

    For tests on a virtual-clock event loop. Not thread-safe: enter it before anything else is started.
    """
    global _source
    previous, _source = _source, _Source(lambda: epoch + now(), now)
    try:
        yield
    finally:
        _source = previous


@dataclass(frozen=True)
class Deadline:
    """A point in time up to which one may wait. Deadlines, not timeouts, are passed down: they do not add up.

    :param at: the point on `monotonic`; ``inf`` = wait for ever
    """

    at: float

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """``seconds`` from now; None is never.

        :raises ConfigError: if ``seconds`` is negative or not a number
        """
        if seconds is None:
            return cls.never()
        if not seconds >= 0:
            raise ConfigError("timeout", seconds, "seconds >= 0, or None")
        return cls(monotonic() + seconds)

    @classmethod
    def never(cls) -> Deadline:
        """A deadline that does not come."""
        return cls(float("inf"))

    @classmethod
    def at_dht_time(cls, when: DHTExpiration) -> Deadline:
        """The deadline that stands at ``when`` on the network's clock."""
        return cls(monotonic() + when - get_dht_time())

    @property
    def expired(self) -> bool:
        """Whether it has passed."""
        return monotonic() >= self.at

    def remaining(self) -> float:
        """Seconds left, never negative; ``inf`` if it does not come."""
        return max(0.0, self.at - monotonic())

    def timeout(self) -> float | None:
        """`remaining` in the form that asyncio and sockets take: None is for ever."""
        return None if self.at == float("inf") else self.remaining()

    def earlier(self, other: Deadline) -> Deadline:
        """The earlier of the two."""
        return self if self.at <= other.at else other

    def check(self, what: str) -> None:
        """
        :raises DeadlineExceeded: if it has passed; the text names ``what`` was waited for
        """
        if self.expired:
            raise DeadlineExceeded(f"{what}: the deadline has passed")
