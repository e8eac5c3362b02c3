"""Peers of the in-memory network: what the clients of one peer share, and what breaks with a connection."""

from __future__ import annotations

from typing import Any, Protocol

from multiaddr import Multiaddr

from hivemind.aio import TaskScope
from hivemind.identity import PeerID
from hivemind.p2p.transport import Mode

__all__ = ["Breakable", "Client", "Host", "Registration"]


class Client(Protocol):
    """A transport, as its host knows it."""

    @property
    def scope(self) -> TaskScope:
        """Owns its handlers' tasks."""
        ...


class Breakable(Protocol):
    """A call or one end of a stream: what ends when its connection breaks."""

    def break_off(self, why: str) -> None: ...


class Registration:
    """The handlers of one name: one client's, or those of several that share it."""

    __slots__ = ("balanced", "entries", "mode", "turn")

    def __init__(self, mode: Mode, *, balanced: bool) -> None:
        self.mode = mode
        self.balanced = balanced
        self.entries: list[tuple[Client, Any]] = []
        self.turn = 0

    def pick(self) -> tuple[Client, Any]:
        self.turn = (self.turn + 1) % len(self.entries)
        return self.entries[self.turn]


class Host:
    """What several clients of one peer share, as those of one daemon do."""

    __slots__ = ("bytes_in", "bytes_out", "clients", "connected", "dead", "handlers", "live", "number", "peer_id")

    def __init__(self, peer_id: PeerID, number: int) -> None:
        self.peer_id = peer_id
        self.number = number
        self.clients: list[Client] = []
        self.handlers: dict[str, Registration] = {}
        self.connected: set[PeerID] = set()
        #: calls and streams of this peer, with the peer at their other end
        self.live: dict[Breakable, PeerID] = {}
        self.dead = False
        self.bytes_in = self.bytes_out = 0

    def address(self) -> Multiaddr:
        high, low = divmod(self.number, 250)
        return Multiaddr(f"/ip4/10.{high // 250}.{high % 250}.{low + 1}/tcp/4001/p2p/{self.peer_id}")
