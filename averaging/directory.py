"""Who is alive under a prefix: declarations in the DHT that peers renew while they live (hivemind 1.1 wire format).

Key ``{prefix}.all_averagers``, subkey = binary peer id, value = priority as a donor of state (a number; the highest is
asked first), or nil from a peer that does not share its state, or has left.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from hivemind.aio import with_deadline
from hivemind.averaging.changes import Changes
from hivemind.averaging.group_key import DHTStore, peers_by_expiration
from hivemind.clock import Deadline, DHTExpiration, get_dht_time
from hivemind.errors import HivemindError
from hivemind.identity import PeerID
from hivemind.log import get_logger

__all__ = ["Directory", "Roll"]

logger = get_logger(__name__)

#: Seconds for one store.
_STORE_SECONDS = 10.0


@dataclass(frozen=True)
class Roll:
    """What the DHT says of the others.

    :param priorities: of those that share their state
    :param expirations: of their declarations
    :param silent: expirations of the declarations of those that do not, or have left
    """

    priorities: dict[PeerID, float]
    expirations: dict[PeerID, DHTExpiration]
    silent: dict[PeerID, DHTExpiration]


class Directory:
    """Declares this peer, and reads who else is there. Owned by the network loop.

    :param period: seconds for which a declaration holds; it is renewed after two thirds of that
    :param priority: gives this peer's priority now; None = it does not share its state
    """

    def __init__(
        self, dht: DHTStore, prefix: str, own: PeerID, *, period: float, priority: Callable[[], float | None]
    ) -> None:
        self._dht = dht
        self._own = own
        self._period = period
        self._priority = priority
        self._last: DHTExpiration = 0.0
        self._declared = asyncio.Event()
        self.key = f"{prefix}.all_averagers"
        #: notify it when the priority has changed
        self.changes = Changes()

    async def fetch(self) -> Roll:
        """Ask the DHT.

        :raises HivemindError: if it cannot be asked
        """
        roll = Roll({}, {}, {})
        now = get_dht_time()
        record = await self._dht.get(self.key, latest=True)
        for peer, (value, expiration) in peers_by_expiration(record, self._own).items():
            if expiration < now:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if is_number:
                roll.priorities[peer] = float(value)  # type: ignore[arg-type]
                roll.expirations[peer] = expiration
            elif value is None:
                roll.silent[peer] = expiration
        return roll

    async def keep_declaring(self) -> None:
        """Renew the declaration for ever, and at once when the priority changes. A peer that has never shared its
        state stays unlisted."""
        listed = False
        while True:
            value = self._priority()
            if value is not None or listed:
                listed = True
                await self._store(value, get_dht_time() + self._period)
                self._declared.set()
            if self._priority() == value:
                await self.changes.wait(self._period * 2 / 3)

    async def wait_declared(self, seconds: float) -> None:
        """Return when `keep_declaring` has declared this peer for the first time, or after ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._declared.wait()
        except TimeoutError:
            logger.debug("the first declaration under %s takes over %s s", self.key, seconds)

    async def say_goodbye(self) -> None:
        """Say that this peer leaves, so that nobody waits for it."""
        await self._store(None, get_dht_time() + self._period)

    async def _store(self, value: float | None, expiration: DHTExpiration) -> None:
        # the DHT takes only expirations later than the one before
        self._last = max(expiration, math.nextafter(self._last, math.inf))
        stored = self._dht.store(self.key, value, self._last, subkey=self._own.to_bytes())
        try:
            await with_deadline(stored, Deadline.after(_STORE_SECONDS), "declaring in the DHT")
        except HivemindError as error:
            logger.debug("declaring under %s: %s", self.key, error)
