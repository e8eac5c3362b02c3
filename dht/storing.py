"""Stores: records placed on the nodes nearest to their keys."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.contacts import Contacts
from hivemind.dht.finding import Finder
from hivemind.dht.lookup import Lookup
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
from hivemind.identity import PeerID
from hivemind.log import RateLimit, get_logger
from hivemind.serializer import MSGPackSerializer

__all__ = ["Placement", "Record", "make_records"]

logger = get_logger(__name__)
_expired = RateLimit()

#: Nodes nearest to a key that must have answered before a record goes to those that they have named.
_WITNESSES: Final = 3
#: Where nodes crowd around a key, a record goes to so many times the replicas.
_CROWD_FACTOR: Final = 3


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


@dataclass
class _Target:
    """Where the records of one key go."""

    records: list[Record]
    #: nodes that are to have it
    wanted: int
    #: nodes that may hold it, nearest first; None stands for this node
    nodes: list[PeerID | None] = field(default_factory=list)
    #: nodes that were asked to hold it
    asked: set[PeerID | None] = field(default_factory=set)
    responded: int = 0
    #: whether all nodes that were asked, for others or to hold it, have answered
    smooth: bool = True

    def take(self, count: int) -> list[PeerID | None]:
        taken, self.nodes = self.nodes[:count], self.nodes[count:]
        self.asked.update(taken)
        return taken


class Placement:
    """Places records on ``num_replicas`` nodes each. Owned by the network thread.

    The few nodes nearest to a key know each other: when they have answered, the record goes to the nearest of all that
    they have named. Only where one of those does not answer, others are looked for and have to answer before.

    :param exclude_self: this node does not count as one of them
    """

    def __init__(self, contacts: Contacts, finder: Finder, records: Iterable[Record], *, exclude_self: bool) -> None:
        self._contacts = contacts
        self._finder = finder
        self._exclude_self = exclude_self
        self._replicas = contacts.options.num_replicas
        self._targets: dict[DHTID, _Target] = {}
        self._not_accepted = 0
        for record in records:
            self._targets.setdefault(record.key, _Target([], self._replicas)).records.append(record)
            self._not_accepted += 1
        #: set once each record was accepted by some node
        self.accepted_once = asyncio.Event()

    async def run(self, num_workers: int, beam_size: int | None) -> None:
        """Find the nodes, then store until enough have answered or there is none left.

        :param beam_size: nodes that must have answered before; None: see above
        """
        if beam_size is None:
            await self._find_nodes(self._targets, num_workers, min(_WITNESSES, self._replicas), answered_only=False)
            await self._place()
            targets = self._targets.items()
            lacking = [key for key, each in targets if each.responded < each.wanted and not each.smooth]
        else:
            lacking = list(self._targets)
        if lacking:
            # somewhat wider than the replicas: tables are incomplete, and nodes have gone
            width = min(self._contacts.protocol.bucket_size, 2 * self._replicas) if beam_size is None else beam_size
            await self._find_nodes(lacking, num_workers, max(width, self._replicas), answered_only=True)
            await self._place()

    async def _find_nodes(
        self, keys: Iterable[DHTID], num_workers: int, beam_size: int, *, answered_only: bool
    ) -> None:
        """Set the nodes of targets.

        :param answered_only: only those that have answered; otherwise also those that they have named
        """
        own_id = self._contacts.node_id

        def on_finished(lookup: Lookup) -> None:
            target, found = self._targets[lookup.target], lookup.known(2 * self._replicas)
            if lookup.density is not None:
                # most of the nearest may be up to no good: others get it too
                found = lookup.spread(_CROWD_FACTOR * self._replicas)
                target.wanted = len(found)
            elif answered_only:
                found = lookup.nearest(beam_size)
            nodes: list[tuple[int, PeerID | None]] = [(each ^ lookup.target, peer) for each, peer in found]
            if not self._exclude_self:
                nodes.append((own_id ^ lookup.target, None))
            target.smooth = not lookup.failures
            target.nodes = [peer for _, peer in sorted(nodes, key=lambda each: each[0]) if peer not in target.asked]

        lookups = [self._finder.lookup(key, beam_size) for key in keys]
        # as hivemind 1.1 does: the more keys, the more of them in one request
        chunk_size = max(self._contacts.options.chunk_size, math.isqrt(len(lookups)))
        ask = self._finder.ask_for_nodes
        await self._finder.run(lookups, ask, on_finished, num_workers, chunk_size=chunk_size, beyond_crowds=True)

    async def _place(self) -> None:
        while batches := self._next_batches():
            here = batches.pop(None, [])
            for record in here:
                self._note(record, record.store_in(self._contacts.protocol.storage))
            for key in {record.key for record in here}:
                self._targets[key].responded += 1
            async with asyncio.TaskGroup() as group:
                for peer, records in batches.items():
                    group.create_task(self._store_on(peer, records))

    def _next_batches(self) -> dict[PeerID | None, list[Record]]:
        """What each node is asked to store next: all keys advance together, so that nodes get few requests."""
        batches: dict[PeerID | None, list[Record]] = defaultdict(list)
        for target in self._targets.values():
            for peer in target.take(target.wanted - target.responded):
                batches[peer].extend(target.records)
        return batches

    async def _store_on(self, peer: PeerID | None, records: list[Record]) -> None:
        assert peer is not None
        keys, values, expirations, subkeys = zip(
            *((each.key, each.value, each.expiration_time, each.subkey) for each in records), strict=True
        )
        answers = await self._contacts.store(peer, keys, values, expirations, subkeys)
        if answers is None:
            for record in records:
                self._targets[record.key].smooth = False
            return
        for record, ok in zip(records, answers, strict=True):
            self._note(record, ok)
        for key in {record.key for record in records}:
            self._targets[key].responded += 1

    def _note(self, record: Record, accepted: bool) -> None:
        if not accepted or record.accepted:
            return
        record.accepted = True
        self._not_accepted -= 1
        if self._not_accepted == 0:
            self.accepted_once.set()
