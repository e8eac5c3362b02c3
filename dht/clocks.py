"""Whether this machine's clock agrees with those of other peers: records expire by them."""

from __future__ import annotations

import math
import statistics
from typing import Final

from hivemind.clock import MAX_DHT_TIME_DISCREPANCY_SECONDS, get_dht_time
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.timed_storage import TimedStorage

__all__ = ["Clocks"]

logger = get_logger(__name__)

#: Peers whose clocks are remembered, for how many seconds, and how many of them it takes to judge.
_MOST: Final = 64
_SECONDS: Final = 900.0
_LEAST: Final = 3
#: Seconds between two warnings.
_WARNING_PERIOD: Final = 600.0


class Clocks:
    """What was seen of others' clocks. Owned by the network thread."""

    def __init__(self) -> None:
        self._offsets: TimedStorage[PeerID, float] = TimedStorage(_MOST)
        self._silent_until = -math.inf

    @property
    def offset(self) -> float | None:
        """Seconds by which the clocks of others are ahead of this one, at the median; None while too few are known.
        Some wrong clocks and some liars among many peers do not change it much."""
        offsets = [offset for _, (offset, _) in self._offsets.items()]
        return statistics.median(offsets) if len(offsets) >= _LEAST else None

    def note(self, peer: PeerID, offset: float) -> None:
        """A peer's clock is ahead by ``offset`` seconds; warns where that makes this one wrong."""
        now = get_dht_time()
        if not math.isfinite(offset):
            return
        if peer in self._offsets:
            del self._offsets[peer]
        self._offsets.store(peer, offset, now + _SECONDS)
        median = self.offset
        if median is None or abs(median) <= MAX_DHT_TIME_DISCREPANCY_SECONDS or now < self._silent_until:
            return
        self._silent_until = now + _WARNING_PERIOD
        logger.warning(
            "the clock of this machine is %s by %.1f s, by those of %d peers: what it stores expires %s, and peers that"
            " check it refuse it; synchronise it (NTP)",
            "slow" if median > 0 else "fast",
            abs(median),
            len(self._offsets),
            "too soon" if median > 0 else "too late",
        )
