"""A peer of ours and one of hivemind 1.1.12 that know each other, and the same actions on either."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, Protocol

from hivemind.p2p import P2P
from tests.compat import service
from tests.support.legacy import LegacyFault, LegacyPeer
from tests.support.legacy_repeat import LegacyPeers

Kind = Literal["ours", "legacy"]
KINDS: tuple[Kind, ...] = ("ours", "legacy")

#: Loopback only: no port is mapped on a router, nobody is asked how this machine is seen from outside.
LOCAL: dict[str, Any] = {"host_maddrs": ["/ip4/127.0.0.1/tcp/0"], "nat_port_map": False, "auto_nat": False}
REPLY_SECONDS = service.CALL_TIMEOUT + 30  # a call ends by itself before that, so a later answer is the process's fault


class Caller(Protocol):
    """A peer that serves ``Arithmetic`` and calls that of others."""

    kind: Kind
    peer_id: str
    maddrs: list[str]

    async def serve(self) -> None:
        """Add the handlers of ``Arithmetic``."""

    async def call(self, peer_id: str, method: str, argument: Any) -> Any:
        """See :func:`tests.compat.service.call`."""

    async def seen(self) -> dict[str, Any]:
        """``callers``, ``started`` and ``cancelled`` of the handlers."""

    async def begin_hang(self, peer_id: str) -> None:
        """Call the peer's handler that never answers."""

    async def cancel_hang(self) -> bool:
        """Cancel that call; False if it had ended by itself."""

    async def is_relayed(self, peer_id: str) -> bool:
        """Whether it is connected to the peer, and only through relays."""


class OurCaller:
    """:class:`Caller` on this library."""

    kind: Kind = "ours"

    def __init__(self, p2p: P2P, maddrs: list[str]) -> None:
        self.p2p = p2p
        self.peer_id = p2p.peer_id.to_base58()
        self.maddrs = maddrs
        self._service = service.Arithmetic()
        self._hang: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        await self._service.add_p2p_handlers(self.p2p)

    async def call(self, peer_id: str, method: str, argument: Any) -> Any:
        return await service.call(self.p2p, peer_id, method, argument)

    async def seen(self) -> dict[str, Any]:
        seen = self._service
        return {"callers": list(seen.callers), "started": seen.started, "cancelled": seen.cancelled}

    async def begin_hang(self, peer_id: str) -> None:
        self._hang = asyncio.ensure_future(service.hang(self.p2p, peer_id))

    async def cancel_hang(self) -> bool:
        assert self._hang is not None
        running = self._hang.cancel()
        await asyncio.wait([self._hang])
        return running

    async def is_relayed(self, peer_id: str) -> bool:
        return all_relayed(
            [str(addr) for info in await self.p2p.list_peers() if info.peer_id == peer_id for addr in info.addrs]
        )


class LegacyCaller:
    """:class:`Caller` on hivemind 1.1.12."""

    kind: Kind = "legacy"

    def __init__(self, process: LegacyPeer, started: dict[str, Any]) -> None:
        self.process = process
        self.peer_id: str = started["peer_id"]
        self.maddrs: list[str] = started["maddrs"]

    async def serve(self) -> None:
        await self._run("service_start")

    async def call(self, peer_id: str, method: str, argument: Any) -> Any:
        return await self._run("service_call", peer_id=peer_id, method=method, argument=argument)

    async def seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = await self._run("service_seen")
        return seen

    async def begin_hang(self, peer_id: str) -> None:
        await self._run("hang_begin", peer_id=peer_id)

    async def cancel_hang(self) -> bool:
        return bool(await self._run("hang_cancel"))

    async def is_relayed(self, peer_id: str) -> bool:
        return all_relayed(await self._run("p2p_ways", peer_id=peer_id))

    async def _run(self, command: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(self.process.call, command, REPLY_SECONDS, name="p", **arguments)


@asynccontextmanager
async def start_caller(
    kind: Kind, legacy: LegacyPeers, initial_peers: list[str], **options: Any
) -> AsyncIterator[OurCaller | LegacyCaller]:
    """A peer of either kind, joined through ``initial_peers``; ``options`` are those of ``P2P.create``."""
    if kind == "legacy":
        process = legacy.spawn()
        start = partial(process.call, "p2p_start", name="p", initial_peers=initial_peers, **options)
        yield LegacyCaller(process, await asyncio.to_thread(start))
        process.close()
        return
    p2p = await P2P.create(initial_peers=initial_peers, **{**LOCAL, **options})
    try:
        maddrs = [] if options.get("no_listen") else [str(maddr) for maddr in await p2p.get_visible_maddrs()]
        yield OurCaller(p2p, maddrs)
    finally:
        await p2p.shutdown()


@asynccontextmanager
async def start_pair(
    legacy: LegacyPeers, caller: Kind, **caller_options: Any
) -> AsyncIterator[tuple[OurCaller | LegacyCaller, OurCaller | LegacyCaller]]:
    """``(caller, callee)`` of different kinds; the callee serves ``Arithmetic`` and is the caller's bootstrap peer."""
    async with start_caller(other(caller), legacy, []) as callee:
        await callee.serve()
        async with start_caller(caller, legacy, callee.maddrs, **caller_options) as calling:
            yield calling, callee


def all_relayed(ways: list[str]) -> bool:
    """Whether there are connections, and all of these remote addresses are by way of a relay."""
    return bool(ways) and all("/p2p-circuit" in way for way in ways)


def other(kind: Kind) -> Kind:
    """The other kind of peer."""
    return "ours" if kind == "legacy" else "legacy"


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> bool:
    """Ask until ``condition`` holds; False if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def check_stream(callee: Kind, received: Any, expected: list[Any]) -> None:
    """Assert that all items of a streamed reply came.

    :raises LegacyFault: the callee is of 1.1.12 and the end is missing without an error, which it does to its own peers
        under load too
    """
    if callee == "legacy" and isinstance(received, list) and received == expected[: len(received)] != expected:
        raise LegacyFault(f"1.1.12 closed its stream {len(expected) - len(received)} message(s) early")
    assert received == expected
