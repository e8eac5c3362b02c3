"""`DHTNode`: one node of the distributed hash table, on the loop of the network thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from multiaddr import Multiaddr

from hivemind.aio import TaskScope
from hivemind.clock import DHTExpiration
from hivemind.dht.bootstrap import bootstrap, get_acquainted, parse_initial_peers
from hivemind.dht.cache import CacheRefreshQueue
from hivemind.dht.config import DHTNodeOptions, split_node_options
from hivemind.dht.contacts import Contacts
from hivemind.dht.counters import DHTStats
from hivemind.dht.finding import Finder
from hivemind.dht.getting import Getter, Result
from hivemind.dht.key_search import KeySearch
from hivemind.dht.maintenance import Maintenance
from hivemind.dht.outgoing import Record, make_records
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.records import DHTKey, DHTValue, Subkey
from hivemind.dht.retries import Retries
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.storing import Placement
from hivemind.dht.validation import CompositeValidator, RecordValidatorBase
from hivemind.dht.watch import DEFAULT_WATCH_INTERVAL, Watch
from hivemind.errors import RuntimeClosedError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import P2P, AuthorizerBase, Membership
from hivemind.timed_storage import ValueWithExpiration

__all__ = ["DHTNode"]

logger = get_logger(__name__)


class DHTNode:
    """A node of a Kademlia-like table of records that expire. Made by `create`; owned by one event loop.

    Each record is stored on the ``num_replicas`` nodes nearest to the hash of its key; of two the one that expires
    later counts. Records under one key with subkeys form a dictionary whose entries expire each by itself.
    """

    def __init__(self, contacts: Contacts, *, owns_p2p: bool) -> None:
        protocol, options = contacts.protocol, contacts.options
        self.contacts = contacts
        self.p2p = protocol.p2p
        self.protocol = protocol
        self.options = options
        self.node_id = protocol.node_id
        self.num_replicas = options.num_replicas
        self.num_workers = options.num_workers
        self.chunk_size = options.chunk_size
        self.client_mode = options.client_mode
        self.is_alive = True
        #: peers that are left alone for a while
        self.blacklist = contacts.blacklist
        self.counters = protocol.counters
        self.finder = Finder(contacts)
        self._owns_p2p = owns_p2p
        self._scope = contacts.scope
        self._getter = Getter(contacts, self.finder, self._scope)
        self._retries = Retries(contacts, self._scope)

    @classmethod
    async def create(
        cls,
        p2p: P2P | None = None,
        node_id: DHTID | None = None,
        initial_peers: Sequence[Multiaddr | str] | None = None,
        *,
        record_validator: RecordValidatorBase | None = None,
        authorizer: AuthorizerBase | None = None,
        **options: Any,
    ) -> Self:
        """Start a node and join the swarm.

        :param p2p: stand on this peer, which stays the caller's; by default a peer of its own is made
        :param node_id: by default a random one
        :param initial_peers: addresses of nodes of the swarm, each ``/…/p2p/<id>``; none: a swarm of its own
        :param record_validator: checks records; more can be added through `CompositeValidator.extend`
        :param authorizer: decides who may call this node and be called by it (docs/security.md); None: all
        :param options: those of `DHTNodeOptions`, and without ``p2p`` those of `P2PConfig`
        :raises WrongTypeError: if ``initial_peers`` is one address and not several
        :raises ConfigError: if another argument is wrong
        :raises P2PDaemonError: if the peer does not start; `BootstrapError` if no initial peer answers
        """
        peers = parse_initial_peers(initial_peers)
        node_options, p2p_part = split_node_options(options, shared=p2p is not None, where="DHTNode")
        owned: P2P | None = None
        if p2p is None:
            # a node is there for others, who know it by its peer id
            p2p_part.setdefault("restart", True)
            if node_options.client_mode:
                p2p_part.setdefault("dht_mode", "client")
            p2p = owned = await P2P.create(initial_peers=peers, **p2p_part)
        try:
            return await cls._start(
                p2p, node_id, peers, node_options, record_validator, authorizer, owns_p2p=owned is not None
            )
        except BaseException:
            if owned is not None:
                await owned.shutdown()
            raise

    @classmethod
    async def _start(
        cls,
        p2p: P2P,
        node_id: DHTID | None,
        initial_peers: tuple[Multiaddr, ...],
        options: DHTNodeOptions,
        record_validator: RecordValidatorBase | None,
        authorizer: AuthorizerBase | None,
        *,
        owns_p2p: bool,
    ) -> Self:
        protocol = await DHTProtocol.create(
            p2p,
            node_id if node_id is not None else DHTID.generate(),
            record_validator=record_validator if record_validator is not None else CompositeValidator(),
            authorizer=authorizer,
            **vars(options),
        )
        contacts = Contacts(protocol, options, initial_peers, TaskScope("background of DHTNode"))
        node = cls(contacts, owns_p2p=owns_p2p)
        try:
            if initial_peers:
                await bootstrap(contacts, node.finder, node._scope)
                node._scope.start(get_acquainted(contacts, node.finder), name="meeting the others of a small swarm")
            Maintenance(contacts, node.finder, node._scope).start()
        except BaseException:
            node._owns_p2p = False  # whoever made the peer ends it
            await node.shutdown()
            raise
        return node

    async def shutdown(self) -> None:
        """Leave: end searches and background work, stop answering, end an own peer. Idempotent."""
        self.is_alive = False
        await self._scope.close()
        await self.protocol.shutdown()
        if self._owns_p2p:
            await self.p2p.shutdown()

    @property
    def peer_id(self) -> PeerID:
        """This node's peer."""
        return self.p2p.peer_id

    @property
    def membership(self) -> Membership:
        """Who may take part in services beside the DHT, as its authorizer has it."""
        return self.protocol.membership

    async def get_visible_maddrs(self, latest: bool = False) -> list[Multiaddr]:
        """The addresses by which others reach this node, each ending in ``/p2p/<id>``.

        :param latest: ask the daemon anew
        """
        return await self.p2p.get_visible_maddrs(latest=latest)

    # -- store ---------------------------------------------------------------------------------------------------------

    async def store(
        self, key: DHTKey, value: DHTValue, expiration_time: DHTExpiration, subkey: Subkey | None = None, **kwargs: Any
    ) -> bool:
        """Store one value; see `store_many`.

        :returns: whether some node has accepted it
        """
        subkeys = None if subkey is None else [subkey]
        stored = await self.store_many([key], [value], [expiration_time], subkeys, **kwargs)
        return stored[key if subkey is None else (key, subkey)]

    async def store_many(
        self,
        keys: Sequence[DHTKey],
        values: Sequence[DHTValue],
        expiration_time: DHTExpiration | Sequence[DHTExpiration],
        subkeys: Sequence[Subkey] | None = None,
        exclude_self: bool = False,
        await_all_replicas: bool = True,
        *,
        num_workers: int | None = None,
        beam_size: int | None = None,
    ) -> dict[Any, bool]:
        """Store values on the nodes nearest to their keys.

        :param expiration_time: DHT time; one for all or one a value
        :param subkeys: one a value: the value is this entry of the dictionary under the key; None for a plain value
        :param exclude_self: do not keep it here, even if this node is one of the nearest
        :param await_all_replicas: otherwise return as soon as one node has accepted each value
        :param num_workers: requests under way at first
        :param beam_size: how many of the nearest nodes must have answered before it is stored on the nearest of them;
            by default a few, and twice ``num_replicas`` where one of those does not answer
        :returns: by key, or (key, subkey), whether some node has accepted it. None does if it has expired, or if a
            value that expires later is there already
        :raises SerializationError: if a key, subkey or value has no form on the wire
        """
        self._check_alive()
        validator = self.protocol.record_validator
        records, results = make_records(keys, values, expiration_time, subkeys, validator)
        placement = Placement(
            self.contacts, self.finder, self._retries, records, exclude_self=exclude_self or self.client_mode
        )
        run = placement.run(num_workers if num_workers is not None else self.num_workers, beam_size)
        if await_all_replicas:
            await run
        elif records:
            task = self._scope.start(run, name="store")
            task.add_done_callback(lambda _: placement.accepted_once.set())
            await placement.accepted_once.wait()
        else:
            run.close()
        for record in records:
            results[record.name] = record.accepted
        self._getter.note_stored(record.key for record in records if record.accepted)
        self.counters.stores += len(results)
        self.counters.stores_accepted += sum(results.values())
        if self.options.cache_on_store:
            self._cache_own(records)
        return results

    def _cache_own(self, records: Iterable[Record]) -> None:
        """Keep copies of own plain values; of entries only where their dictionary is in the cache already."""
        cache = self.protocol.cache
        for record in records:
            plain = record.subkey is None and not isinstance(record.value, DictionaryDHTValue)
            cached = None if plain else cache.get(record.key)
            if record.accepted and (plain or (cached and isinstance(cached.value, DictionaryDHTValue))):
                record.store_in(cache)

    # -- get -----------------------------------------------------------------------------------------------------------

    async def get(self, key: DHTKey, latest: bool = False, **kwargs: Any) -> ValueWithExpiration[Any] | None:
        """The value of ``key`` and its expiration; a dictionary is ``{subkey: ValueWithExpiration}``.

        :param latest: ask all of the nearest nodes for the value that expires last, and merge the entries of
            dictionaries; otherwise the first live value is taken, also from this node's cache
        :returns: None if there is none
        """
        sufficient = float("inf") if latest else None
        key_id = DHTID.generate(source=key)
        found: dict[DHTID, Result] = await self.get_many_by_id([key_id], sufficient, **kwargs)
        return found[key_id]

    async def get_many(
        self, keys: Iterable[DHTKey], sufficient_expiration_time: DHTExpiration | None = None, **kwargs: Any
    ) -> dict[DHTKey, Any]:
        """Values of several keys.

        :param sufficient_expiration_time: stop early when a value is found that expires at this time or later; default
            now, infinity for the latest
        :param kwargs: as `get_many_by_id`
        :returns: a value or None for each key; with ``return_futures`` an awaitable for each, at once
        """
        ids = {key: DHTID.generate(source=key) for key in keys}
        found = await self.get_many_by_id(list(ids.values()), sufficient_expiration_time, **kwargs)
        return {key: found[key_id] for key, key_id in ids.items()}

    async def get_many_by_id(
        self,
        key_ids: Iterable[DHTID],
        sufficient_expiration_time: DHTExpiration | None = None,
        num_workers: int | None = None,
        beam_size: int | None = None,
        return_futures: bool = False,
        _is_refresh: bool = False,
    ) -> dict[DHTID, Any]:
        """`get_many` by the ids of the keys.

        :param num_workers: requests under way at first
        :param beam_size: how many of the nearest nodes to ask at most. By default twice ``num_replicas``, which nearly
            always hold what there is, and ``bucket_size`` where nodes have gone lately, or none has the latest
        """
        self._check_alive()
        futures = self._getter.start(
            key_ids,
            sufficient_expiration_time,
            num_workers if num_workers is not None else self.num_workers,
            beam_size,
            is_refresh=_is_refresh,
        )
        if return_futures:
            return dict(futures)
        return {key: await future for key, future in futures.items()}

    def watch(self, key: DHTKey, interval: float = DEFAULT_WATCH_INTERVAL) -> Watch:
        """What changes under ``key``, beginning with what is there; see `Watch`.

        :param interval: seconds between two looks at the nodes that hold it
        :raises ConfigError: if the interval is wrong
        """
        self._check_alive()

        async def latest(key_id: DHTID) -> Result:
            found: dict[DHTID, Result] = await self.get_many_by_id([key_id], float("inf"))
            return found[key_id]

        return Watch(latest, self.protocol.storage, key, interval, self._scope)

    def stats(self) -> DHTStats:
        """How this node is doing."""
        protocol = self.protocol
        return DHTStats.of(
            self.counters,
            known_nodes=len(protocol.routing_table),
            stored_keys=len(protocol.storage),
            stored_bytes=protocol.storage.nbytes,
            cached_keys=len(protocol.cache),
            blacklisted=len(self.blacklist),
            clock_offset=protocol.clocks.offset,
        )

    # -- search --------------------------------------------------------------------------------------------------------

    async def find_nearest_nodes(
        self,
        queries: Iterable[DHTID],
        k_nearest: int | None = None,
        beam_size: int | None = None,
        num_workers: int | None = None,
        node_to_peer_id: Mapping[DHTID, PeerID] | None = None,
        exclude_self: bool = False,
    ) -> dict[DHTID, dict[DHTID, PeerID]]:
        """The nodes nearest to each of ``queries`` that answer, nearest first.

        :param k_nearest: how many; default ``bucket_size``
        :param node_to_peer_id: where to begin; default the nodes known nearest
        :param exclude_self: leave this node out
        """
        self._check_alive()
        count = k_nearest if k_nearest is not None else self.protocol.bucket_size
        workers = num_workers if num_workers is not None else self.num_workers
        beam = beam_size if beam_size is not None else self.protocol.bucket_size
        found = await self.finder.nearest(queries, count, beam, workers, node_to_peer_id)
        if not exclude_self and not self.client_mode:
            for query, nearest in found.items():
                nearest.append((self.node_id, self.peer_id))
                nearest.sort(key=lambda node: node[0] ^ query)
        return {query: dict(nearest[:count]) for query, nearest in found.items()}

    @property
    def pending_get_requests(self) -> dict[DHTID, KeySearch]:
        """Searches under way by the id of their key."""
        return self._getter.pending

    @property
    def cache_refresh_queue(self) -> CacheRefreshQueue:
        """Cached keys in use, and when each is renewed."""
        return self._getter.cache_policy.refresh_queue

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise RuntimeClosedError("this DHT node was shut down")
