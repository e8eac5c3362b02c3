"""One key that is looked for: what has been found so far, and who waits for it."""

from __future__ import annotations

import asyncio

from hivemind.clock import DHTExpiration
from hivemind.dht.messages import FoundValue
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.errors import RuntimeClosedError
from hivemind.timed_storage import ValueWithExpiration

__all__ = ["KeySearch"]


class KeySearch:
    """What has been found under one key so far, and who waits for it.

    :param sufficient: the search ends when a value is found that expires at this time or later
    :param any_will_do: that is any live value
    """

    def __init__(self, key: DHTID, sufficient: DHTExpiration, *, any_will_do: bool) -> None:
        self.key = key
        self.sufficient = sufficient
        self.any_will_do = any_will_do
        self.found: FoundValue | None = None
        #: the expiration of what each node has; -inf for nothing
        self.expiration_at: dict[DHTID, DHTExpiration] = {}
        self.finished = False
        self._waiters: list[tuple[DHTExpiration, asyncio.Future[FoundValue | None]]] = []

    def add(self, found: FoundValue | None) -> None:
        """Note a value: dictionaries are merged, of others the one that expires last counts."""
        if found is None:
            return
        value = found.value
        if isinstance(value, DictionaryDHTValue):
            known = self.found.value if self.found is not None else None
            if known is value:
                return
            merged = DictionaryDHTValue()
            if isinstance(known, DictionaryDHTValue):
                merged = known
            elif known is not None and self.found is not None and self.found.expiration_time >= found.expiration_time:
                return
            merged.merge(value)
            found = ValueWithExpiration(merged, merged.latest_expiration_time)
        elif self.found is not None and found.expiration_time <= self.found.expiration_time:
            return
        self.found = found
        for sufficient, waiter in self._waiters:
            if found.expiration_time >= sufficient and not waiter.done():
                waiter.set_result(found)

    @property
    def is_sufficient(self) -> bool:
        """Whether what was found satisfies the search itself."""
        return self.found is not None and self.found.expiration_time >= self.sufficient

    def wait(self, sufficient: DHTExpiration) -> asyncio.Future[FoundValue | None]:
        """A future of the first value that expires at ``sufficient`` or later, or else of the best at the end."""
        waiter: asyncio.Future[FoundValue | None] = asyncio.get_running_loop().create_future()
        if self.finished or (self.found is not None and self.found.expiration_time >= sufficient):
            waiter.set_result(self.found)
        else:
            self._waiters.append((sufficient, waiter))
        return waiter

    def finish(self, error: BaseException | None = None) -> None:
        """The search is over; with ``error`` if it broke."""
        self.finished = True
        for _, waiter in self._waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(self.found)
            else:
                stopped = isinstance(error, asyncio.CancelledError)
                waiter.set_exception(RuntimeClosedError("the DHT node was shut down") if stopped else error)
        self._waiters.clear()
