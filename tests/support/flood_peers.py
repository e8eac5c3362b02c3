"""Peers of the flood tests, each a process: one that calls politely and measures, and ones that flood.

``python -m tests.support.flood_peers ROLE PEER_ID ADDRESS...`` where PEER_ID is the victim. The polite one answers
each line on its standard input with one line of JSON: the seconds of its calls since the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable

from hivemind.clock import Deadline
from hivemind.errors import HivemindError
from hivemind.identity import PeerID
from hivemind.p2p import P2P, Mode
from hivemind.proto import test_pb2
from hivemind.proto.p2pd_pb2 import CallUnaryRequest, PersistentConnectionRequest

MIB = 1024 * 1024
#: Streams that a flooder opens at the same time.
AT_ONCE = 64
#: Seconds between two calls of the polite peer.
PAUSE = 0.002


def envelope(name: str, data: bytes) -> bytes:
    """A unary call as it is on the network."""
    request = PersistentConnectionRequest(callId=bytes(16), callUnary=CallUnaryRequest(peer=b"", proto=name, data=data))
    encoded, head = request.SerializeToString(), bytearray()
    size = len(encoded)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + encoded


async def calls(p2p: P2P, victim: PeerID) -> None:
    """Make a call and do not wait for its answer, nor ever close it."""
    stream = await p2p.transport.open(victim, "Numbers.rpc_square", Mode.RAW, Deadline.after(5))
    await stream.send(envelope("Numbers.rpc_square", test_pb2.TestRequest(number=1).SerializeToString()))


async def unknown(p2p: P2P, victim: PeerID) -> None:
    """Ask for what is not there."""
    stream = await p2p.transport.open(victim, "Nobody.rpc_nothing", Mode.RAW, Deadline.after(5))
    await stream.send(b"x")


async def unread(p2p: P2P, victim: PeerID) -> None:
    """Send megabytes to a handler that does not read, on ever more streams."""
    stream = await p2p.transport.open(victim, "Deaf.stream", Mode.RAW, Deadline.after(5))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            for _ in range(8):
                await stream.send(b"\0" + MIB.to_bytes(8, "big") + bytes(MIB))


FLOODS: dict[str, Callable[[P2P, PeerID], Awaitable[None]]] = {"calls": calls, "unknown": unknown, "unread": unread}


async def flood(role: str, victim: PeerID, addresses: list[str]) -> None:
    """Until the victim cannot be reached any more."""
    p2p = await P2P.create(addresses, startup_timeout=60)
    attack, failed = FLOODS[role], 0

    async def attack_on() -> None:
        nonlocal failed
        while failed < 5000:
            try:
                await attack(p2p, victim)
            except HivemindError:
                failed += 1

    print(json.dumps({"id": str(p2p.peer_id)}), flush=True)
    await asyncio.gather(*(attack_on() for _ in range(AT_ONCE)))
    await p2p.shutdown()


async def polite(victim: PeerID, addresses: list[str]) -> None:
    """Call again and again, and tell how long it took."""
    p2p = await P2P.create(addresses, startup_timeout=60)
    took: list[float] = []

    async def call_on() -> None:
        while True:
            started = time.perf_counter()
            request = test_pb2.TestRequest(number=3)
            await p2p.call_protobuf_handler(victim, "Numbers.rpc_square", request, test_pb2.TestResponse, timeout=60)
            took.append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE)

    print(json.dumps({"id": str(p2p.peer_id)}), flush=True)
    caller = asyncio.ensure_future(call_on())
    while await asyncio.to_thread(sys.stdin.readline) and not caller.done():
        print(json.dumps(took), flush=True)
        took.clear()
    caller.cancel()
    await asyncio.wait([caller])
    await p2p.shutdown()


def main() -> None:
    """Run one role."""
    role, victim, *addresses = sys.argv[1:]
    peer = PeerID.from_base58(victim)
    asyncio.run(polite(peer, addresses) if role == "polite" else flood(role, peer, addresses))


if __name__ == "__main__":
    main()
