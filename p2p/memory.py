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

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from multiaddr import Multiaddr

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline
from hivemind.errors import (
    ConfigError,
    DaemonDied,
    DaemonStartError,
    P2PDaemonError,
    P2PHandlerError,
    PeerUnreachable,
    ProtocolNotSupported,
    StreamReset,
)
from hivemind.identity import PeerID, PeerInfo
from hivemind.p2p.faults import CLEAR, INFINITE, Conditions, Fault, combine
from hivemind.p2p.limits import DEFAULT_MAX_MSG_SIZE, check_request
from hivemind.p2p.memory_stream import MemoryStream, stream_pair
from hivemind.p2p.serving import answer, end_handlers, serve_stream
from hivemind.p2p.transport import Buffer, Mode, StreamHandler, UnaryHandler

if TYPE_CHECKING:
    from hivemind.p2p.p2p import P2P

__all__ = ["MemoryNetwork", "MemoryTransport"]

#: Seconds after which a connection that carries nothing is given up, and after which a dial is.
CONNECTION_TIMEOUT = 30.0
DIAL_TIMEOUT = 15.0


class _HasPeerID(Protocol):
    @property
    def peer_id(self) -> PeerID: ...


#: How a peer is named in the fault functions.
Peer = PeerID | _HasPeerID


class _Breakable(Protocol):
    """A call or one end of a stream: what ends when its connection breaks."""

    @property
    def remote_id(self) -> PeerID: ...

    def break_off(self, why: str) -> None: ...


class _Call:
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


class _Registration:
    """The handlers of one name: one client's, or those of several that share it."""

    __slots__ = ("balanced", "entries", "mode", "turn")

    def __init__(self, mode: Mode, *, balanced: bool) -> None:
        self.mode = mode
        self.balanced = balanced
        self.entries: list[tuple[MemoryTransport, Any]] = []
        self.turn = 0

    def pick(self) -> tuple[MemoryTransport, Any]:
        self.turn = (self.turn + 1) % len(self.entries)
        return self.entries[self.turn]


class _Host:
    """What several clients of one peer share, as those of one daemon do."""

    def __init__(self, peer_id: PeerID, number: int) -> None:
        self.peer_id = peer_id
        self.number = number
        self.clients: list[MemoryTransport] = []
        self.handlers: dict[str, _Registration] = {}
        self.connected: set[PeerID] = set()
        self.live: dict[_Breakable, None] = {}
        self.dead = False
        self.bytes_in = self.bytes_out = 0

    def address(self) -> Multiaddr:
        high, low = divmod(self.number, 250)
        return Multiaddr(f"/ip4/10.{high // 250}.{high % 250}.{low + 1}/tcp/4001/p2p/{self.peer_id}")


class _Way:
    """The way from one host to another (`memory_stream.Path`)."""

    __slots__ = ("_network", "_source", "_target")

    def __init__(self, network: MemoryNetwork, source: _Host, target: _Host) -> None:
        self._network = network
        self._source = source
        self._target = target

    def arrival(self, size: int) -> float | None:
        return self._network._arrival(self._source, self._target, size)

    def deliver(self, callback: Callable[[], None]) -> None:
        self._network._deliver(self._source, self._target, callback)


class MemoryNetwork:
    """The network; see the module for an example. Faults add up; each function returns a `Fault` that is healed by its
    `heal` method or as a context manager.

    :param seed: of ids, jitter and losses
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._hosts: dict[PeerID, _Host] = {}
        self._count = 0
        self._faults: list[Fault] = []
        # what holds between two peers now; emptied whenever a fault comes or goes
        self._known: dict[tuple[PeerID, PeerID], Conditions] = {}
        # when the line from one peer to another is free again (`bandwidth`)
        self._busy_until: dict[tuple[PeerID, PeerID], float] = {}
        self._changed: asyncio.Future[None] | None = None
        self._held: list[tuple[_Host, _Host, Callable[[], None]]] = []
        self._cut_timers: dict[Fault, asyncio.TimerHandle] = {}

    def transport(self, peer_id: PeerID | None = None, *, initial_peers: Sequence[Multiaddr] = ()) -> MemoryTransport:
        """A new peer's transport, or, with the id of a peer of this network, another client of that peer.

        :param peer_id: by default a fresh id
        :param initial_peers: addresses of peers; `start` fails if none of them answers
        """
        if peer_id is None:
            # the form of ids that hold an Ed25519 key
            peer_id = PeerID(bytes.fromhex("002408011220") + self._random.randbytes(32))
        host = self._hosts.get(peer_id)
        if host is None or host.dead:
            host = self._hosts[peer_id] = _Host(peer_id, self._count)
            self._count += 1
        return MemoryTransport(self, host, initial_peers)

    async def create_p2p(self, initial_peers: Sequence[Multiaddr] = (), *, peer_id: PeerID | None = None) -> P2P:
        """A new peer as `P2P`, started; close it with `P2P.shutdown`."""
        from hivemind.p2p.p2p import P2P

        return await P2P.over(self.transport(peer_id, initial_peers=initial_peers))

    @property
    def peers(self) -> list[PeerID]:
        """Those alive."""
        return [host.peer_id for host in self._hosts.values() if not host.dead]

    def partition(self, a: Peer | Iterable[Peer], b: Peer | Iterable[Peer] | None = None) -> Fault:
        """Cut ``a`` (a peer or several) from ``b``, or from all others. What is sent meanwhile is held up, as by TCP:
        it travels on after `Fault.heal`, and after 30 s its connection breaks."""
        left = _ids(a)
        right = None if b is None else _ids(b)

        def applies(source: PeerID, target: PeerID) -> bool:
            if right is None:
                return (source in left) != (target in left)
            return (source in left and target in right) or (source in right and target in left)

        return self._begin("partition", Conditions(cut=True), applies)

    def freeze(self, peer: Peer) -> Fault:
        """Stop ``peer`` as SIGSTOP does: its connections stay, nothing goes in or out. (Its tasks go on computing.)"""
        return self.partition(peer)

    def delay(self, seconds: float, *, jitter: float = 0.0, between: tuple[Peer, Peer] | None = None) -> Fault:
        """Everything arrives ``seconds``, and up to ``jitter`` seconds more, after it was sent, each way."""
        return self._begin(f"delay {seconds} s", Conditions(delay=seconds, jitter=jitter), _both_ways(between))

    def drop(self, probability: float, *, between: tuple[Peer, Peer] | None = None) -> Fault:
        """Each message is lost with ``probability``; with it its stream or call breaks (`StreamReset`), as streams of
        libp2p do."""
        return self._begin(f"drop {probability}", Conditions(loss=probability), _both_ways(between))

    def bandwidth(self, bytes_per_second: float, *, between: tuple[Peer, Peer] | None = None) -> Fault:
        """Each direction of each pair of peers carries no more than ``bytes_per_second``."""
        return self._begin(f"bandwidth {bytes_per_second} B/s", Conditions(rate=bytes_per_second), _both_ways(between))

    def kill(self, peer: Peer) -> None:
        """End ``peer`` as ``kill -9`` does: its calls and streams break, new calls to it find nobody; the peer's own
        transports raise `DaemonDied`."""
        host = self._hosts.get(_id(peer))
        if host is None or host.dead:
            return
        host.dead = True
        for other in self._hosts.values():
            if host.peer_id in other.connected:
                self._break(other, host.peer_id, f"the connection to {host.peer_id} broke")
        for live in list(host.live):
            live.break_off("killed")
        for client in host.clients:
            for task in client._scope.tasks:
                task.cancel()
        self._hosts.pop(host.peer_id)

    # -- for transports --------------------------------------------------------------------------------------------

    def _begin(self, what: str, conditions: Conditions, applies: Callable[[PeerID, PeerID], bool]) -> Fault:
        fault = Fault(what, conditions, applies)
        fault.on_heal = self._heal
        self._faults.append(fault)
        self._known.clear()
        if conditions.cut:
            loop = asyncio.get_running_loop()
            self._cut_timers[fault] = loop.call_later(CONNECTION_TIMEOUT, self._break_cut, fault)
        return fault

    def _heal(self, fault: Fault) -> None:
        self._faults.remove(fault)
        self._known.clear()
        timer = self._cut_timers.pop(fault, None)
        if timer is None:
            return
        timer.cancel()
        held, self._held = self._held, []
        for source, target, callback in held:
            self._deliver(source, target, callback)
        for host in list(self._hosts.values()):
            for live in list(host.live):
                if isinstance(live, MemoryStream) and not self._conditions(live.remote_id, host.peer_id).cut:
                    live.released()
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)

    def _break_cut(self, fault: Fault) -> None:
        for host in list(self._hosts.values()):
            for remote in list(host.connected):
                if fault.applies(host.peer_id, remote) or fault.applies(remote, host.peer_id):
                    self._break(host, remote, f"the connection to {remote} broke: nothing came for a while")

    def _break(self, host: _Host, remote: PeerID, why: str) -> None:
        host.connected.discard(remote)
        for live in list(host.live):
            if live.remote_id == remote:
                live.break_off(why)

    def _conditions(self, source: PeerID, target: PeerID) -> Conditions:
        if not self._faults:
            return CLEAR
        key = (source, target)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = combine(self._faults, source, target)
        return known

    def _arrival(self, source: _Host, target: _Host, size: int) -> float | None:
        now = asyncio.get_running_loop().time()
        if not self._faults:
            _count(source, target, size)
            return now
        conditions = self._conditions(source.peer_id, target.peer_id)
        if conditions.loss and self._random.random() < conditions.loss:
            raise StreamReset(f"the connection between {source.peer_id} and {target.peer_id} broke: a message was lost")
        if conditions.cut:
            return None
        sent = now
        if conditions.rate < INFINITE:
            line = (source.peer_id, target.peer_id)
            sent = max(now, self._busy_until.get(line, 0.0)) + size / conditions.rate
            self._busy_until[line] = sent
        jitter = self._random.random() * conditions.jitter if conditions.jitter else 0.0
        _count(source, target, size)
        return sent + conditions.delay + jitter

    def _deliver(self, source: _Host, target: _Host, callback: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        conditions = self._conditions(source.peer_id, target.peer_id)
        if conditions.cut:
            self._held.append((source, target, callback))
        elif conditions.delay:
            loop.call_later(conditions.delay, callback)
        else:
            loop.call_soon(callback)

    async def _wait_for_way(self, source: _Host, target: PeerID, seconds: float) -> None:
        """Wait until nothing cuts the way.

        :raises PeerUnreachable: if that takes longer than ``seconds``
        """
        deadline = Deadline.after(seconds)
        while self._conditions(source.peer_id, target).cut:
            if self._changed is None or self._changed.done():
                self._changed = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(deadline.timeout()):
                    await asyncio.shield(self._changed)
            except TimeoutError:
                raise PeerUnreachable(f"{target} does not answer: dial timed out") from None

    async def _carry(self, source: _Host, target: _Host, size: int) -> None:
        """Wait while a message of ``size`` bytes travels.

        :raises StreamReset: if it is lost on the way
        """
        while (at := self._arrival(source, target, size)) is None:
            try:
                await self._wait_for_way(source, target.peer_id, CONNECTION_TIMEOUT)
            except PeerUnreachable as error:
                raise StreamReset(f"the connection to {target.peer_id} broke: nothing came for a while") from error
        wait = at - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
        if target.dead:
            raise StreamReset(f"the connection to {target.peer_id} broke")

    async def _reach(self, source: _Host, peer: PeerID) -> _Host:
        """Dial ``peer`` unless connected.

        :raises PeerUnreachable: if it is dead, unknown, oneself or cut off
        """
        if peer == source.peer_id:
            raise PeerUnreachable(f"{peer}: dial to self attempted")
        if self._faults:
            await self._wait_for_way(source, peer, DIAL_TIMEOUT)
        host = self._hosts.get(peer)
        if host is None or not host.clients:
            raise PeerUnreachable(f"{peer}: routing: not found")
        source.connected.add(peer)
        host.connected.add(source.peer_id)
        return host


def _count(source: _Host, target: _Host, size: int) -> None:
    source.bytes_out += size
    target.bytes_in += size


def _both_ways(between: tuple[Peer, Peer] | None) -> Callable[[PeerID, PeerID], bool]:
    if between is None:
        return lambda source, target: True
    pair = {_id(between[0]), _id(between[1])}
    return lambda source, target: {source, target} == pair


def _id(peer: Peer) -> PeerID:
    return peer if isinstance(peer, PeerID) else peer.peer_id


def _ids(peers: Peer | Iterable[Peer]) -> set[PeerID]:
    if isinstance(peers, Iterable):
        return {_id(each) for each in peers}
    return {_id(peers)}


class MemoryTransport:
    """One client of a peer of the in-memory network (`transport.Transport`). Made by `MemoryNetwork.transport`."""

    def __init__(self, network: MemoryNetwork, host: _Host, initial_peers: Sequence[Multiaddr]) -> None:
        self.network = network
        self._host = host
        self._initial_peers = tuple(initial_peers)
        self._scope = TaskScope(f"handlers of {host.peer_id}")
        self._names: set[str] = set()
        self._closed = False

    @property
    def peer_id(self) -> PeerID:
        return self._host.peer_id

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
                await self.network._reach(self._host, _peer_of(address))
                reached = True
            except PeerUnreachable:
                continue
        return reached

    async def call(self, peer: PeerID, name: str, request: Buffer, deadline: Deadline) -> Buffer:
        self._check_open()
        deadline.check(f"call of {name}")
        data = request if isinstance(request, bytes) else bytes(request)
        check_request(len(data), len(peer.to_bytes()), name, DEFAULT_MAX_MSG_SIZE)
        return await with_deadline(self._call(peer, name, data), deadline, f"call of {name} on {peer}")

    async def _call(self, peer: PeerID, name: str, data: bytes) -> Buffer:
        network = self.network
        here, there = self._host, await network._reach(self._host, peer)
        await network._carry(here, there, len(data))
        client, handler = _handler_of(there, name, Mode.UNARY)
        outcome: asyncio.Future[tuple[Buffer | None, str]] = asyncio.get_running_loop().create_future()
        near, far = _Call(peer, outcome), _Call(here.peer_id, outcome)
        near.task = far.task = client._scope.start(_serve_call(handler, name, data, here.peer_id, outcome), name=name)
        near.task.add_done_callback(lambda _: _give_up(outcome, name))
        here.live[near] = there.live[far] = None
        try:
            result, error = await outcome
        except asyncio.CancelledError:
            task = near.task
            network._deliver(here, there, lambda: _cancel(task))
            raise
        finally:
            here.live.pop(near, None)
            there.live.pop(far, None)
        await network._carry(there, here, len(error) if result is None else len(result))
        if result is None:
            raise P2PHandlerError(error)
        return result if isinstance(result, bytes) else bytes(result)

    async def open(self, peer: PeerID, name: str, mode: Mode, deadline: Deadline) -> MemoryStream:
        self._check_open()
        deadline.check(f"stream to {name}")
        return await with_deadline(self._open(peer, name, mode), deadline, f"stream to {name} on {peer}")

    async def _open(self, peer: PeerID, name: str, mode: Mode) -> MemoryStream:
        if mode is Mode.UNARY:
            raise ConfigError("mode", mode, "Mode.MESSAGES or Mode.RAW")
        network = self.network
        here, there = self._host, await network._reach(self._host, peer)
        await network._carry(here, there, 0)
        client, handler = _handler_of(there, name, mode)
        near, far = stream_pair(here.peer_id, peer, mode, _Way(network, here, there), _Way(network, there, here))
        here.live[near] = there.live[far] = None
        near.on_over = lambda: here.live.pop(near, None)
        far.on_over = lambda: there.live.pop(far, None)
        far.task = client._scope.start(serve_stream(handler, name, far), name=name)
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
            known = self._host.handlers[name] = _Registration(mode, balanced=balanced)
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
        try:
            await with_deadline(self.network._reach(self._host, peer), deadline, f"connecting to {peer}")
        except PeerUnreachable as error:
            tried = ", ".join(map(str, addresses))
            raise PeerUnreachable(f"{error}; tried {tried}" if tried else str(error)) from None

    async def disconnect(self, peer: PeerID) -> None:
        self._check_open()
        host = self.network._hosts.get(peer)
        why = "the connection was closed"
        self.network._break(self._host, peer, why)
        if host is not None:
            self.network._break(host, self.peer_id, why)

    async def peers(self) -> list[PeerInfo]:
        self._check_open()
        hosts = self.network._hosts
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
        host.dead = True
        if self.network._hosts.get(host.peer_id) is host:
            del self.network._hosts[host.peer_id]
        for remote in list(host.connected):
            other = self.network._hosts.get(remote)
            if other is not None:
                self.network._break(other, host.peer_id, f"{host.peer_id} has left")
        for live in list(host.live):
            live.break_off("this peer was closed")

    def _check_open(self) -> None:
        if self._closed:
            raise P2PDaemonError("this peer was closed")
        if self._host.dead:
            raise DaemonDied(-9, "killed by MemoryNetwork.kill")
        if self not in self._host.clients:
            raise P2PDaemonError("this peer was not started")


async def _serve_call(
    handler: UnaryHandler, name: str, data: bytes, remote: PeerID, outcome: asyncio.Future[tuple[Buffer | None, str]]
) -> None:
    result = await answer(handler, name, data, remote, DEFAULT_MAX_MSG_SIZE)
    if not outcome.done():
        outcome.set_result(result)


def _give_up(outcome: asyncio.Future[tuple[Buffer | None, str]], name: str) -> None:
    if not outcome.done():
        outcome.set_exception(StreamReset(f"call of {name}: the peer gave up"))


def _cancel(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()


def _handler_of(host: _Host, name: str, mode: Mode) -> tuple[MemoryTransport, Any]:
    known = host.handlers.get(name)
    if known is None or known.mode is not mode:
        raise ProtocolNotSupported(f"{host.peer_id}: protocol not supported: {name}")
    return known.pick()


def _peer_of(address: Multiaddr) -> PeerID:
    text = address.value_for_protocol("p2p")
    return PeerID.from_base58(text)
