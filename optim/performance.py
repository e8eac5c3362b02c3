"""How fast is this peer: a moving average of work per second that leaves out pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hivemind.clock import monotonic
from hivemind.config import check_fraction
from hivemind.errors import ConfigError

__all__ = ["PerformanceEMA"]


class PerformanceEMA:
    """Exponential moving average of samples per second, over the time that is spent on samples.

    The average is one of seconds per sample, corrected for its start at zero (as Adam does with its moments), so
    that the first measurement counts fully. Not thread-safe.

    :param alpha: weight of the newest measurement, 0 to 1
    :param eps: samples per second before the first measurement
    """

    def __init__(self, alpha: float = 0.1, eps: float = 1e-20, *, clock: Callable[[], float] = monotonic) -> None:
        check_fraction("alpha", alpha)
        if alpha == 0:
            raise ConfigError("alpha", alpha, "more than 0: it is the weight of the newest measurement")
        self.alpha = alpha
        self.eps = eps
        #: the average now; ``eps`` before the first measurement
        self.samples_per_second = eps
        self._clock = clock
        self._seconds_per_sample = 0.0
        self._updates = 0
        self._since = clock()
        self._paused = False

    def update(self, task_size: float, interval: float | None = None) -> float:
        """Record that ``task_size`` samples are done.

        :param interval: seconds it took; None: since the last update, reset or pause
        :returns: the new average
        """
        if self._paused:
            return self.samples_per_second
        now = self._clock()
        if interval is None:
            interval = max(0.0, now - self._since)
        self._since = now
        if task_size <= 0:
            return self.samples_per_second
        # clocks may stand still between two updates: no peer is faster than a sample per nanosecond
        seconds = max(interval / task_size, 1e-9)
        self._updates += 1
        self._seconds_per_sample = self.alpha * seconds + (1 - self.alpha) * self._seconds_per_sample
        share = 1 - (1 - self.alpha) ** self._updates
        self.samples_per_second = 1 / max(self._seconds_per_sample / share, 1e-9)
        return self.samples_per_second

    def reset_timer(self) -> None:
        """Do not count the time up to now."""
        self._since = self._clock()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time within, nor updates made within."""
        was, self._paused = self._paused, True
        before = self._clock()
        try:
            yield
        finally:
            self._paused = was
            self._since += max(0.0, self._clock() - before)
