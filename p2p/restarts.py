"""When a daemon that has died is started again, and when no more. Pure: no clock, no loop."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["Restarts"]


@dataclass
class Restarts:
    """Counts the deaths of one daemon. The pauses double with each death within the window; after ``most`` of them it
    is given up.

    :param first_pause: seconds before the first restart
    :param longest_pause: seconds that no pause exceeds
    :param most: restarts within the window
    :param window: seconds after which a death no longer counts
    """

    first_pause: float = 0.1
    longest_pause: float = 30.0
    most: int = 10
    window: float = 600.0
    _deaths: deque[float] = field(default_factory=deque, init=False)

    def died(self, now: float) -> float | None:
        """Note a death.

        :param now: seconds of a clock that never goes back
        :returns: seconds to wait before the restart; None: no more of them
        """
        self._deaths.append(now)
        while self._deaths[0] <= now - self.window:
            self._deaths.popleft()
        count = len(self._deaths)
        if count > self.most:
            return None
        # the exponent is bounded by `most`, which may be large
        return min(self.longest_pause, self.first_pause * 2.0 ** min(count - 1, 64))

    @property
    def recent(self) -> int:
        """Deaths that count."""
        return len(self._deaths)
