"""How keys, subkeys and values look on the wire (hivemind 1.1 wire format, section 3.2), and how large they may be."""

from __future__ import annotations

import math
from typing import Any, Final

from hivemind.clock import DHTExpiration
from hivemind.errors import ConfigError, SerializationError
from hivemind.serializer import MSGPackSerializer

__all__ = [
    "BinaryDHTValue",
    "DHTKey",
    "DHTValue",
    "Subkey",
    "check_expiration",
    "check_hashable",
    "check_subkey",
    "pack_subkey",
    "unpack_subkey",
]

#: What a user may name a record by: anything with a form in msgpack.
DHTKey = Any
#: What a user may store: anything with a form in msgpack.
DHTValue = Any
#: What a user may name an entry of a dictionary by: hashable, with a form in msgpack, not None.
Subkey = Any

#: A plain value as it is stored: serialized, with the tail of its signature if it has one.
BinaryDHTValue = bytes

#: In place of a subkey: the record is a plain value (msgpack nil), or a whole dictionary.
IS_REGULAR_VALUE: Final = b"\xc0"
IS_DICTIONARY: Final = b""
RESERVED_SUBKEYS: Final = (IS_REGULAR_VALUE, IS_DICTIONARY)

#: Bytes of one record, plain or a whole dictionary: it has to fit one unary message of 4 MiB with what is around it.
MAX_RECORD_BYTES: Final = 3 * 1024 * 1024
#: Entries of one dictionary, and of all that are sent in one request: each costs time to check and to keep.
MAX_ENTRIES: Final = 16384
#: Bytes of records that one request or answer carries together; a single larger record still goes alone.
MAX_BATCH_BYTES: Final = 2 * 1024 * 1024
#: Records of one store request and keys of one find request that are answered. Hivemind 1.1 sends one key with its
#: subkeys at a time, all its keys to a newcomer, and at most 16 keys per find.
MAX_RECORDS_PER_STORE: Final = 8192
MAX_KEYS_PER_FIND: Final = 256
#: Neighbours of one find result that are read: several times what hivemind 1.1 sends.
MAX_NEIGHBORS: Final = 64


def pack_subkey(subkey: Subkey) -> bytes:
    """The wire form of a subkey; None is that of a plain value.

    :raises SerializationError: if it has none
    """
    return MSGPackSerializer.dumps(subkey)


def unpack_subkey(raw: bytes) -> Subkey:
    """
    :raises SerializationError: unless ``raw`` is the form of a hashable subkey
    """
    subkey = MSGPackSerializer.loads(raw)
    check_subkey(subkey)
    return subkey


def check_subkey(subkey: Subkey) -> None:
    """
    :raises SerializationError: if entries of a dictionary cannot be named so
    """
    if subkey is None:
        raise SerializationError("subkey: got None, which stands for a plain value")
    check_hashable("subkey", subkey)


def check_hashable(name: str, value: object) -> None:
    """
    :raises SerializationError: if results cannot be looked up by ``value``
    """
    try:
        hash(value)
    except TypeError as error:
        raise SerializationError(f"{name}: got {type(value).__name__}, allowed: a hashable value ({error})") from error


def check_expiration(expiration_time: DHTExpiration) -> float:
    """The expiration as the float that stands on the wire.

    :raises ConfigError: unless it is a number
    """
    if isinstance(expiration_time, bool) or not isinstance(expiration_time, int | float) or math.isnan(expiration_time):
        raise ConfigError("expiration_time", expiration_time, "seconds since the Unix epoch, as get_dht_time() + 60")
    return float(expiration_time)
