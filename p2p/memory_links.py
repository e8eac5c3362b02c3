"""How messages travel on the in-memory network under the faults in force."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from hivemind.clock import Deadline
from hivemind.errors import PeerUnreachable, StreamReset
from hivemind.identity import PeerID
from hivemind.p2p.faults import CLEAR, INFINITE, Conditions, Fault, combine
from hivemind.p2p.memory_host import Host
from hivemind.p2p.memory_stream import MemoryStream

__all__ = ["Links", "Way"]

#: Seconds after which a connection that carries nothing is given up, and after which a dial is.
CONNECTION_TIMEOUT = 30.0
DIAL_TIMEOUT = 15.0


class Links:
    """All ways between the hosts of one network. Owned by one loop.

    :param seed: of jitter and losses, and of the ids that the network gives
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        #: those alive
        self.hosts: dict[PeerID, Host] = {}
        self._faults: list[Fault] = []
        # those that bear on some ways only, and what the others amount to
        self._local: list[Fault] = []
        self._everywhere = CLEAR
        self._combined: dict[tuple[Fault, ...], Conditions] = {}
        # when the line from one peer to another is free again (`bandwidth`)
        self._busy_until: dict[tuple[PeerID, PeerID], float] = {}
        self._changed: asyncio.Future[None] | None = None
        self._held: list[tuple[Host, Host, Callable[[], None]]] = []
        self._cut_timers: dict[Fault, asyncio.TimerHandle] = {}

    def begin(self, what: str, conditions: Conditions, applies: Callable[[PeerID, PeerID], bool] | None) -> Fault:
        fault = Fault(what, conditions, applies)
        fault.on_heal = self._heal
        self._faults.append(fault)
        self._sort()
        if conditions.cut:
            loop = asyncio.get_running_loop()
            self._cut_timers[fault] = loop.call_later(CONNECTION_TIMEOUT, self._break_cut, fault)
        return fault

    def _heal(self, fault: Fault) -> None:
        self._faults.remove(fault)
        self._sort()
        timer = self._cut_timers.pop(fault, None)
        if timer is None:
            return
        timer.cancel()
        held, self._held = self._held, []
        for source, target, callback in held:
            self.deliver(source, target, callback)
        for host in list(self.hosts.values()):
            for live, remote in list(host.live.items()):
                if isinstance(live, MemoryStream) and not self.is_cut(remote, host.peer_id):
                    live.released()
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)

    def _sort(self) -> None:
        self._local = [fault for fault in self._faults if fault.applies is not None]
        self._everywhere = combine(fault.conditions for fault in self._faults if fault.applies is None)
        self._combined.clear()

    def _break_cut(self, fault: Fault) -> None:
        for host in list(self.hosts.values()):
            for remote in list(host.connected):
                if fault.bears_on(host.peer_id, remote) or fault.bears_on(remote, host.peer_id):
                    self.break_connection(host, remote, f"the connection to {remote} broke: nothing came for a while")

    def break_connection(self, host: Host, remote: PeerID, why: str) -> None:
        host.connected.discard(remote)
        for live, other in list(host.live.items()):
            if other == remote:
                live.break_off(why)

    def remove(self, host: Host, *, told: str, own: str) -> None:
        """Take a host off the network: the others read ``told`` of its connections, its own clients ``own``."""
        host.dead = True
        if self.hosts.get(host.peer_id) is host:
            del self.hosts[host.peer_id]
        for remote in list(host.connected):
            other = self.hosts.get(remote)
            if other is not None:
                self.break_connection(other, host.peer_id, told)
        for live in list(host.live):
            live.break_off(own)

    def _conditions(self, source: PeerID, target: PeerID) -> Conditions:
        if source == target:
            return CLEAR
        if not self._local:
            return self._everywhere
        bearing = tuple(fault for fault in self._local if fault.bears_on(source, target))
        if bearing not in self._combined:
            self._combined[bearing] = combine([self._everywhere, *(fault.conditions for fault in bearing)])
        return self._combined[bearing]

    def is_cut(self, source: PeerID, target: PeerID) -> bool:
        """Whether nothing passes from one to the other at present."""
        return bool(self._faults) and self._conditions(source, target).cut

    def arrival(self, source: Host, target: Host, size: int) -> float | None:
        now = asyncio.get_running_loop().time()
        if not self._faults:
            _count(source, target, size)
            return now
        conditions = self._conditions(source.peer_id, target.peer_id)
        if conditions.loss and self.random.random() < conditions.loss:
            raise StreamReset(f"the connection between {source.peer_id} and {target.peer_id} broke: a message was lost")
        if conditions.cut:
            return None
        sent = now
        if conditions.rate < INFINITE:
            line = (source.peer_id, target.peer_id)
            sent = max(now, self._busy_until.get(line, 0.0)) + size / conditions.rate
            self._busy_until[line] = sent
        jitter = self.random.random() * conditions.jitter if conditions.jitter else 0.0
        _count(source, target, size)
        return sent + conditions.delay + jitter

    def deliver(self, source: Host, target: Host, callback: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        conditions = self._conditions(source.peer_id, target.peer_id)
        if conditions.cut:
            self._held.append((source, target, callback))
        elif conditions.delay:
            loop.call_later(conditions.delay, callback)
        else:
            loop.call_soon(callback)

    async def _wait_for_way(self, source: Host, target: PeerID, seconds: float) -> None:
        """Wait until nothing cuts the way.

        :raises PeerUnreachable: if that takes longer than ``seconds``
        """
        deadline = Deadline.after(seconds)
        while self.is_cut(source.peer_id, target):
            if self._changed is None or self._changed.done():
                self._changed = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(deadline.timeout()):
                    await asyncio.shield(self._changed)
            except TimeoutError:
                raise PeerUnreachable(f"{target} does not answer: dial timed out") from None

    async def carry(self, source: Host, target: Host, size: int) -> None:
        """Wait while a message of ``size`` bytes travels.

        :raises StreamReset: if it is lost on the way
        """
        while (at := self.arrival(source, target, size)) is None:
            try:
                await self._wait_for_way(source, target.peer_id, CONNECTION_TIMEOUT)
            except PeerUnreachable as error:
                raise StreamReset(f"the connection to {target.peer_id} broke: nothing came for a while") from error
        wait = at - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
        if target.dead:
            raise StreamReset(f"the connection to {target.peer_id} broke")

    async def reach(self, source: Host, peer: PeerID) -> Host:
        """`dial`, as soon as nothing cuts the way.

        :raises PeerUnreachable: also if it is cut for too long
        """
        await self._wait_for_way(source, peer, DIAL_TIMEOUT)
        return self.dial(source, peer)

    def dial(self, source: Host, peer: PeerID) -> Host:
        """Connect to ``peer``, unless connected or oneself.

        :raises PeerUnreachable: if it is dead or unknown
        """
        if peer == source.peer_id:
            return source
        host = self.hosts.get(peer)
        if host is None or not host.clients:
            raise PeerUnreachable(f"{peer}: routing: not found")
        source.connected.add(peer)
        host.connected.add(source.peer_id)
        return host


class Way:
    """The way from one host to another (`memory_stream.Path`)."""

    __slots__ = ("_links", "_source", "_target")

    def __init__(self, links: Links, source: Host, target: Host) -> None:
        self._links = links
        self._source = source
        self._target = target

    def arrival(self, size: int) -> float | None:
        return self._links.arrival(self._source, self._target, size)

    def deliver(self, callback: Callable[[], None]) -> None:
        self._links.deliver(self._source, self._target, callback)


def _count(source: Host, target: Host, size: int) -> None:
    source.bytes_out += size
    target.bytes_in += size
