"""One client of a peer of the in-memory network."""

from __future__ import annotations

from collections.abc import Sequence

from multiaddr import Multiaddr

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline
from hivemind.errors import (
    ConfigError,
    DaemonDied,
    DaemonStartError,
    P2PDaemonError,
    PeerUnreachable,
)
from hivemind.identity import PeerID, PeerInfo
from hivemind.p2p.limits import DEFAULT_MAX_MSG_SIZE, check_request
from hivemind.p2p.memory_call import MemoryCall, handler_of
from hivemind.p2p.memory_host import Host, Registration
from hivemind.p2p.memory_links import Links, Way
from hivemind.p2p.memory_stream import MemoryStream, stream_pair
from hivemind.p2p.serving import end_handlers, serve_stream
from hivemind.p2p.transport import Buffer, Mode, StreamHandler, UnaryHandler

__all__ = ["MemoryTransport"]


class MemoryTransport:
    """One client of a peer of the in-memory network (`transport.Transport`). Made by `MemoryNetwork.transport`."""

    __slots__ = ("_closed", "_host", "_initial_peers", "_links", "_names", "_scope")

    def __init__(self, links: Links, host: Host, initial_peers: Sequence[Multiaddr]) -> None:
        self._links = links
        self._host = host
        self._initial_peers = tuple(initial_peers)
        self._scope = TaskScope(f"handlers of {host.peer_id}")
        self._names: set[str] = set()
        self._closed = False

    @property
    def peer_id(self) -> PeerID:
        return self._host.peer_id

    @property
    def scope(self) -> TaskScope:
        """Owns the tasks of its handlers."""
        return self._scope

    async def start(self) -> None:
        self._host.clients.append(self)
        if self._initial_peers and not await self._bootstrap():
            await self.close()
            raise DaemonStartError(
                "failed to connect to bootstrap peers: " + ", ".join(map(str, self._initial_peers)),
                "check that they run and can be reached from here",
            )

    async def _bootstrap(self) -> bool:
        reached = False
        for address in self._initial_peers:
            try:
                await self._links.reach(self._host, _peer_of(address))
                reached = True
            except PeerUnreachable:
                continue
        return reached

    async def call(self, peer: PeerID, name: str, request: Buffer, deadline: Deadline) -> Buffer:
        self._check_open()
        deadline.check(f"call of {name}")
        data = request if isinstance(request, bytes) else bytes(request)
        check_request(len(data), len(peer.to_bytes()), name, DEFAULT_MAX_MSG_SIZE)
        links = self._links
        if links.is_cut(self._host.peer_id, peer):
            there = await with_deadline(links.reach(self._host, peer), deadline, f"call of {name} on {peer}")
        else:
            there = links.dial(self._host, peer)
        return await MemoryCall(links, self._host, there, name, data).run(deadline)

    async def open(self, peer: PeerID, name: str, mode: Mode, deadline: Deadline) -> MemoryStream:
        self._check_open()
        deadline.check(f"stream to {name}")
        return await with_deadline(self._open(peer, name, mode), deadline, f"stream to {name} on {peer}")

    async def _open(self, peer: PeerID, name: str, mode: Mode) -> MemoryStream:
        if mode is Mode.UNARY:
            raise ConfigError("mode", mode, "Mode.MESSAGES or Mode.RAW")
        links = self._links
        here, there = self._host, await links.reach(self._host, peer)
        await links.carry(here, there, 0)
        client, handler = handler_of(there, name, mode)
        near, far = stream_pair(here.peer_id, peer, mode, Way(links, here, there), Way(links, there, here))
        here.live[near], there.live[far] = peer, here.peer_id
        near.on_over = lambda: here.live.pop(near, None)
        far.on_over = lambda: there.live.pop(far, None)
        far.task = client.scope.start(serve_stream(handler, name, far), name=name)
        far.task.add_done_callback(lambda _: far.abandon())
        return near

    async def listen_unary(self, name: str, handler: UnaryHandler, *, balanced: bool = False) -> None:
        self._listen(name, Mode.UNARY, handler, balanced=balanced)

    async def listen_stream(self, name: str, mode: Mode, handler: StreamHandler, *, balanced: bool = False) -> None:
        if mode is Mode.UNARY:
            raise ConfigError("mode", mode, "Mode.MESSAGES or Mode.RAW")
        self._listen(name, mode, handler, balanced=balanced)

    def _listen(self, name: str, mode: Mode, handler: object, *, balanced: bool) -> None:
        self._check_open()
        known = self._host.handlers.get(name)
        if known is not None and (name in self._names or not (balanced and known.balanced and known.mode is mode)):
            raise P2PDaemonError(f"handler for protocol {name} already set")
        if known is None:
            known = self._host.handlers[name] = Registration(mode, balanced=balanced)
        known.entries.append((self, handler))
        self._names.add(name)

    async def unlisten(self, name: str) -> None:
        self._check_open()
        self._unlisten(name)

    def _unlisten(self, name: str) -> None:
        if name not in self._names:
            return
        self._names.discard(name)
        known = self._host.handlers[name]
        known.entries = [entry for entry in known.entries if entry[0] is not self]
        if not known.entries:
            del self._host.handlers[name]

    async def connect(self, peer: PeerID, addresses: Sequence[Multiaddr], deadline: Deadline) -> None:
        self._check_open()
        deadline.check(f"connecting to {peer}")
        if peer == self.peer_id:
            raise PeerUnreachable(f"{peer}: dial to self attempted")
        try:
            await with_deadline(self._links.reach(self._host, peer), deadline, f"connecting to {peer}")
        except PeerUnreachable as error:
            tried = ", ".join(map(str, addresses))
            raise PeerUnreachable(f"{error}; tried {tried}" if tried else str(error)) from None

    async def disconnect(self, peer: PeerID) -> None:
        self._check_open()
        host = self._links.hosts.get(peer)
        why = "the connection was closed"
        self._links.break_connection(self._host, peer, why)
        if host is not None:
            self._links.break_connection(host, self.peer_id, why)

    async def peers(self) -> list[PeerInfo]:
        self._check_open()
        hosts = self._links.hosts
        return [PeerInfo(peer, (hosts[peer].address(),)) for peer in self._host.connected if peer in hosts]

    async def addresses(self) -> list[Multiaddr]:
        self._check_open()
        return [self._host.address()]

    async def stats(self) -> dict[str, int]:
        self._check_open()
        return {"bytes_in": self._host.bytes_in, "bytes_out": self._host.bytes_out}

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        host = self._host
        for name in list(self._names):
            self._unlisten(name)
        await end_handlers(self._scope)
        if self in host.clients:
            host.clients.remove(self)
        if host.clients or host.dead:
            return
        self._links.remove(host, told=f"{host.peer_id} has left", own="this peer was closed")

    def _check_open(self) -> None:
        if self._closed:
            raise P2PDaemonError("this peer was closed")
        if self._host.dead:
            raise DaemonDied(-9, "killed by MemoryNetwork.kill")
        if self not in self._host.clients:
            raise P2PDaemonError("this peer was not started")


def _peer_of(address: Multiaddr) -> PeerID:
    text = address.value_for_protocol("p2p")
    return PeerID.from_base58(text)
