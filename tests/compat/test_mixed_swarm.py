"""Eight nodes of 1.1.12 and eight of this library in one DHT: what either stores, all read; copies cross over."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import pydantic

from hivemind.crypto import Ed25519PrivateKey, RSAPrivateKey
from hivemind.dht import DHT, DHTID, DHTNode, Ed25519SignatureValidator, RSASignatureValidator, SchemaValidator
from tests.compat.nodes import LegacyNode, OurNode, eventually
from tests.compat.pairs import LOCAL
from tests.compat.test_dht import SUBKEYS, VALUES, assert_same
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

EACH = 8
LIFETIME = 600.0
REPLICAS = 5


class Schema(pydantic.BaseModel):
    """As in `legacy_commands`."""

    losses: dict[bytes, pydantic.StrictFloat]


class MixedSwarm:
    """Nodes of both kinds, joined in turn, each through the first."""

    def __init__(self, stack: contextlib.ExitStack, legacy: LegacyPeers) -> None:
        self.stack = stack
        #: one process starts all nodes of 1.1.12, which forks each
        self.process = legacy.spawn()
        self.ours: list[OurNode] = []
        self.theirs: list[LegacyNode] = []
        self.mark_of_theirs = b""
        #: the validators of each of ours
        self.signers: list[tuple[RSASignatureValidator, Ed25519SignatureValidator]] = []
        for _ in range(EACH):
            self.add_legacy()
            self.add_ours()
        self.ids: dict[str, DHTID] = {}
        self.learn_ids()

    @property
    def nodes(self) -> list[OurNode | LegacyNode]:
        return [*self.theirs, *self.ours]

    def add_legacy(self, **options: Any) -> LegacyNode:
        """One more node of 1.1.12, with validators; all have the key of their process."""
        name = f"d{len(self.theirs)}"
        maddrs = self.theirs[0].maddrs if self.theirs else []
        started = self.process.call("dht_start", name=name, initial_peers=maddrs, **options)
        self.theirs.append(LegacyNode(self.process, started, name))
        self.mark_of_theirs = self.process.call("dht_validate", name=name).encode()
        return self.theirs[-1]

    def add_ours(self, **options: Any) -> OurNode:
        """One more of ours, with validators and keys of its own."""
        signers = RSASignatureValidator(RSAPrivateKey()), Ed25519SignatureValidator(Ed25519PrivateKey())
        validators = (*signers, SchemaValidator(Schema, prefix="run"))
        maddrs = self.theirs[0].maddrs
        dht = DHT(initial_peers=maddrs, start=True, record_validators=validators, **LOCAL, **options)
        self.ours.append(OurNode(self.stack.enter_context(dht)))
        self.signers.append(signers)
        return self.ours[-1]

    def learn_ids(self) -> None:
        """Find out the ids of all nodes."""

        async def look(dht: DHT, node: DHTNode) -> dict[str, DHTID]:
            found = await node.find_nearest_nodes([DHTID(0)], k_nearest=4 * EACH)
            return {peer_id.to_base58(): node_id for node_id, peer_id in found[DHTID(0)].items()}

        self.ids = self.ours[0].dht.run_coroutine(look)
        assert self.ids.keys() == {node.peer_id for node in self.nodes}

    def by_distance(self, key: Any) -> list[OurNode | LegacyNode]:
        """The nodes by their distance from a key."""
        place = DHTID.generate(source=key)
        return sorted(self.nodes, key=lambda node: self.ids[node.peer_id] ^ place)

    def keys_near(self, kind: str, count: int) -> list[str]:
        """Keys whose nearest node is of this kind."""
        keys = (f"near {kind} {number}" for number in itertools.count())
        return list(itertools.islice((key for key in keys if self.by_distance(key)[0].kind == kind), count))


@repeat_on_legacy_fault
def test_eight_and_eight(legacy: LegacyPeers) -> None:
    with contextlib.ExitStack() as stack:
        swarm = MixedSwarm(stack, legacy)
        plain_values_and_tuples(swarm)
        entries_of_all(swarm)
        signed_and_schema_checked(swarm)
        owners_that_only_ours_know(swarm)
        copies_for_newcomers(swarm)
        copies_in_caches(swarm)


def plain_values_and_tuples(swarm: MixedSwarm) -> None:
    """Each node stores one value; those of the other kind read it, with its type."""
    for number, node in enumerate(swarm.nodes):
        assert node.store(("plain", number), VALUES[number % len(VALUES)], LIFETIME)
    for number, writer in enumerate(swarm.nodes):
        for reader in swarm.theirs if writer.kind == "ours" else swarm.ours:
            assert_same(reader.get(("plain", number), latest=False), VALUES[number % len(VALUES)])


def entries_of_all(swarm: MixedSwarm) -> None:
    """Entries of one dictionary, some stored by each kind."""
    expected: dict[Any, Any] = {}
    for number, node in enumerate(swarm.nodes):
        for subkey in (node.peer_id, ("tuple", number), *SUBKEYS[number : number + 1]):
            assert node.store("members", (number, subkey), LIFETIME + number, subkey=subkey)
            expected[subkey] = (number, subkey)
    for node in swarm.nodes:
        assert node.get("members") == expected


def signed_and_schema_checked(swarm: MixedSwarm) -> None:
    """All take entries that are signed and fit; a peer without validators cannot change them."""
    expected = {swarm.mark_of_theirs: 0.5}
    assert swarm.theirs[3].store("run_losses", 0.5, LIFETIME, subkey=swarm.mark_of_theirs)
    for number, (node, (signer, _)) in enumerate(zip(swarm.ours, swarm.signers, strict=True)):
        assert node.store("run_losses", number / 8, LIFETIME, subkey=signer.local_public_key)
        expected[signer.local_public_key] = number / 8
    stranger = OurNode(
        swarm.stack.enter_context(DHT(initial_peers=swarm.theirs[0].maddrs, start=True, client_mode=True, **LOCAL))
    )
    for subkey in (swarm.mark_of_theirs, swarm.signers[0][0].local_public_key):
        assert not stranger.store("run_losses", 9.0, 2 * LIFETIME, subkey=subkey)
    assert not stranger.store("run_losses", "text", 2 * LIFETIME, subkey=b"of nobody")
    for node in swarm.nodes:
        assert node.get("run_losses") == expected


def owners_that_only_ours_know(swarm: MixedSwarm) -> None:
    """Records of Ed25519 owners come back from nodes of 1.1.12 as they were, when nobody else holds them."""
    (key,), owner = swarm.keys_near("legacy", 1), swarm.signers[2][1].local_public_key
    assert swarm.ours[2].store(key, [1, ("a", b"b")], LIFETIME, subkey=owner)
    for node in swarm.ours:
        drop(node, key)
    for node in swarm.ours:
        assert node.get(key) == {owner: [1, ("a", b"b")]}


def copies_for_newcomers(swarm: MixedSwarm) -> None:
    """A newcomer nearest to a key is given its record, plain or a dictionary, by a node of the other kind."""
    for kind in ("legacy", "ours"):
        for key, subkey in zip(swarm.keys_near(kind, 2), (None, "s"), strict=True):
            assert swarm.ours[1].store(key, "wanders", LIFETIME, subkey=subkey)
            place = DHTID(DHTID.generate(source=key) ^ 1)
            newcomer: OurNode | LegacyNode
            if kind == "ours":
                newcomer = swarm.add_legacy(node_id=place.to_bytes())
            else:
                newcomer = swarm.add_ours(node_id=place)
            assert eventually(lambda: holds(newcomer, key)["stored"]), f"{kind}, {subkey}"  # noqa: B023
            swarm.learn_ids()


def copies_in_caches(swarm: MixedSwarm) -> None:
    """Who finds a value gives a copy to the nearest node that does not have it, of either kind."""
    for kind, readers in (("legacy", swarm.ours), ("ours", swarm.theirs)):
        # a nearest node that answers late is passed over: it may need more than one key
        assert any(is_given_a_copy(swarm, key, readers) for key in swarm.keys_near(kind, 10)[5:]), kind


def is_given_a_copy(swarm: MixedSwarm, key: str, readers: Sequence[OurNode | LegacyNode]) -> bool:
    """Whether the nearest node to a key, that has lost it, has a copy after somebody else has read it."""
    assert swarm.ours[0].store(key, 1, LIFETIME)
    nearest, *others = swarm.by_distance(key)
    drop(nearest, key)
    assert holds(nearest, key) == {"stored": False, "cached": False}
    reader = next(node for node in others[REPLICAS:] if node in readers)
    assert reader.get(key, latest=False) == 1
    return eventually(lambda: holds(nearest, key)["cached"], seconds=5)


def holds(node: OurNode | LegacyNode, key: Any) -> dict[str, bool]:
    """Whether a node itself has a key: ``stored``, ``cached``."""
    if isinstance(node, LegacyNode):
        copies: dict[str, bool] = node.process.call("dht_copies", name=node.name, key=key)
        return copies

    async def look(dht: DHT, node: DHTNode) -> dict[str, bool]:
        key_id = DHTID.generate(source=key)
        return {"stored": key_id in node.protocol.storage, "cached": key_id in node.protocol.cache}

    return node.dht.run_coroutine(look)


def drop(node: OurNode | LegacyNode, key: Any) -> None:
    """Have a node hold a key no more."""
    if isinstance(node, LegacyNode):
        node.process.call("dht_drop", name=node.name, key=key)
        return

    async def forget(dht: DHT, node: DHTNode) -> None:
        for place in (node.protocol.storage, node.protocol.cache):
            if DHTID.generate(source=key) in place:
                del place[DHTID.generate(source=key)]

    node.dht.run_coroutine(forget)
