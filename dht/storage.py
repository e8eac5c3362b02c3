"""What one node keeps for the swarm: records that expire, plain or dictionaries (hivemind 1.1 wire format, 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import msgpack

from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.records import MAX_ENTRIES, MAX_RECORD_BYTES, BinaryDHTValue, Subkey, check_subkey
from hivemind.dht.routing import DHTID
from hivemind.errors import SerializationError
from hivemind.serializer import MSGPackSerializer
from hivemind.timed_storage import TimedStorage

__all__ = ["BinaryDHTValue", "DHTLocalStorage", "DictionaryDHTValue", "StoredValue"]

#: Bytes that one node keeps for others before it lets go of what expires soonest.
MAX_STORAGE_BYTES: Final = 512 * 1024 * 1024
#: What an entry costs beside its subkey and value, on the wire and in the bookkeeping, headers included.
_ENTRY_BYTES: Final = 24
_RECORD_BYTES: Final = 200


@MSGPackSerializer.ext_serializable(0x50)
class DictionaryDHTValue(TimedStorage[Subkey, BinaryDHTValue]):
    """A record of several entries, each with its own expiration; those that expire soonest go when it grows too large.

    :param maxsize: most entries; None: no bound but `MAX_ENTRIES`, and `MAX_RECORD_BYTES` of all together
    """

    def __init__(self, maxsize: int | None = None) -> None:
        super().__init__(maxsize)
        #: the latest expiration of all entries so far: that of the whole record
        self.latest_expiration_time: DHTExpiration = float("-inf")
        #: bytes of all entries, as in `packb` or a little more
        self.nbytes = 0
        # as it was packed last, if nothing has changed since: a record is read more often than written
        self._packed: bytes | None = None

    def packb(self) -> bytes:
        """The payload of ext 0x50: ``[maxsize, latest expiration, [[subkey, value, expiration], ...]]``."""
        live = self.items()
        if self._packed is None:
            entries = [[subkey, value, expiration] for subkey, (value, expiration) in live]
            self._packed = MSGPackSerializer.dumps([self.maxsize, self.latest_expiration_time, entries])
        return self._packed

    @classmethod
    def unpackb(cls, raw: bytes) -> DictionaryDHTValue:
        """The dictionary that ``raw`` holds, expired entries included.

        :raises SerializationError: if it is none, or has more than `MAX_ENTRIES`
        """
        if len(raw) > MAX_ENTRIES:  # an entry has more than one byte
            _check_count(raw)
        match MSGPackSerializer.loads(raw):
            case [int() | float() as maxsize, float() as latest, list() as entries] if maxsize >= 0:
                pass
            case _:
                raise SerializationError("a dictionary is [maxsize, expiration, [[subkey, value, expiration], ...]]")
        dictionary = cls()
        with dictionary.freeze():
            for entry in entries:
                match entry:
                    case [subkey, bytes() as value, float() as expiration] if not math.isnan(expiration):
                        check_subkey(subkey)
                        dictionary.store(subkey, value, expiration)
                    case _:
                        raise SerializationError("an entry of a dictionary is [subkey, bytes, expiration]")
        dictionary.maxsize = maxsize if maxsize == float("inf") else int(maxsize)
        if not entries:
            dictionary.latest_expiration_time = latest
        return dictionary

    def merge(self, other: DictionaryDHTValue) -> None:
        """Take each live entry of ``other`` that is newer than ours."""
        for subkey, (value, expiration) in other.items():
            self.store(subkey, value, expiration)

    def _put(self, key: Subkey, value: BinaryDHTValue, expiration_time: DHTExpiration) -> None:
        present = self.data.get(key)
        if present is not None:
            self.nbytes -= _entry_bytes(key, present.value)
        self._packed = None
        super()._put(key, value, expiration_time)
        self.nbytes += _entry_bytes(key, value)
        self.latest_expiration_time = max(self.latest_expiration_time, expiration_time)

    def _remove(self, key: Subkey) -> None:
        self.nbytes -= _entry_bytes(key, self.data[key].value)
        self._packed = None
        super()._remove(key)

    def clear(self) -> None:
        super().clear()
        self.nbytes = 0
        self._packed = None

    def _overfull(self) -> bool:
        return super()._overfull() or self.nbytes > MAX_RECORD_BYTES or len(self.data) > MAX_ENTRIES


def _check_count(raw: bytes) -> None:
    """Look at the headers only: to unpack all entries of a huge dictionary takes a second.

    :raises SerializationError: if there are too many entries
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(raw))
    unpacker.feed(raw)
    try:
        unpacker.read_array_header()
        unpacker.skip()
        unpacker.skip()
        count = unpacker.read_array_header()
    except (msgpack.UnpackException, ValueError) as error:
        raise SerializationError(f"{len(raw)} bytes are no dictionary: {error}") from error
    if count > MAX_ENTRIES:
        raise SerializationError(f"a dictionary of {count} entries, at most {MAX_ENTRIES} are allowed")


def _entry_bytes(subkey: Any, value: bytes) -> int:
    if type(subkey) is bytes:
        size = len(subkey)
    elif type(subkey) is str:
        size = len(subkey.encode())
    else:
        size = len(MSGPackSerializer.dumps(subkey))
    return size + len(value) + _ENTRY_BYTES


StoredValue = BinaryDHTValue | DictionaryDHTValue


class DHTLocalStorage(TimedStorage[DHTID, StoredValue]):
    """The records that this node keeps.

    :param maxsize: most keys; None: no bound
    :param max_bytes: bytes of all records, bookkeeping included; beyond it those that expire soonest go
    """

    def __init__(self, maxsize: int | None = None, max_bytes: int = MAX_STORAGE_BYTES) -> None:
        super().__init__(maxsize)
        self.max_bytes = max_bytes
        #: bytes of all records, bookkeeping included
        self.nbytes = 0
        # what each key counts for in nbytes: a dictionary shrinks unseen when its entries expire
        self._counted: dict[DHTID, int] = {}
        self._listeners: dict[DHTID, list[Callable[[], None]]] = {}

    def listen(self, key: DHTID, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` whenever something is stored under ``key``, until what is returned is called."""
        self._listeners.setdefault(key, []).append(listener)

        def unlisten() -> None:
            listeners = self._listeners.get(key, [])
            if listener in listeners:
                listeners.remove(listener)
            if not listeners:
                self._listeners.pop(key, None)

        return unlisten

    def store(  # type: ignore[override]
        self, key: DHTID, value: BinaryDHTValue, expiration_time: DHTExpiration, subkey: Subkey | None = None
    ) -> bool:
        """Keep a plain value, or with ``subkey`` one entry of a dictionary.

        :returns: whether it was accepted: it has not expired and expires strictly later than what is there
        """
        if subkey is not None:
            return self.store_subkey(key, subkey, value, expiration_time)
        return super().store(key, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: Subkey, value: BinaryDHTValue, expiration_time: DHTExpiration) -> bool:
        """Keep one entry of a dictionary. A plain value under ``key`` gives way if it expires sooner.

        :returns: whether it was accepted
        """
        # written so that NaN is refused
        if not expiration_time >= get_dht_time():
            return False
        present = self.get(key)
        if present is not None and isinstance(present.value, DictionaryDHTValue):
            dictionary = present.value
            accepted = dictionary.store(subkey, value, expiration_time)
            if dictionary.latest_expiration_time != present.expiration_time:
                self._put(key, dictionary, dictionary.latest_expiration_time)
            self._count(key, dictionary)
        elif present is None or expiration_time > present.expiration_time:
            dictionary = DictionaryDHTValue()
            accepted = dictionary.store(subkey, value, expiration_time)
            self._put(key, dictionary, expiration_time)
        else:
            return False
        self._evict()
        return accepted and key in self.data

    def store_dictionary(self, key: DHTID, entries: DictionaryDHTValue) -> bool:
        """Keep each entry by its own expiration.

        :returns: whether all live entries were accepted
        """
        accepted = [
            self.store_subkey(key, subkey, value, expiration) for subkey, (value, expiration) in entries.items()
        ]
        return all(accepted)

    def clear(self) -> None:
        super().clear()
        self._counted.clear()
        self.nbytes = 0

    def _put(self, key: DHTID, value: StoredValue, expiration_time: DHTExpiration) -> None:
        super()._put(key, value, expiration_time)
        self._count(key, value)

    def _remove(self, key: DHTID) -> None:
        super()._remove(key)
        self.nbytes -= self._counted.pop(key)

    def _count(self, key: DHTID, value: StoredValue) -> None:
        """Keep ``nbytes`` true after each store, and tell who listens."""
        size = _RECORD_BYTES + (value.nbytes if isinstance(value, DictionaryDHTValue) else len(value))
        self.nbytes += size - self._counted.get(key, 0)
        self._counted[key] = size
        for listener in tuple(self._listeners.get(key, ())):
            listener()

    def _overfull(self) -> bool:
        return super()._overfull() or self.nbytes > self.max_bytes
