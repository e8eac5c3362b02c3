"""The messages of the DHT, built and parsed. What comes from a peer is checked here, before anything else sees it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.records import (
    IS_DICTIONARY,
    IS_REGULAR_VALUE,
    MAX_BATCH_BYTES,
    MAX_ENTRIES,
    MAX_NEIGHBORS,
    MAX_RECORD_BYTES,
    MAX_RECORDS_PER_STORE,
    Subkey,
    pack_subkey,
    unpack_subkey,
)
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue, StoredValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.errors import ConfigError, ProtocolViolation, SerializationError
from hivemind.identity import PeerID
from hivemind.log import RateLimit, get_logger
from hivemind.proto import dht_pb2
from hivemind.runtime import in_pool
from hivemind.serializer import MSGPackSerializer
from hivemind.timed_storage import ValueWithExpiration

__all__ = [
    "FoundValue",
    "IncomingRecord",
    "Seen",
    "drop_invalid",
    "parse_found",
    "parse_id",
    "parse_neighbors",
    "parse_record",
    "parse_records",
    "store_requests",
]

logger = get_logger(__name__)

#: A value as it is stored and the expiration of the whole record.
FoundValue = ValueWithExpiration[Any]

#: From so many records on they are checked in the pool: a signature takes some 50 us.
_CHECK_IN_POOL = 16
#: From so many bytes on dictionaries are unpacked in the pool.
_PARSE_IN_POOL = 64 * 1024
_validator_faults = RateLimit()


# the same few nodes are named again and again
@lru_cache(maxsize=8192)
def parse_id(raw: bytes) -> DHTID:
    """
    :raises ProtocolViolation: if it has more than 160 bits
    """
    if len(raw) > 20:
        raise ProtocolViolation(f"an id of {len(raw)} bytes, at most 20 are allowed")
    return DHTID.from_bytes(raw)


_parse_peer = lru_cache(maxsize=8192)(PeerID)


@dataclass(slots=True)
class IncomingRecord:
    """One record of a store request."""

    key: DHTID
    #: what the validators look at: one for a plain value or an entry, one for each entry of a dictionary; empty if the
    #: record could not be parsed
    checked: list[DHTRecord]
    #: the subkey of an entry; None for a plain value
    subkey: Subkey = None
    #: a dictionary sent as a whole
    dictionary: DictionaryDHTValue | None = None
    valid: list[bool] = field(default_factory=list)

    def store_in(self, place: DHTLocalStorage) -> bool:
        """Keep what is valid.

        :returns: whether all of it was accepted
        """
        if not self.checked:
            return self.dictionary is not None
        if self.dictionary is None:
            record = self.checked[0]
            return self.valid[0] and place.store(self.key, record.value, record.expiration_time, self.subkey)
        for subkey, ok in zip(list(self.dictionary.data), self.valid, strict=True):
            if not ok:
                del self.dictionary[subkey]
        return place.store_dictionary(self.key, self.dictionary) and all(self.valid)


def parse_record(key: DHTID, subkey: bytes, value: bytes, expiration_time: DHTExpiration) -> IncomingRecord:
    """One record of a store request; one that is malformed, too large or expired has nothing to check."""
    unusable = IncomingRecord(key, [])
    if len(value) > MAX_RECORD_BYTES or math.isnan(expiration_time):
        return unusable
    try:
        if subkey == IS_DICTIONARY:
            dictionary = _unpack_dictionary(value)
            dictionary.remove_outdated()
            return IncomingRecord(key, _entries(key, dictionary), dictionary=dictionary)
        name = None if subkey == IS_REGULAR_VALUE else unpack_subkey(subkey)
    except SerializationError:
        return unusable
    return IncomingRecord(key, [DHTRecord(key.to_bytes(), subkey, value, expiration_time)], name)


async def parse_records(request: dht_pb2.StoreRequest) -> list[IncomingRecord]:
    """The records of a store request. Dictionaries that make it more than `MAX_ENTRIES` together have nothing to check.

    :raises ProtocolViolation: if a key is none
    """
    keys = [parse_id(raw_key) for raw_key in request.keys]

    def parse() -> list[IncomingRecord]:
        records = []
        left = MAX_ENTRIES
        for fields in zip(keys, request.subkeys, request.values, request.expiration_time, strict=False):
            record = parse_record(*fields)
            if record.dictionary is not None:
                left -= len(record.checked)
                if left < 0:
                    record = IncomingRecord(record.key, [])
            records.append(record)
        return records

    if IS_DICTIONARY in request.subkeys and request.ByteSize() > _PARSE_IN_POOL:
        return await in_pool(parse)
    return parse()


async def drop_invalid(records: Sequence[IncomingRecord], validator: RecordValidatorBase | None) -> None:
    """Mark in each of ``records`` what the validator accepts."""
    verdicts = iter(await _check([each for record in records for each in record.checked], validator))
    for record in records:
        record.valid = [next(verdicts) for _ in record.checked]


def parse_neighbors(result: dht_pb2.FindResult, excluded: tuple[DHTID, PeerID | None]) -> dict[DHTID, PeerID]:
    """Whom a peer names as nearest; malformed ones and ``excluded`` are left out."""
    raw_ids, raw_peers = result.nearest_node_ids[:MAX_NEIGHBORS], result.nearest_peer_ids[:MAX_NEIGHBORS]
    own_id, own_peer = excluded
    if own_peer is not None and own_peer.to_bytes() in raw_peers:
        both = [each for each in zip(raw_ids, raw_peers, strict=False) if each[1] != own_peer.to_bytes()]
        raw_ids, raw_peers = [raw_id for raw_id, _ in both], [raw_peer for _, raw_peer in both]
    try:
        nearest = dict(zip(map(parse_id, raw_ids), map(_parse_peer, raw_peers), strict=False))
    except (ProtocolViolation, ConfigError):
        nearest = _parse_one_by_one(raw_ids, raw_peers)
    nearest.pop(own_id, None)
    return nearest


def _parse_one_by_one(raw_ids: Iterable[bytes], raw_peers: Iterable[bytes]) -> dict[DHTID, PeerID]:
    nearest: dict[DHTID, PeerID] = {}
    for raw_id, raw_peer in zip(raw_ids, raw_peers, strict=False):
        with suppress(ProtocolViolation, ConfigError):
            nearest[parse_id(raw_id)] = _parse_peer(raw_peer)
    return nearest


#: What was made of the values that the nodes asked so far have: most of them have the same one.
Seen = dict[tuple[DHTID, int, float, bytes], FoundValue | None]


async def parse_found(
    key: DHTID, result: dht_pb2.FindResult, validator: RecordValidatorBase | None, seen: Seen
) -> FoundValue | None:
    """The value that a peer has; None if it has none, or one that is expired, malformed or not acceptable. One bad
    entry spoils a whole dictionary.

    :param seen: of this search; what is in it is not checked again, and the same object is returned
    """
    if result.type == dht_pb2.NOT_FOUND or not result.expiration_time >= get_dht_time():
        return None
    name = (key, result.type, result.expiration_time, result.value)
    if name not in seen:
        seen[name] = await _checked(key, result, validator)
    return seen[name]


async def _checked(key: DHTID, result: dht_pb2.FindResult, validator: RecordValidatorBase | None) -> FoundValue | None:
    value: StoredValue
    if result.type == dht_pb2.FOUND_DICTIONARY:
        try:
            large = len(result.value) > _PARSE_IN_POOL
            value = await in_pool(_unpack_dictionary, result.value) if large else _unpack_dictionary(result.value)
        except SerializationError as error:
            logger.debug("a peer's dictionary: %s", error)
            return None
        value.remove_outdated()
        if not value.data:
            return None
        checked, expiration = _entries(key, value), value.latest_expiration_time
    else:
        value, expiration = result.value, result.expiration_time
        checked = [DHTRecord(key.to_bytes(), IS_REGULAR_VALUE, value, expiration)]
    if not all(await _check(checked, validator)):
        return None
    return ValueWithExpiration(value, expiration)


def _unpack_dictionary(raw: bytes) -> DictionaryDHTValue:
    value = MSGPackSerializer.loads(raw)
    if not isinstance(value, DictionaryDHTValue):
        raise SerializationError(f"expected a dictionary of the DHT, got {type(value).__name__}")
    return value


def _entries(key: DHTID, dictionary: DictionaryDHTValue) -> list[DHTRecord]:
    raw_key = key.to_bytes()
    return [
        DHTRecord(raw_key, pack_subkey(subkey), value, expiration)
        for subkey, (value, expiration) in dictionary.data.items()
    ]


async def _check(records: list[DHTRecord], validator: RecordValidatorBase | None) -> list[bool]:
    if not validator:
        return [True] * len(records)
    if len(records) < _CHECK_IN_POOL:
        return [_accepts(validator, record) for record in records]
    return await in_pool(lambda: [_accepts(validator, record) for record in records])


def _accepts(validator: RecordValidatorBase, record: DHTRecord) -> bool:
    """A validator that raises does not accept; its fault is logged."""
    try:
        return bool(validator.validate(record))
    except Exception:
        if _validator_faults.allow():
            logger.exception("a record validator has raised; the record is refused")
        return False


# -- requests ------------------------------------------------------------------------------------------------------


def store_requests(
    keys: Sequence[DHTID],
    values: Sequence[StoredValue],
    expiration_time: DHTExpiration | Sequence[DHTExpiration],
    subkeys: Sequence[Subkey] | None,
    in_cache: bool | Sequence[bool] | None,
) -> Iterator[dht_pb2.StoreRequest]:
    """The requests that carry these records, each small enough for one unary message.

    :raises ConfigError: if the sequences differ in length
    """
    count = len(keys)
    if len(values) != count:
        raise ConfigError("values", len(values), f"as many as keys: {count}")
    expirations = _spread("expiration_time", expiration_time, count)
    names = [None] * count if subkeys is None else _spread("subkeys", subkeys, count)
    places = _spread("in_cache", in_cache or False, count)
    request, size = dht_pb2.StoreRequest(), 0
    for key, value, expiration, subkey, place in zip(keys, values, expirations, names, places, strict=True):
        if isinstance(value, DictionaryDHTValue):
            raw_subkey, raw_value = IS_DICTIONARY, MSGPackSerializer.dumps(value)
        else:
            raw_subkey, raw_value = pack_subkey(subkey), value
        cost = len(raw_value) + len(raw_subkey) + 48
        if request.keys and (size + cost > MAX_BATCH_BYTES or len(request.keys) >= MAX_RECORDS_PER_STORE):
            yield request
            request, size = dht_pb2.StoreRequest(), 0
        request.keys.append(key.to_bytes())
        request.subkeys.append(raw_subkey)
        request.values.append(raw_value)
        request.expiration_time.append(expiration)
        request.in_cache.append(place)
        size += cost
    if request.keys:
        yield request


def _spread(name: str, value: Any, count: int) -> Sequence[Any]:
    """One value for all, or a sequence with one for each."""
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        if len(value) != count:
            raise ConfigError(name, len(value), f"one for all, or as many as keys: {count}")
        return list(value)
    return [value] * count
