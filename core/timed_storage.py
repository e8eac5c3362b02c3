"""Values that live until a point in time; the newest wins."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.errors import ConfigError

__all__ = ["TimedStorage", "ValueWithExpiration"]

Key = TypeVar("Key")
Value = TypeVar("Value")


class ValueWithExpiration(NamedTuple, Generic[Value]):
    """A value and the DHT time (seconds since the Unix epoch) up to which it holds. Equal to a tuple of the two."""

    value: Value
    expiration_time: DHTExpiration


class _Entry(NamedTuple, Generic[Key]):
    """What the heap holds. It may be stale: it counts only while the key still has that expiration."""

    expiration_time: DHTExpiration
    order: int
    key: Key


class TimedStorage(Generic[Key, Value]):
    """A dictionary whose entries expire. A store is accepted only if it expires strictly later than what is there.

    :param maxsize: most entries; beyond it those that expire soonest go. None: no bound

    Not thread-safe.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, maxsize: int | None = None) -> None:
        if maxsize is not None and (isinstance(maxsize, bool) or not isinstance(maxsize, int) or maxsize < 0):
            raise ConfigError("maxsize", maxsize, "an integer >= 0, or None")
        self.maxsize: float = float("inf") if maxsize is None else maxsize
        self.data: dict[Key, ValueWithExpiration[Value]] = {}
        self._heap: list[_Entry[Key]] = []
        self._order = 0
        self._frozen = False

    def store(self, key: Key, value: Value, expiration_time: DHTExpiration) -> bool:
        """Keep ``value`` until ``expiration_time``.

        :returns: False if it has expired, is not newer than what is there, or is the first to go from a full storage
        """
        # written so that NaN is refused
        if not expiration_time >= get_dht_time() and not self._frozen:
            return False
        present = self.data.get(key)
        if present is not None and not expiration_time > present.expiration_time:
            return False
        self._put(key, value, expiration_time)
        self._evict()
        return key in self.data

    def get(self, key: Key) -> ValueWithExpiration[Value] | None:
        """The live value of ``key``, or None."""
        found = self.data.get(key)
        if found is None or self._frozen or found.expiration_time >= get_dht_time():
            return found
        self.remove_outdated()
        return None

    def items(self) -> Iterator[tuple[Key, ValueWithExpiration[Value]]]:
        """Live keys and values; a snapshot, so that entries may come and go meanwhile."""
        self.remove_outdated()
        return iter(list(self.data.items()))

    def top(self) -> tuple[Key, ValueWithExpiration[Value]] | None:
        """The live entry that expires soonest, or None if there is none."""
        self.remove_outdated()
        self._drop_stale()
        if not self._heap:
            return None
        key = self._heap[0].key
        return key, self.data[key]

    def clear(self) -> None:
        """Remove all."""
        self.data.clear()
        self._heap.clear()

    def remove_outdated(self) -> None:
        """Let go of what has expired; nothing while frozen."""
        if not self._frozen:
            self._evict()

    @contextmanager
    def freeze(self) -> Iterator[TimedStorage[Key, Value]]:
        """Inside, nothing expires and nothing is evicted, and also what has expired is seen."""
        previous, self._frozen = self._frozen, True
        try:
            yield self
        finally:
            self._frozen = previous

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None  # type: ignore[arg-type]

    def __len__(self) -> int:
        self.remove_outdated()
        return len(self.data)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __delitem__(self, key: Key) -> None:
        self._remove(key)

    def __iter__(self) -> Iterator[Key]:
        return (key for key, _ in self.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.data!r})"

    def _put(self, key: Key, value: Value, expiration_time: DHTExpiration) -> None:
        self.data[key] = ValueWithExpiration(value, expiration_time)
        self._order += 1
        heapq.heappush(self._heap, _Entry(expiration_time, self._order, key))
        # keys that are refreshed often leave stale entries behind: rebuild before they outnumber the live ones
        if len(self._heap) > 2 * len(self.data) + 64:
            self._heap = [_Entry(found.expiration_time, n, key) for n, (key, found) in enumerate(self.data.items())]
            self._order = len(self._heap)
            heapq.heapify(self._heap)

    def _remove(self, key: Key) -> None:
        del self.data[key]

    def _drop_stale(self) -> None:
        while self._heap:
            present = self.data.get(self._heap[0].key)
            if present is not None and present.expiration_time == self._heap[0].expiration_time:
                return
            heapq.heappop(self._heap)

    def _overfull(self) -> bool:
        return len(self.data) > self.maxsize

    def _evict(self) -> None:
        """Let go of what has expired, and of the soonest to expire while there is too much."""
        now = get_dht_time()
        while True:
            self._drop_stale()
            if not self._heap or self._frozen:
                return
            if self._heap[0].expiration_time >= now and not self._overfull():
                return
            self._remove(heapq.heappop(self._heap).key)
