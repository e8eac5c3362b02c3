"""The three calls between nodes of the DHT: ping, store and find (hivemind 1.1 wire format, section 3.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

from hivemind.aio import TaskScope
from hivemind.clock import MAX_DHT_TIME_DISCREPANCY_SECONDS, DHTExpiration, get_dht_time
from hivemind.config import make_options
from hivemind.dht.clocks import Clocks
from hivemind.dht.config import DHTNodeOptions
from hivemind.dht.counters import Counters
from hivemind.dht.home import Home
from hivemind.dht.messages import (
    FoundValue,
    Seen,
    drop_invalid,
    parse_found,
    parse_id,
    parse_neighbors,
    parse_records,
    store_requests,
)
from hivemind.dht.neighborhood import Neighborhood, Record
from hivemind.dht.records import (
    IS_DICTIONARY,
    IS_REGULAR_VALUE,
    MAX_KEYS_PER_FIND,
    MAX_RECORDS_PER_STORE,
    RESERVED_SUBKEYS,
    Subkey,
)
from hivemind.dht.routing import DHTID, ID_BYTES, RoutingTable
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue, StoredValue
from hivemind.dht.validation import RecordValidatorBase
from hivemind.errors import (
    DaemonDied,
    DaemonStartError,
    DeadlineExceeded,
    HivemindError,
    MessageTooLarge,
    P2PHandlerError,
    ProtocolViolation,
    RuntimeClosedError,
    TokenUnavailable,
    ValidationError,
)
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import (
    DEFAULT_MAX_MSG_SIZE,
    P2P,
    AuthorizerBase,
    AuthRole,
    AuthRPCWrapper,
    Membership,
    P2PContext,
    ServicerBase,
    StubBase,
)
from hivemind.proto import dht_pb2
from hivemind.serializer import MSGPackSerializer

__all__ = ["DHTProtocol"]

logger = get_logger(__name__)

#: Requests of one node under way at a time where ``parallel_rpc`` is not given.
DEFAULT_PARALLEL_RPC = 128
#: Bytes of a find answer, so that it fits one unary message with its envelope.
_MAX_ANSWER_BYTES = DEFAULT_MAX_MSG_SIZE - 4096
#: In the text of the error of a peer whose answer is too large for one message; asked for fewer keys it can answer.
_TOO_LARGE = "message size limit"


class DHTProtocol(ServicerBase):
    """One node's side of the protocol: answers others (not in client mode) and calls them. Made by `create`.

    Each call and each answer names its sender's node id and so keeps the routing tables true; a call that fails removes
    the peer. Owned by the network thread.
    """

    IS_REGULAR_VALUE: ClassVar[bytes] = IS_REGULAR_VALUE
    IS_DICTIONARY: ClassVar[bytes] = IS_DICTIONARY
    RESERVED_SUBKEYS: ClassVar[tuple[bytes, ...]] = RESERVED_SUBKEYS

    def __init__(
        self,
        p2p: P2P,
        node_id: DHTID,
        options: DHTNodeOptions,
        record_validator: RecordValidatorBase | None,
        authorizer: AuthorizerBase | None = None,
    ) -> None:
        self.p2p = p2p
        self.node_id = node_id
        self.client_mode = options.client_mode
        self.node_info = dht_pb2.NodeInfo(node_id=b"" if options.client_mode else node_id.to_bytes())
        self.wait_timeout = options.wait_timeout
        self.bucket_size = options.bucket_size
        self.record_validator = record_validator
        self.authorizer = authorizer
        #: who may take part in services beside the DHT
        self.membership = Membership(authorizer, self._ping_member)
        #: the node that answers for this peer, where that is in another process
        self.home: Home | None = None
        self.storage = DHTLocalStorage()
        self.cache = DHTLocalStorage(maxsize=options.cache_size)
        self.routing_table = RoutingTable(node_id, options.bucket_size, options.depth_modulo)
        self.counters = Counters()
        self.clocks = Clocks()
        self.rpc_semaphore = asyncio.Semaphore(options.parallel_rpc or DEFAULT_PARALLEL_RPC)
        self._scope = TaskScope("background of DHTProtocol")
        self.neighborhood = Neighborhood(
            self.routing_table, self.storage, options.num_replicas, self._scope, self.call_ping, self._push
        )

    @classmethod
    async def create(
        cls,
        p2p: P2P,
        node_id: DHTID,
        *,
        record_validator: RecordValidatorBase | None = None,
        authorizer: AuthorizerBase | None = None,
        **options: Any,
    ) -> Self:
        """Make the protocol and, unless in client mode, answer calls.

        :param authorizer: decides who may call and be called; None: all
        :param options: those of `DHTNodeOptions`; of them bucket_size, depth_modulo, num_replicas, wait_timeout,
            parallel_rpc, cache_size and client_mode matter here
        :raises P2PDaemonError: if another node answers on this peer
        """
        checked = make_options(DHTNodeOptions, options, where="DHTProtocol")
        protocol = cls(p2p, node_id, checked, record_validator, authorizer)
        if not protocol.client_mode:
            noted = protocol.membership.note_caller
            wrapper = AuthRPCWrapper(protocol, AuthRole.SERVICER, authorizer, on_admitted=noted)
            await protocol.add_p2p_handlers(p2p, wrapper)
        return protocol

    async def shutdown(self) -> None:
        """Stop answering and end background work. Idempotent."""
        await self._scope.close()
        if not self.client_mode and self.p2p.is_alive:
            try:
                await self.remove_p2p_handlers(self.p2p)
            except HivemindError as error:
                logger.debug("the handlers went with the daemon: %s", error)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def get_stub(self, peer: PeerID) -> StubBase | AuthRPCWrapper | Home:  # type: ignore[override]
        """A stub of the DHT service of ``peer``, with its calls authorized."""
        if self.home is not None and peer == self.home.peer_id:
            return self.home
        stub = super().get_stub(self.p2p, peer)
        if self.authorizer is None:
            return stub
        return AuthRPCWrapper(stub, AuthRole.CLIENT, self.authorizer, on_admitted=self.membership.note_callee)

    async def _ping_member(self, peer: PeerID) -> None:
        """
        :raises HivemindError: if ``peer`` does not answer, or its answer is not authorized
        """
        await self.get_stub(peer).rpc_ping(dht_pb2.PingRequest(peer=self.node_info), timeout=self.wait_timeout)

    async def _request(self, peer: PeerID, method: str, request: Any) -> Any:
        """Call ``peer``; note that it is alive, or that it is not.

        :raises HivemindError: if it does not answer in time
        """
        self.counters.requests += 1
        try:
            async with self.rpc_semaphore:
                response = await getattr(self.get_stub(peer), method)(request, timeout=self.wait_timeout)
        except (DaemonDied, DaemonStartError, RuntimeClosedError, MessageTooLarge, TokenUnavailable):
            raise  # not the peer's fault
        except HivemindError as error:
            self.counters.failures += 1
            self.counters.timeouts += isinstance(error, DeadlineExceeded)
            if not isinstance(error, P2PHandlerError) or _TOO_LARGE not in str(error):
                self.neighborhood.lost(peer)
            raise
        return response

    def _note_sender(self, peer: PeerID, info: dht_pb2.NodeInfo) -> DHTID | None:
        """Keep the routing table true; None if the sender is in client mode.

        :raises ProtocolViolation: if its node id is none
        """
        if not info.node_id:
            return None
        node_id = parse_id(info.node_id)
        if peer != self.p2p.peer_id or self.home is not None:
            self.neighborhood.seen(node_id, peer)
        return node_id

    async def ping(self, peer: PeerID, validate: bool = False, strict: bool = True) -> DHTID:
        """The node id of ``peer``.

        :param validate: check that it can call back and that its clock is right
        :param strict: with ``validate``, raise if the check fails; otherwise warn
        :raises HivemindError: if it does not answer; `ValidationError` if a check fails
        """
        sent = get_dht_time()
        request = dht_pb2.PingRequest(peer=self.node_info, validate=validate)
        response: dht_pb2.PingResponse = await self._request(peer, "rpc_ping", request)
        received = get_dht_time()
        if response.dht_time:
            self.clocks.note(peer, response.dht_time - (sent + received) / 2)
        if validate:
            problem = self._problem_with(response, sent, received)
            if problem and strict:
                raise ValidationError(f"{peer}: {problem}")
            if problem:
                logger.warning("%s: %s", peer, problem)
        node_id = self._note_sender(peer, response.peer)
        if node_id is None:
            raise ValidationError(f"{peer}: it answers, but without a node id: it is in client mode")
        return node_id

    def _problem_with(self, response: dht_pb2.PingResponse, sent: float, received: float) -> str:
        if not self.client_mode and not response.available:
            return "it cannot call this node back: open this node's port, or use client_mode=True"
        tolerance = MAX_DHT_TIME_DISCREPANCY_SECONDS
        if response.dht_time and not sent - tolerance <= response.dht_time <= received + tolerance:
            return (
                f"its clock is off by {response.dht_time - (sent + received) / 2:+.1f} s, at most {tolerance} s are"
                " allowed: synchronise the clocks (NTP)"
            )
        return ""

    async def call_ping(self, peer: PeerID, validate: bool = False, strict: bool = True) -> DHTID | None:
        """The node id of ``peer``, or None if it does not answer.

        :raises ValidationError: if a check of ``validate`` fails and ``strict``
        """
        try:
            return await self.ping(peer, validate, strict)
        except (DaemonDied, DaemonStartError, RuntimeClosedError, ValidationError):
            raise
        except HivemindError as error:
            logger.debug("ping of %s: %s", peer, error)
            return None

    async def call_store(
        self,
        peer: PeerID,
        keys: Sequence[DHTID],
        values: Sequence[StoredValue],
        expiration_time: DHTExpiration | Sequence[DHTExpiration],
        subkeys: Sequence[Subkey] | None = None,
        in_cache: bool | Sequence[bool] | None = None,
    ) -> list[bool] | None:
        """Ask ``peer`` to store records; a `DictionaryDHTValue` is stored entry by entry.

        :param subkeys: one a record; None where the value is plain or a whole dictionary
        :param in_cache: whether to keep it as a copy only
        :returns: for each whether it was accepted; None if the peer does not answer
        """
        accepted: list[bool] = []
        try:
            for request in store_requests(keys, values, expiration_time, subkeys, in_cache):
                request.peer.CopyFrom(self.node_info)
                response: dht_pb2.StoreResponse = await self._request(peer, "rpc_store", request)
                self._note_sender(peer, response.peer)
                if len(response.store_ok) != len(request.keys):
                    raise ProtocolViolation(f"{len(response.store_ok)} answers to {len(request.keys)} records")
                accepted.extend(response.store_ok)
        except (DaemonDied, DaemonStartError, RuntimeClosedError):
            raise
        except HivemindError as error:
            logger.debug("store on %s: %s", peer, error)
            return None
        return accepted

    async def call_find(
        self,
        peer: PeerID,
        keys: Sequence[DHTID],
        expected_id: DHTID | None = None,
        seen: Seen | None = None,
        *,
        values: bool = True,
    ) -> dict[DHTID, tuple[FoundValue | None, dict[DHTID, PeerID]]] | None:
        """Ask ``peer`` for the values of ``keys`` and for the nodes that it knows nearest to them.

        :param expected_id: its node id as far as is known; an answer under another one counts as none
        :param seen: values that other nodes have given in the same search
        :param values: otherwise only the neighbours are looked at
        :returns: for each key the value as stored, checked by the validators, or None; and neighbours. None if the
            peer does not answer
        """
        seen = {} if seen is None else seen
        request = dht_pb2.FindRequest(keys=[key.to_bytes() for key in keys], peer=self.node_info)
        try:
            response: dht_pb2.FindResponse = await self._request(peer, "rpc_find", request)
            node_id = self._note_sender(peer, response.peer)
            if expected_id is not None and node_id != expected_id:
                raise ProtocolViolation(f"it is node {node_id!r} and not {expected_id!r}")
            if len(response.results) != len(keys):
                raise ProtocolViolation(f"{len(response.results)} answers to {len(keys)} keys")
            oneself = (self.node_id, self.p2p.peer_id if self.home is None else None)
            return {
                key: (
                    await parse_found(key, result, self.record_validator, seen) if values else None,
                    parse_neighbors(result, excluded=oneself),
                )
                for key, result in zip(keys, response.results, strict=True)
            }
        except (DaemonDied, DaemonStartError, RuntimeClosedError):
            raise
        except HivemindError as error:
            if len(keys) > 1 and (isinstance(error, MessageTooLarge) or _TOO_LARGE in str(error)):
                return await self._find_by_halves(peer, keys, expected_id, seen, values)
            logger.debug("find on %s: %s", peer, error)
            return None

    async def _find_by_halves(
        self, peer: PeerID, keys: Sequence[DHTID], expected_id: DHTID | None, seen: Seen, values: bool
    ) -> dict[DHTID, tuple[FoundValue | None, dict[DHTID, PeerID]]] | None:
        middle = len(keys) // 2
        first = await self.call_find(peer, keys[:middle], expected_id, seen, values=values)
        second = await self.call_find(peer, keys[middle:], expected_id, seen, values=values)
        if first is None and second is None:
            return None
        return {**(first or {}), **(second or {})}

    async def _push(self, peer: PeerID, records: Iterable[Record]) -> None:
        """Give a newcomer the records that it should hold."""
        keys, values, expirations = zip(*records, strict=True)
        await self.call_store(peer, keys, values, expirations, in_cache=False)

    async def answer_at_home(self, method: str, request: Any, context: P2PContext) -> Any:
        """Answer a copy of this node in another process of the same peer; it needs no authorization."""
        return await getattr(self, method)(request, context)

    # -- handlers ------------------------------------------------------------------------------------------------------

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        """Some node checks that this one is alive, and with ``validate`` whether it can be called back itself."""
        self.counters.served += 1
        response = dht_pb2.PingResponse(peer=self.node_info, dht_time=get_dht_time(), available=False)
        if not request.peer.node_id:
            return response
        node_id = parse_id(request.peer.node_id)
        if request.validate:
            response.available = await self.call_ping(context.remote_id) == node_id
            response.dht_time = get_dht_time()
        if response.available or not request.validate:
            self._note_sender(context.remote_id, request.peer)
        else:
            self.neighborhood.lost(context.remote_id)
        return response

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        """Some node gives records to keep.

        :raises ProtocolViolation: if the lists do not belong together
        """
        self.counters.served += 1
        self._note_sender(context.remote_id, request.peer)
        count = len(request.keys)
        lengths = {count, len(request.values), len(request.expiration_time), len(request.in_cache)}
        if len(lengths) != 1 or len(request.subkeys) > count or count > MAX_RECORDS_PER_STORE:
            raise ProtocolViolation(
                f"{count} keys with {len(request.values)} values, {len(request.expiration_time)} expirations,"
                f" {len(request.in_cache)} places, {len(request.subkeys)} subkeys; at most {MAX_RECORDS_PER_STORE}"
            )
        records = await parse_records(request)
        await drop_invalid(records, self.record_validator)
        response = dht_pb2.StoreResponse(peer=self.node_info)
        for record, in_cache in zip(records, request.in_cache, strict=False):
            response.store_ok.append(record.store_in(self.cache if in_cache else self.storage))
        return response

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """Some node asks for values and for the nodes nearest to their keys.

        :raises ProtocolViolation: if it asks for too many at once
        :raises MessageTooLarge: if the answer does not fit one message
        """
        self.counters.served += 1
        sender = self._note_sender(context.remote_id, request.peer)
        if len(request.keys) > MAX_KEYS_PER_FIND:
            raise ProtocolViolation(f"{len(request.keys)} keys in one request, at most {MAX_KEYS_PER_FIND}")
        response = dht_pb2.FindResponse(peer=self.node_info)
        size = 0
        for raw_key in request.keys:
            key = parse_id(raw_key)
            result = self._found_here(key)
            nearest = self.routing_table.get_nearest_neighbors(key, self.bucket_size, exclude=sender)
            result.nearest_node_ids.extend([int.to_bytes(node_id, ID_BYTES, "big") for node_id, _ in nearest])
            result.nearest_peer_ids.extend([peer_id.to_bytes() for _, peer_id in nearest])
            size += len(result.value) + 64 * (len(nearest) + 1)
            if size > _MAX_ANSWER_BYTES:
                raise MessageTooLarge(f"response size exceeds {_TOO_LARGE}: ask for fewer keys")
            response.results.append(result)
        return response

    def get_local(self, key: DHTID) -> FoundValue | None:
        """What this node keeps under ``key``: the record or its copy in the cache, whichever expires later."""
        stored, cached = self.storage.get(key), self.cache.get(key)
        if stored is None or (cached is not None and cached.expiration_time > stored.expiration_time):
            return cached
        return stored

    def _found_here(self, key: DHTID) -> dht_pb2.FindResult:
        found = self.get_local(key)
        if found is None:
            return dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
        if isinstance(found.value, DictionaryDHTValue):
            kind, value = dht_pb2.FOUND_DICTIONARY, MSGPackSerializer.dumps(found.value)
        else:
            kind, value = dht_pb2.FOUND_REGULAR, found.value
        return dht_pb2.FindResult(type=kind, value=value, expiration_time=found.expiration_time)
