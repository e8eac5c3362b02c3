"""The other nodes, as one node sees them: whom it may ask, and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from multiaddr import Multiaddr

from hivemind.aio import TaskScope
from hivemind.dht.blacklist import Blacklist
from hivemind.dht.config import DHTNodeOptions
from hivemind.dht.lookup import Node
from hivemind.dht.messages import FoundValue, Seen
from hivemind.dht.outgoing import Record
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.errors import ValidationError
from hivemind.identity import PeerID

__all__ = ["Contacts"]


class Contacts:
    """Calls of one node to others. Owned by the network thread.

    A peer that does not answer is left alone for a while, and then on trial: it is pinged in the background, and asked
    again when it has answered. A search that asked it instead would wait for the whole timeout, each time that a dead
    peer's while is over.

    :param protocol: the node's own side
    :param initial_peers: where the swarm was joined, and is joined again
    :param scope: owns what goes on in the background
    """

    def __init__(
        self, protocol: DHTProtocol, options: DHTNodeOptions, initial_peers: tuple[Multiaddr, ...], scope: TaskScope
    ) -> None:
        self.scope = scope
        self.protocol = protocol
        self.options = options
        self.initial_peers = initial_peers
        self.node_id = protocol.node_id
        #: peers that are left alone
        self.blacklist = Blacklist(options.blacklist_time, options.backoff_rate)
        self._trials: dict[PeerID, asyncio.Task[bool]] = {}

    @property
    def peer_id(self) -> PeerID:
        """The peer of this node itself."""
        return self.protocol.p2p.peer_id

    def near(self, target: DHTID, count: int) -> list[Node]:
        """Up to ``count`` known nodes nearest to ``target``, nearest first, without those that are left alone."""
        known = self.protocol.routing_table.get_nearest_neighbors(target, count)
        return [each for each in known if each[1] not in self.blacklist]

    async def find(
        self, peer: PeerID, keys: Sequence[DHTID], node_id: DHTID, seen: Seen | None = None, *, values: bool = True
    ) -> dict[DHTID, tuple[FoundValue | None, dict[DHTID, PeerID]]] | None:
        """`DHTProtocol.call_find`; None also if the peer is left alone, or on trial and not the last hope."""
        if peer in self.blacklist:
            return None
        if self.doubts(peer) and not self.scope.closed:
            trial = self._try(peer)
            if len(self.protocol.routing_table) or not await asyncio.shield(trial):
                return None
        answer = await self.protocol.call_find(peer, keys, node_id, seen, values=values)
        self._note(peer, answered=answer is not None)
        return answer

    async def store(self, peer: PeerID, records: Sequence[Record]) -> list[bool] | None:
        """`DHTProtocol.call_store`, also to a peer that is left alone or on trial."""
        keys, values, expirations, subkeys = zip(
            *((each.key, each.value, each.expiration_time, each.subkey) for each in records), strict=True
        )
        answer = await self.protocol.call_store(peer, keys, values, expirations, subkeys)
        self._note(peer, answered=answer is not None)
        return answer

    def doubts(self, peer: PeerID) -> bool:
        """Whether ``peer`` is left alone or on trial: it did not answer when it was called last."""
        return self.blacklist[peer] > 0

    def _try(self, peer: PeerID) -> asyncio.Task[bool]:
        """The trial of ``peer``: a ping, whose result is whether it has answered."""
        trial = self._trials.get(peer)
        if trial is None:
            trial = self._trials[peer] = self.scope.start(self._ping(peer), name="trial of a peer that was silent")
            trial.add_done_callback(lambda _: self._trials.pop(peer))
        return trial

    async def _ping(self, peer: PeerID) -> bool:
        try:
            answered = await self.protocol.call_ping(peer) is not None
        except ValidationError:  # in client mode: it has nothing to ask for
            answered = False
        self._note(peer, answered=answered)
        return answered

    def _note(self, peer: PeerID, *, answered: bool) -> None:
        if answered:
            self.blacklist.register_success(peer)
        else:
            self.blacklist.register_failure(peer)
