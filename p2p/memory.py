"""A network inside one process, for tests and simulations: the same seam as the daemon, with faults by name.

::

    async def main():
        net = MemoryNetwork(seed=0)
        alice, bob = await net.create_p2p(), await net.create_p2p()
        with net.partition(alice, bob):
            ...                     # nothing passes between the two
        net.delay(0.05)             # from now on 50 ms between all
        net.kill(bob)               # as by kill -9

    hivemind.virtual_clock.run_virtual(main)

On a virtual-clock loop it is deterministic: peer ids, jitter and losses come from one seeded generator. All of it
belongs to one loop. Peers find each other by id alone, as through the daemon's routing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from multiaddr import Multiaddr

from hivemind.identity import PeerID
from hivemind.p2p.faults import Conditions, Fault
from hivemind.p2p.memory_host import Host
from hivemind.p2p.memory_links import Links
from hivemind.p2p.memory_transport import MemoryTransport

if TYPE_CHECKING:
    from hivemind.p2p.p2p import P2P

__all__ = ["MemoryNetwork", "MemoryTransport"]


class _HasPeerID(Protocol):
    @property
    def peer_id(self) -> PeerID: ...


#: How a peer is named in the fault functions.
Peer = PeerID | _HasPeerID


class MemoryNetwork:
    """The network; see the module for an example. Faults add up; each function returns a `Fault` that is healed by its
    `heal` method or as a context manager.

    :param seed: of ids, jitter and losses
    """

    def __init__(self, seed: int = 0) -> None:
        self._links = Links(seed)
        self._random = self._links.random
        self._count = 0

    def transport(self, peer_id: PeerID | None = None, *, initial_peers: Sequence[Multiaddr] = ()) -> MemoryTransport:
        """A new peer's transport, or, with the id of a peer of this network, another client of that peer.

        :param peer_id: by default a fresh id
        :param initial_peers: addresses of peers; `start` fails if none of them answers
        """
        if peer_id is None:
            # the form of ids that hold an Ed25519 key
            peer_id = PeerID(bytes.fromhex("002408011220") + self._random.randbytes(32))
        host = self._links.hosts.get(peer_id)
        if host is None or host.dead:
            host = self._links.hosts[peer_id] = Host(peer_id, self._count)
            self._count += 1
        return MemoryTransport(self._links, host, initial_peers)

    async def create_p2p(self, initial_peers: Sequence[Multiaddr] = (), *, peer_id: PeerID | None = None) -> P2P:
        """A new peer as `P2P`, started; close it with `P2P.shutdown`."""
        from hivemind.p2p.p2p import P2P

        return await P2P.over(self.transport(peer_id, initial_peers=initial_peers))

    @property
    def peers(self) -> list[PeerID]:
        """Those alive."""
        return [host.peer_id for host in self._links.hosts.values() if not host.dead]

    def partition(self, a: Peer | Iterable[Peer], b: Peer | Iterable[Peer] | None = None) -> Fault:
        """Cut ``a`` (a peer or several) from ``b``, or from all others. What is sent meanwhile is held up, as by TCP:
        it travels on after `Fault.heal`, and after 30 s its connection breaks."""
        left = _ids(a)
        right = None if b is None else _ids(b)

        def applies(source: PeerID, target: PeerID) -> bool:
            if right is None:
                return (source in left) != (target in left)
            return (source in left and target in right) or (source in right and target in left)

        return self._links.begin("partition", Conditions(cut=True), applies)

    def freeze(self, peer: Peer) -> Fault:
        """Stop ``peer`` as SIGSTOP does: its connections stay, nothing goes in or out. (Its tasks go on computing.)"""
        return self.partition(peer)

    def delay(self, seconds: float, *, jitter: float = 0.0, between: tuple[Peer, Peer] | None = None) -> Fault:
        """Everything arrives ``seconds``, and up to ``jitter`` seconds more, after it was sent, each way."""
        return self._links.begin(f"delay {seconds} s", Conditions(delay=seconds, jitter=jitter), _both_ways(between))

    def drop(self, probability: float, *, between: tuple[Peer, Peer] | None = None) -> Fault:
        """Each message is lost with ``probability``; with it its stream or call breaks (`StreamReset`), as streams of
        libp2p do."""
        return self._links.begin(f"drop {probability}", Conditions(loss=probability), _both_ways(between))

    def bandwidth(self, bytes_per_second: float, *, between: tuple[Peer, Peer] | None = None) -> Fault:
        """Each direction of each pair of peers carries no more than ``bytes_per_second``."""
        return self._links.begin(
            f"bandwidth {bytes_per_second} B/s", Conditions(rate=bytes_per_second), _both_ways(between)
        )

    def kill(self, peer: Peer) -> None:
        """End ``peer`` as ``kill -9`` does: its calls and streams break, new calls to it find nobody; the peer's own
        transports raise `DaemonDied`."""
        host = self._links.hosts.get(_id(peer))
        if host is None or host.dead:
            return
        self._links.remove(host, told=f"the connection to {host.peer_id} broke", own="killed")
        for client in host.clients:
            for task in client.scope.tasks:
                task.cancel()


def _both_ways(between: tuple[Peer, Peer] | None) -> Callable[[PeerID, PeerID], bool] | None:
    if between is None:
        return None
    pair = {_id(between[0]), _id(between[1])}
    return lambda source, target: {source, target} == pair


def _id(peer: Peer) -> PeerID:
    return peer if isinstance(peer, PeerID) else peer.peer_id


def _ids(peers: Peer | Iterable[Peer]) -> set[PeerID]:
    if isinstance(peers, Iterable):
        return {_id(each) for each in peers}
    return {_id(peers)}
