"""Peers in the namespaces of `tests.support.nat_lab`, driven from the test's own process."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from hivemind.errors import HivemindError
from hivemind.identity import PeerID
from hivemind.p2p import P2P
from hivemind.p2p.reachability import Reachability
from hivemind.proto.test_pb2 import TestRequest, TestResponse
from tests.support.nat_lab import NatLab, enter
from tests.support.waiting import eventually_sync

__all__ = ["BEHIND_NAT", "NatPeer", "Place", "first_answer", "start_all", "start_relays"]

T = TypeVar("T")

#: Seconds between a call that has failed and the next one.
_BREATH = 0.05
#: Seconds for anything that takes a second or two on an idle machine.
PATIENCE = 60.0
_EVERYWHERE = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"]
#: What a volunteer's peer sets.
BEHIND_NAT: dict[str, Any] = {"host_maddrs": _EVERYWHERE, "use_auto_relay": True, "nat_port_map": False}


class Place:
    """A thread inside a namespace with an event loop. The daemons that are started on it are inside, too: namespaces
    are inherited from the thread that starts a process. A context manager that ends the thread.
    """

    def __init__(self, lab: NatLab, name: str) -> None:
        self.name = name
        self._namespace = lab.namespace(name)
        self._loop = asyncio.new_event_loop()
        self._entered: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"inside {name}")
        self._thread.start()
        self._entered.result(PATIENCE)

    def _run(self) -> None:
        try:
            enter(self._namespace)
        except OSError as error:
            self._entered.set_exception(error)
            return
        self._entered.set_result(None)
        self._loop.run_forever()
        self._loop.close()

    def submit(self, action: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something inside."""
        return asyncio.run_coroutine_threadsafe(action, self._loop)

    def run(self, action: Coroutine[Any, Any, T], seconds: float = PATIENCE) -> T:
        """Do something inside."""
        return self.submit(action).result(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)


class NatPeer:
    """A peer of a place that squares numbers for others. Used from any thread; a context manager that ends it.

    :param options: of `P2P.create`
    """

    #: of a relay: its public address
    host = ""

    def __init__(self, place: Place, **options: Any) -> None:
        self.place = place
        self._starting = place.submit(self._start({"startup_timeout": PATIENCE, **options}))

    async def _start(self, options: dict[str, Any]) -> P2P:
        p2p = await P2P.create(**options)
        await p2p.add_protobuf_handler("square", _square, TestRequest)
        return p2p

    @property
    def p2p(self) -> P2P:
        """Of the place's loop; there once the peer has started."""
        return self._starting.result(PATIENCE)

    @property
    def id(self) -> PeerID:
        return self.p2p.peer_id

    @property
    def addresses(self) -> list[str]:
        """Those that it tells others now."""
        return [str(each) for each in self.place.run(self.p2p.get_visible_maddrs(latest=True))]

    def call(self, peer: NatPeer, seconds: float = PATIENCE) -> float:
        """Call ``peer`` by its id alone; the seconds that it took.

        :raises HivemindError: as `P2P.call_protobuf_handler`
        """
        begun = time.monotonic()
        request = TestRequest(number=7)
        calling = self.p2p.call_protobuf_handler(peer.id, "square", request, TestResponse, timeout=seconds)
        assert self.place.run(calling, 2 * seconds).number == 49
        return time.monotonic() - begun

    def reachability(self) -> Reachability:
        return self.place.run(self.p2p.reachability())

    def ways_to(self, peer: NatPeer) -> list[str]:
        """The remote addresses of the connections to ``peer``."""
        infos = self.place.run(self.p2p.list_peers())
        return [str(each) for info in infos if info.peer_id == peer.id for each in info.addrs]

    def direct_ways_to(self, peer: NatPeer) -> list[str]:
        """Those that go through no relay."""
        return [way for way in self.ways_to(peer) if "p2p-circuit" not in way]

    def relays(self) -> set[PeerID]:
        """Those that hold a reservation for this peer, and through which it tells others to come."""
        known = self.reachability()
        told = [str(address) for address, state in known.addresses.items() if state == "relayed"]
        return {each.peer_id for each in known.relays if any(str(each.peer_id) in address for address in told)}

    def await_relays(self, number: int = 1, besides: Iterable[NatPeer] = ()) -> float:
        """Wait until so many relays take calls for it, not counting ``besides``.

        :returns: seconds
        """
        begun = time.monotonic()
        gone = {each.id for each in besides}
        eventually_sync(lambda: len(self.relays() - gone) >= number, f"{self.place.name} is relayed", seconds=PATIENCE)
        return time.monotonic() - begun

    def await_reachable(self) -> None:
        """Wait until others can call it: through a relay, or directly if that is found out first."""
        eventually_sync(
            lambda: self.relays() or self.reachability().verdict == "public",
            f"{self.place.name} is reachable",
            seconds=PATIENCE,
        )

    def kill(self) -> None:
        """End its daemon at once, as a machine that loses power, except that its connections are reset."""
        child = self.p2p._child
        assert child is not None
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        assert self.p2p.is_alive
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.place.run(self.p2p.shutdown())


def first_answer(caller: NatPeer, callee: NatPeer, each: float = 10.0, seconds: float = PATIENCE) -> tuple[float, int]:
    """Call until there is an answer.

    :param each: seconds for one call
    :returns: the seconds, and how many calls have failed
    """
    begun, errors = time.monotonic(), []
    while time.monotonic() - begun < seconds:
        try:
            caller.call(callee, each)
            return time.monotonic() - begun, len(errors)
        except HivemindError as error:
            errors.append(error)
            time.sleep(_BREATH)
    raise AssertionError(f"no answer to {len(errors)} calls in {seconds} s; the last: {errors[-1]}")


def start_all(stack: ExitStack, places: Iterable[Place], **options: Any) -> list[NatPeer]:
    """A peer in each place, all started at the same time and ended with ``stack``."""
    peers = [NatPeer(place, **options) for place in places]
    return [stack.enter_context(peer) for peer in peers]


def start_relays(stack: ExitStack, lab: NatLab, place: Place, number: int) -> list[NatPeer]:
    """So many relays in one swarm, each with a public address of its own, by which others see them differently.

    :param place: inside `nat_lab.PUBLIC`
    """
    relays: list[NatPeer] = []
    for _ in range(number):
        host = lab.add_public_host()
        relay = NatPeer(
            place,
            initial_peers=[address for known in relays for address in known.addresses],
            host_maddrs=[f"/ip4/{host}/tcp/4001", f"/ip4/{host}/udp/4001/quic-v1"],
            relay_service=True,
            force_reachability="public",
            nat_port_map=False,
        )
        relay.host = host
        relays.append(stack.enter_context(relay))
    return relays


async def _square(request: TestRequest, _: object) -> TestResponse:
    return TestResponse(number=request.number**2)
