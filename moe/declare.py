"""Who serves which expert: the records of experts in the DHT (hivemind 1.1 wire format, "DHT records").

Under the full name stands the peer's id as text. Under each prefix stands, by coordinate, some expert below it and its
peer, so that a search can follow the live branches of a grid: ``ffn.3.`` → ``{5: ("ffn.3.5", peer)}``. A grid with one
axis has ``ffn.3.`` → ``{-1: ("ffn.3", peer)}``. All expire, and servers renew them while they live.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, overload

from hivemind.clock import DHTExpiration
from hivemind.dht import DHT, DHTNode
from hivemind.errors import HivemindError, WrongTypeError
from hivemind.identity import PeerID
from hivemind.moe.uid import (
    Coordinate,
    ExpertInfo,
    ExpertPrefix,
    ExpertUID,
    check_uid,
    is_valid_uid,
    prefixes_of,
)
from hivemind.runtime import HivemindFuture
from hivemind.timed_storage import ValueWithExpiration

__all__ = [
    "Declared",
    "check_uids",
    "declare_experts",
    "find_experts",
    "read_entry",
    "read_owner",
    "store_declarations",
    "store_withdrawals",
    "undeclare_experts",
]

#: Characters of a peer's id as text: more are not read, as that takes time with their square.
_MAX_PEER_TEXT = 128

#: What was stored, and whether some node has accepted it: by name, and by (prefix, coordinate).
Declared = dict[ExpertUID | tuple[ExpertPrefix, Coordinate], bool]


@overload
def declare_experts(
    dht: DHT, uids: Sequence[ExpertUID], expiration_time: DHTExpiration, wait: Literal[True] = True
) -> Declared: ...


@overload
def declare_experts(
    dht: DHT, uids: Sequence[ExpertUID], expiration_time: DHTExpiration, wait: bool
) -> Declared | HivemindFuture[Declared]: ...


def declare_experts(
    dht: DHT, uids: Sequence[ExpertUID], expiration_time: DHTExpiration, wait: bool = True
) -> Declared | HivemindFuture[Declared]:
    """Tell the swarm that this peer serves ``uids``. Thread-safe.

    :param expiration_time: DHT time until which that holds, as ``get_dht_time() + 60``
    :param wait: otherwise return at once, with a future
    :returns: what was accepted by some node, by name and by (prefix, coordinate); what expires sooner than a record
        that is there already is not
    :raises ConfigError: if a name is malformed; `WrongTypeError` if ``uids`` is one name and not several
    """
    check_uids(uids)

    async def declare(dht: DHT, node: DHTNode) -> Declared:
        return await store_declarations(node, uids, expiration_time)

    return dht.run_coroutine(declare) if wait else dht.run_coroutine(declare, return_future=True)


def undeclare_experts(dht: DHT, uids: Sequence[ExpertUID]) -> Declared:
    """Tell the swarm that this peer serves ``uids`` no more. Thread-safe. Records of other peers stay.

    :returns: what was withdrawn
    :raises ConfigError: as `declare_experts`
    """
    check_uids(uids)

    async def undeclare(dht: DHT, node: DHTNode) -> Declared:
        return await store_withdrawals(node, uids)

    return dht.run_coroutine(undeclare)


def check_uids(uids: Sequence[ExpertUID]) -> None:
    """
    :raises ConfigError: unless all are full names of experts
    """
    if isinstance(uids, str) or not isinstance(uids, Sequence):
        raise WrongTypeError("uids", uids, "a list or tuple of names of experts")
    for uid in uids:
        check_uid("uids", uid)


async def store_declarations(node: DHTNode, uids: Sequence[ExpertUID], expiration_time: DHTExpiration) -> Declared:
    """`declare_experts` on the network thread."""
    peer = str(node.peer_id)
    records: dict[tuple[str, Coordinate | None], Any] = {}
    for uid in uids:
        records[uid, None] = peer
        for prefix, coordinate in prefixes_of(uid):
            records[prefix, coordinate] = (uid, peer)
    return await _store(node, records, [expiration_time] * len(records))


async def store_withdrawals(node: DHTNode, uids: Sequence[ExpertUID]) -> Declared:
    """`undeclare_experts` on the network thread.

    In place of each record comes one without a value that expires a moment later, so that a new declaration is
    accepted at once. Entries of which another expert is the example stay, as it may be alive.
    """
    names = {uid: prefixes_of(uid)[0] for uid in uids}
    keys: list[str] = [*names, *{prefix for prefix, _ in names.values()}]
    found = await node.get_many(keys, sufficient_expiration_time=math.inf)
    records: dict[tuple[str, Coordinate | None], Any] = {}
    expirations: list[DHTExpiration] = []
    for uid, (prefix, coordinate) in names.items():
        if read_owner(found[uid]) == node.peer_id:
            records[uid, None] = None
            expirations.append(math.nextafter(found[uid].expiration_time, math.inf))
        entries = found[prefix].value if found[prefix] is not None else None
        entry = entries.get(coordinate) if isinstance(entries, dict) else None
        if entry is not None and read_entry(entry.value) == ExpertInfo(uid, node.peer_id):
            records[prefix, coordinate] = None
            expirations.append(math.nextafter(entry.expiration_time, math.inf))
    return await _store(node, records, expirations)


async def _store(
    node: DHTNode, records: dict[tuple[str, Coordinate | None], Any], expirations: Sequence[DHTExpiration]
) -> Declared:
    if not records:
        return {}
    keys, subkeys = zip(*records, strict=True)
    return await node.store_many(keys, list(records.values()), expirations, subkeys)


async def find_experts(
    node: DHTNode, uids: Sequence[ExpertUID], expiration_time: DHTExpiration | None = None
) -> list[ExpertInfo | None]:
    """Look up who serves each of ``uids``, on the network thread.

    :param expiration_time: stop early at a record that holds up to this DHT time; default now
    :returns: in the order of ``uids``, None where nobody does
    """
    found = await node.get_many(dict.fromkeys(uids), expiration_time)
    owners = ((uid, read_owner(found[uid])) for uid in uids)
    return [None if peer is None else ExpertInfo(uid, peer) for uid, peer in owners]


def read_owner(record: ValueWithExpiration[Any] | None) -> PeerID | None:
    """The peer that a record under a full name tells of; None unless it is well-formed."""
    return None if record is None else _read_peer(record.value)


def read_entry(value: object) -> ExpertInfo | None:
    """The expert that an entry under a prefix tells of; None unless it is well-formed."""
    if not isinstance(value, tuple) or len(value) != 2 or not is_valid_uid(value[0]):
        return None
    peer = _read_peer(value[1])
    return None if peer is None else ExpertInfo(value[0], peer)


def _read_peer(text: object) -> PeerID | None:
    return _parse_peer(text) if isinstance(text, str) and len(text) <= _MAX_PEER_TEXT else None


@functools.lru_cache(maxsize=4096)
def _parse_peer(text: str) -> PeerID | None:
    try:
        return PeerID.from_base58(text)
    except HivemindError:
        return None
