"""How the node of a `DHT` is made: on a daemon of its own or a given one, or as a copy on that of another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiaddr import Multiaddr

from hivemind.dht.bootstrap import join_through_home
from hivemind.dht.config import DHTNodeOptions
from hivemind.dht.home import Home
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import CompositeValidator
from hivemind.errors import P2PDaemonError
from hivemind.p2p import P2P, AuthorizerBase

__all__ = ["CopyRecipe", "NodeRecipe", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every node is made from. Validators may be added later; they are shared with the node."""

    initial_peers: tuple[Multiaddr, ...]
    options: DHTNodeOptions
    validators: CompositeValidator
    authorizer: AuthorizerBase | None

    @property
    def client_mode(self) -> bool:
        """Whether the peer only calls."""
        return self.options.client_mode

    async def make_node(self) -> DHTNode:
        """Make the node and join.

        :raises P2PDaemonError: if that fails; nothing is left then
        """
        raise NotImplementedError

    async def end_node(self, node: DHTNode) -> None:
        """End the node and what was made for it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NodeRecipe(Recipe):
    """A node on a daemon of its own, or on that of a given peer, which stays its owner's.

    :param p2p: the given peer; of any loop, if it has a daemon
    :param p2p_options: of `P2PConfig`, for an own daemon
    :param node_id: None: a random one
    """

    p2p: P2P | None
    node_id: DHTID | None = None
    # not shown: a swarm key may be among them
    p2p_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    async def make_node(self) -> DHTNode:
        p2p = None if self.p2p is None else await _share(self.p2p)
        try:
            return await DHTNode.create(
                p2p=p2p,
                node_id=self.node_id,
                initial_peers=self.initial_peers,
                record_validator=self.validators,
                authorizer=self.authorizer,
                **vars(self.options),
                **self.p2p_options,
            )
        except BaseException:
            if p2p is not None and p2p is not self.p2p:
                await p2p.shutdown()
            raise

    async def end_node(self, node: DHTNode) -> None:
        await node.shutdown()
        if self.p2p is not None and node.p2p is not self.p2p:
            await node.p2p.shutdown()


async def _share(p2p: P2P) -> P2P:
    """A peer on the daemon of ``p2p`` for this loop; one that has no daemon is of this loop already."""
    try:
        address = p2p.daemon_listen_maddr
    except P2PDaemonError:
        return p2p
    return await P2P.replicate(address)


@dataclass(frozen=True, kw_only=True)
class CopyRecipe(Recipe):
    """A node on the daemon of another process, whose own node answers for the peer. Picklable.

    :param daemon: where the daemon is reached
    :param door: where its process answers as a node of the DHT
    :param only_calls: whether the peer is in client mode
    """

    daemon: str
    door: str
    only_calls: bool

    @property
    def client_mode(self) -> bool:
        return self.only_calls

    async def make_node(self) -> DHTNode:
        p2p = await P2P.replicate(Multiaddr(self.daemon))
        try:
            node = await DHTNode.create(
                p2p=p2p, record_validator=self.validators, authorizer=self.authorizer, **vars(self.options)
            )
            try:
                node.contacts.initial_peers = self.initial_peers
                node.protocol.home = Home(Path(self.door), p2p.peer_id)
                await join_through_home(node.contacts, node.finder)
            except BaseException:
                await node.shutdown()
                raise
        except BaseException:
            await p2p.shutdown()
            raise
        return node

    async def end_node(self, node: DHTNode) -> None:
        await node.shutdown()
        await node.p2p.shutdown()
