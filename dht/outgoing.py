"""What a user stores, made ready for the nodes that are to keep it: serialized, signed, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.records import (
    MAX_RECORD_BYTES,
    DHTKey,
    DHTValue,
    Subkey,
    check_expiration,
    check_hashable,
    check_subkey,
    pack_subkey,
)
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue, StoredValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.errors import ConfigError
from hivemind.log import RateLimit, get_logger
from hivemind.serializer import MSGPackSerializer

__all__ = ["Record", "make_records"]

logger = get_logger(__name__)
_expired = RateLimit()


@dataclass(eq=False, slots=True)
class Record:
    """One value on its way."""

    #: how the result names it: the key, or (key, subkey)
    name: Any
    key: DHTID
    subkey: Subkey
    value: StoredValue
    expiration_time: DHTExpiration
    #: whether some node has accepted it
    accepted: bool = False

    def store_in(self, place: DHTLocalStorage) -> bool:
        """Keep it on this node."""
        if isinstance(self.value, DictionaryDHTValue):
            return place.store_dictionary(self.key, self.value)
        return place.store(self.key, self.value, self.expiration_time, self.subkey)


def make_records(
    keys: Sequence[DHTKey],
    values: Sequence[DHTValue],
    expiration_time: DHTExpiration | Sequence[DHTExpiration],
    subkeys: Sequence[Subkey] | None,
    validator: RecordValidatorBase | None,
) -> tuple[list[Record], dict[Any, bool]]:
    """Serialize and sign values; see `DHTNode.store_many` for the arguments.

    :returns: the records to store, and the result so far: False for each
    """
    count = len(keys)
    expirations = [expiration_time] * count if isinstance(expiration_time, int | float) else list(expiration_time)
    names = [None] * count if subkeys is None else list(subkeys)
    for name, given in (("values", values), ("expiration_time", expirations), ("subkeys", names)):
        if len(given) != count:
            raise ConfigError(name, f"{len(given)} of them", f"as many as keys: {count}")
    records: list[Record] = []
    results: dict[Any, bool] = {}
    for key, value, expiration, subkey in zip(keys, values, expirations, names, strict=True):
        check_hashable("key", key)
        if subkey is not None:
            check_subkey(subkey)
        results[key if subkey is None else (key, subkey)] = False
        record = _make_record(key, subkey, value, expiration, validator)
        if record is not None:
            records.append(record)
    return records, results


def _make_record(
    key: DHTKey,
    subkey: Subkey,
    value: DHTValue,
    expiration_time: DHTExpiration,
    validator: RecordValidatorBase | None,
) -> Record | None:
    """Serialize and sign a value.

    :returns: None if it has expired, or the own validators refuse it
    :raises SerializationError: if key, subkey or value have no form on the wire
    :raises ConfigError: if the value is too large
    """
    expiration = check_expiration(expiration_time)
    key_id = DHTID.generate(source=key)
    name = key if subkey is None else (key, subkey)
    if isinstance(value, DictionaryDHTValue):
        return Record(name, key_id, None, value, value.latest_expiration_time)
    raw = MSGPackSerializer.dumps(value)
    if validator:
        record = DHTRecord(key_id.to_bytes(), pack_subkey(subkey), raw, expiration)
        raw = validator.sign_value(record)
        if not validator.validate(DHTRecord(record.key, record.subkey, raw, expiration)):
            logger.warning("a value under key %r was not stored: a record validator of this node refuses it", key)
            return None
    if len(raw) > MAX_RECORD_BYTES:
        raise ConfigError("value", f"{len(raw)} bytes", f"at most {MAX_RECORD_BYTES} bytes when serialized")
    late = get_dht_time() - expiration
    if late > 0:
        if _expired.allow():
            logger.warning(
                "a value under key %r was not stored: it has expired %.1f s ago; expiration_time is a point in time, as"
                " get_dht_time() + 60",
                key,
                late,
            )
        return None
    return Record(name, key_id, subkey, raw, expiration)
