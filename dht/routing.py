"""Who is known: ids, buckets and the routing table of Kademlia (Maymounkov and Mazieres, 2002). Pure: no network."""

from __future__ import annotations

import hashlib
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, overload

from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.records import BinaryDHTValue, DHTKey, DHTValue, Subkey
from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.serializer import MSGPackSerializer

# the types of keys and values have this path in hivemind 1.1
__all__ = ["DHTID", "BinaryDHTValue", "DHTKey", "DHTValue", "KBucket", "RoutingTable", "Subkey"]

ID_BITS: Final = 160
ID_BYTES: Final = 20


class DHTID(int):
    """A 160-bit id of a node or a key. The distance of two ids is their XOR."""

    __slots__ = ()

    MIN: Final = 0
    #: one above the greatest id
    MAX: Final = 1 << ID_BITS
    HASH_NBYTES: Final = ID_BYTES

    def __new__(cls, value: int) -> DHTID:
        if not 0 <= value < 1 << ID_BITS:
            raise ConfigError("DHTID", value, "an integer of 160 bits")
        return super().__new__(cls, value)

    @classmethod
    def generate(cls, source: object = None, nbits: int = 255) -> DHTID:
        """The id of a key: SHA-1 of the key itself if it is bytes, otherwise of its msgpack encoding.

        So ``"x"`` and ``b"x"`` are different keys. Without a source: a random id.

        :param nbits: bits of randomness where there is no source
        :raises SerializationError: if ``source`` has no form on the wire
        """
        if source is None:
            raw = secrets.token_bytes(max(ID_BYTES, (nbits + 7) // 8))
        else:
            raw = source if isinstance(source, bytes) else MSGPackSerializer.dumps(source)
        return cls(int.from_bytes(hashlib.sha1(raw, usedforsecurity=False).digest(), "big"))

    @overload
    def xor_distance(self, other: DHTID) -> int: ...

    @overload
    def xor_distance(self, other: Iterable[DHTID]) -> list[int]: ...

    def xor_distance(self, other: DHTID | Iterable[DHTID]) -> int | list[int]:
        """The distance to one id, or to each of several."""
        if isinstance(other, DHTID):
            return int(self) ^ int(other)
        return [int(self) ^ int(each) for each in other]

    @classmethod
    def longest_common_prefix_length(cls, *ids: DHTID) -> int:
        """How many leading bits all ids share."""
        different = 0
        for each in ids[1:]:
            different |= int(ids[0]) ^ int(each)
        return ID_BITS - different.bit_length()

    def to_bytes(  # type: ignore[override]
        self, length: int = ID_BYTES, byteorder: Literal["big", "little"] = "big", *, signed: bool = False
    ) -> bytes:
        """20 bytes, big-endian."""
        return int.to_bytes(self, length, byteorder, signed=signed)

    @classmethod
    def from_bytes(  # type: ignore[override]
        cls, raw: bytes, byteorder: Literal["big", "little"] = "big", *, signed: bool = False
    ) -> DHTID:
        """
        :raises ConfigError: if the number has more than 160 bits; shorter ones are accepted
        """
        return cls(int.from_bytes(raw, byteorder, signed=signed))

    def __repr__(self) -> str:
        return f"DHTID({int(self):#x})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (DHTID, (int(self),))


class KBucket:
    """The nodes known in one range of ids, longest unseen first, and others that wait to take the place of a dead one.

    :param lower: first id of the range
    :param upper: one above its last id; the range is aligned and its size a power of two
    """

    __slots__ = (
        "depth",
        "last_updated",
        "lower",
        "nodes_requested_for_ping",
        "nodes_to_peer_id",
        "replacement_nodes",
        "size",
        "upper",
    )

    def __init__(self, lower: int, upper: int, size: int, depth: int = 0) -> None:
        self.lower = lower
        self.upper = upper
        self.size = size
        self.depth = depth
        #: insertion order is the order of the last contact
        self.nodes_to_peer_id: dict[DHTID, PeerID] = {}
        self.replacement_nodes: dict[DHTID, PeerID] = {}
        #: the member that was found longest unseen and is being pinged
        self.nodes_requested_for_ping: set[DHTID] = set()
        self.last_updated: DHTExpiration = get_dht_time()

    def has_in_range(self, node_id: int) -> bool:
        """Whether the id belongs here."""
        return self.lower <= node_id < self.upper

    def add_or_update_node(self, node_id: DHTID, peer_id: PeerID) -> bool:
        """Note that a node was heard of just now.

        :returns: False if the bucket is full: the node then waits in `replacement_nodes`
        """
        self.nodes_requested_for_ping.discard(node_id)
        self.last_updated = get_dht_time()
        if self.nodes_to_peer_id.pop(node_id, None) is None and len(self.nodes_to_peer_id) >= self.size:
            self.replacement_nodes.pop(node_id, None)
            self.replacement_nodes[node_id] = peer_id
            if len(self.replacement_nodes) > self.size:
                del self.replacement_nodes[next(iter(self.replacement_nodes))]
            return False
        self.nodes_to_peer_id[node_id] = peer_id
        self.replacement_nodes.pop(node_id, None)
        return True

    def request_ping_node(self) -> tuple[DHTID, PeerID] | None:
        """The member longest unseen of which no ping is under way; it is under way from now on."""
        for node_id, peer_id in self.nodes_to_peer_id.items():
            if node_id not in self.nodes_requested_for_ping:
                self.nodes_requested_for_ping.add(node_id)
                return node_id, peer_id
        return None

    def split(self) -> tuple[KBucket, KBucket]:
        """The two halves of this bucket. What can be split was never full before, so that nobody waits in it."""
        middle = (self.lower + self.upper) // 2
        left = KBucket(self.lower, middle, self.size, self.depth + 1)
        right = KBucket(middle, self.upper, self.size, self.depth + 1)
        for node_id, peer_id in self.nodes_to_peer_id.items():
            (left if node_id < middle else right).nodes_to_peer_id[node_id] = peer_id
        for half in (left, right):
            half.last_updated = self.last_updated
            half.nodes_requested_for_ping = self.nodes_requested_for_ping & half.nodes_to_peer_id.keys()
        return left, right

    def remove(self, node_id: DHTID) -> tuple[DHTID, PeerID] | None:
        """Remove a member.

        :returns: the replacement heard of last, which is a member now; None if there is none
        """
        self.nodes_requested_for_ping.discard(node_id)
        del self.nodes_to_peer_id[node_id]
        if not self.replacement_nodes:
            return None
        newest, peer_id = self.replacement_nodes.popitem()
        self.nodes_to_peer_id[newest] = peer_id
        return newest, peer_id

    def __repr__(self) -> str:
        return f"KBucket({len(self.nodes_to_peer_id)} of {self.size}, depth {self.depth}, from {self.lower:#x})"


class RoutingTable:
    """The nodes this node knows, dense near its own id.

    One peer has one id here: a peer that comes back under a new id replaces its old one, and an id that another peer
    holds is not taken from it.

    :param bucket_size: Kademlia's k, the capacity of a bucket
    :param depth_modulo: a full bucket is split if it covers the own id or its depth is no multiple of this
    """

    def __init__(self, node_id: DHTID, bucket_size: int, depth_modulo: int) -> None:
        self.node_id = node_id
        self.bucket_size = bucket_size
        self.depth_modulo = depth_modulo
        #: in order of their ranges, which together cover all ids
        self.buckets: list[KBucket] = [KBucket(DHTID.MIN, DHTID.MAX, bucket_size)]
        # where each of them begins
        self._lowers: list[int] = [DHTID.MIN]
        # of members of buckets only
        self.peer_id_to_uid: dict[PeerID, DHTID] = {}
        self.uid_to_peer_id: dict[DHTID, PeerID] = {}

    def get_bucket_index(self, node_id: int) -> int:
        """The index of the bucket whose range covers ``node_id``."""
        return bisect_right(self._lowers, node_id) - 1

    def add_or_update_node(self, node_id: DHTID, peer_id: PeerID) -> tuple[DHTID, PeerID] | None:
        """Note that a node was heard of just now.

        :returns: if its bucket is full, the member that should be pinged: it goes if it does not answer
        """
        if node_id == self.node_id or self._is_held_by_other(node_id, peer_id):
            return None
        former = self.peer_id_to_uid.get(peer_id)
        if former is not None and former != node_id:
            del self[former]
            # the replacement that came in its place may have that id
            if self._is_held_by_other(node_id, peer_id):
                return None
        bucket = self.buckets[self.get_bucket_index(node_id)]
        while not bucket.add_or_update_node(node_id, peer_id):
            if not self._may_split(bucket):
                return bucket.request_ping_node()
            index = self.get_bucket_index(node_id)
            halves = bucket.split()
            self.buckets[index : index + 1] = halves
            self._lowers.insert(index + 1, halves[1].lower)
            bucket = self.buckets[self.get_bucket_index(node_id)]
        self._index(node_id, peer_id)
        return None

    def touch(self, node_id: DHTID, peer_id: PeerID) -> bool:
        """Note that a member was heard of just now.

        :returns: False if it is none
        """
        if self.uid_to_peer_id.get(node_id) != peer_id:
            return False
        return self.buckets[self.get_bucket_index(node_id)].add_or_update_node(node_id, peer_id)

    def get(self, *, node_id: DHTID | None = None, peer_id: PeerID | None = None, default: Any = None) -> Any:
        """The peer of a node id, or the node id of a peer; ``default`` if it is unknown."""
        if node_id is not None:
            return self.uid_to_peer_id.get(node_id, default)
        return self.peer_id_to_uid.get(peer_id, default) if peer_id is not None else default

    def get_nearest_neighbors(
        self, query_id: DHTID, k: int, exclude: DHTID | None = None
    ) -> list[tuple[DHTID, PeerID]]:
        """Up to ``k`` known nodes nearest to ``query_id``, nearest first; never this node itself."""
        query = int(query_id)
        wanted = k + (exclude is not None)
        found: list[DHTID] = []
        for bucket in self._outward(query):
            found += bucket.nodes_to_peer_id
            if len(found) >= wanted:
                break
        found.sort(key=query.__xor__)
        peers = self.uid_to_peer_id
        return [(node_id, peers[node_id]) for node_id in found if node_id != exclude][:k]

    def has_nearer(self, query_id: DHTID, exclude: DHTID) -> bool:
        """Whether some node other than ``exclude`` is known to be nearer to ``query_id`` than this node, as far as its
        bucket alone tells: whoever is in the bucket of an id is nearer to it than a node outside of that."""
        bucket = self.buckets[self.get_bucket_index(query_id)]
        if bucket.has_in_range(self.node_id):
            return False
        return len(bucket.nodes_to_peer_id) > (exclude in bucket.nodes_to_peer_id)

    def _outward(self, query: int) -> Iterator[KBucket]:
        """The buckets by their distance from ``query``: seen from there, their ranges are disjoint intervals of
        distance. They are those of a binary tree; at each level on the way up the other half comes next."""
        first = bisect_right(self._lowers, query) - 1
        end = first + 1
        lower, size = self.buckets[first].lower, self.buckets[first].upper - self.buckets[first].lower
        yield self.buckets[first]
        while size < DHTID.MAX:
            # buckets[first:end] cover the range of this size that begins at lower
            if lower & size:
                lower -= size
                end_of_half, first = first, bisect_left(self._lowers, lower)
                half = self.buckets[first:end_of_half]
            else:
                begin_of_half, end = end, bisect_left(self._lowers, lower + 2 * size)
                half = self.buckets[begin_of_half:end]
            size *= 2
            if len(half) > 1:
                half.sort(key=lambda each: (each.lower ^ query) & -(each.upper - each.lower))
            yield from half

    def __len__(self) -> int:
        return sum(len(bucket.nodes_to_peer_id) for bucket in self.buckets)

    def __contains__(self, node: object) -> bool:
        return node in self.uid_to_peer_id or node in self.peer_id_to_uid

    def __iter__(self) -> Iterator[tuple[DHTID, PeerID]]:
        for bucket in self.buckets:
            yield from bucket.nodes_to_peer_id.items()

    def __getitem__(self, node: DHTID | PeerID) -> PeerID | DHTID:
        return self.uid_to_peer_id[node] if isinstance(node, DHTID) else self.peer_id_to_uid[node]

    def __setitem__(self, node_id: DHTID, peer_id: PeerID) -> None:
        self.add_or_update_node(node_id, peer_id)

    def __delitem__(self, node_id: DHTID) -> None:
        bucket = self.buckets[self.get_bucket_index(node_id)]
        promoted = bucket.remove(node_id)
        self.peer_id_to_uid.pop(self.uid_to_peer_id.pop(node_id), None)
        while promoted is not None:
            if promoted[1] not in self.peer_id_to_uid:
                self._index(*promoted)
                return
            # it has come back under another id since
            promoted = bucket.remove(promoted[0])

    def __repr__(self) -> str:
        return f"RoutingTable({len(self)} nodes in {len(self.buckets)} buckets)"

    def _may_split(self, bucket: KBucket) -> bool:
        if bucket.depth >= ID_BITS:
            return False
        return bucket.has_in_range(self.node_id) or bucket.depth % self.depth_modulo != 0

    def _is_held_by_other(self, node_id: DHTID, peer_id: PeerID) -> bool:
        return self.uid_to_peer_id.get(node_id, peer_id) != peer_id

    def _index(self, node_id: DHTID, peer_id: PeerID) -> None:
        self.uid_to_peer_id[node_id] = peer_id
        self.peer_id_to_uid[peer_id] = node_id
