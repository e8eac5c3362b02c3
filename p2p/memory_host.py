"""Peers of the in-memory network: what the clients of one peer share, and what breaks with a connection."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from multiaddr import Multiaddr

from hivemind.aio import TaskScope
from hivemind.errors import StreamReset
from hivemind.identity import PeerID
from hivemind.p2p.transport import Buffer, Mode

__all__ = ["Breakable", "Call", "Client", "Host", "Registration"]


class Client(Protocol):
    """A transport, as its host knows it."""

    @property
    def scope(self) -> TaskScope:
        """Owns its handlers' tasks."""
        ...


class Breakable(Protocol):
    """A call or one end of a stream: what ends when its connection breaks."""

    @property
    def remote_id(self) -> PeerID: ...

    def break_off(self, why: str) -> None: ...


class Call:
    """A unary call on its way, known to both peers."""

    __slots__ = ("outcome", "remote_id", "task")

    def __init__(self, remote_id: PeerID, outcome: asyncio.Future[tuple[Buffer | None, str]]) -> None:
        self.remote_id = remote_id
        self.outcome = outcome
        self.task: asyncio.Task[Any] | None = None

    def break_off(self, why: str) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(StreamReset(why))
        if self.task is not None:
            self.task.cancel()


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

    def __init__(self, peer_id: PeerID, number: int) -> None:
        self.peer_id = peer_id
        self.number = number
        self.clients: list[Client] = []
        self.handlers: dict[str, Registration] = {}
        self.connected: set[PeerID] = set()
        self.live: dict[Breakable, None] = {}
        self.dead = False
        self.bytes_in = self.bytes_out = 0

    def address(self) -> Multiaddr:
        high, low = divmod(self.number, 250)
        return Multiaddr(f"/ip4/10.{high // 250}.{high % 250}.{low + 1}/tcp/4001/p2p/{self.peer_id}")
