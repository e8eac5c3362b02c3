"""How fast the nodes of a swarm die, as one node notices it; and so, how long a node may be silent before it is
doubted. Pure."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Mortality"]

#: Seconds after which what was noticed counts for half.
_HALF_LIFE: Final = 300.0
#: Seconds of life that are taken for granted, so that one death alone does not look like many.
_GRANTED: Final = 120.0
#: The share of the known nodes that may be dead unnoticed.
_UNNOTICED: Final = 0.15


class Mortality:
    """Counts deaths, and the seconds that nodes were seen to live: their quotient is the rate at which they die."""

    def __init__(self) -> None:
        self._deaths = 0.0
        self._lived = 0.0
        self._counted_at = 0.0

    def note(self, silent: float, now: float, *, died: bool) -> None:
        """A node was heard of again after ``silent`` seconds, or it has died meanwhile.

        :param now: by a clock that never goes back
        """
        fading = math.exp2((self._counted_at - now) / _HALF_LIFE) if self._deaths or self._lived else 0.0
        self._counted_at = now
        self._deaths = self._deaths * fading + died
        # of one that has died it is not known when: half of that time, on average
        self._lived = self._lived * fading + (silent / 2 if died else silent)

    def rate(self, now: float) -> float:
        """Deaths of one node in a second."""
        fading = math.exp2((self._counted_at - now) / _HALF_LIFE)
        return self._deaths * fading / (self._lived * fading + _GRANTED)

    def patience(self, now: float) -> float:
        """If each node is asked after so many seconds of silence, few enough are dead unnoticed; infinite where nobody
        dies."""
        rate = self.rate(now)
        # of nodes that were silent for between 0 and t seconds, rate * t / 2 are dead
        return 2 * _UNNOTICED / rate if rate > 0 else math.inf
