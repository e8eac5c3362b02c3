"""Bytes that no peer of good will sends: they cost their sender the call, and nobody memory."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from hivemind.errors import DispatchFailure
from hivemind.p2p import P2P, Mode
from hivemind.proto import test_pb2
from hivemind.proto.p2pd_pb2 import CallUnaryRequest, PersistentConnectionRequest
from tests.support.conformance import soon
from tests.support.processes import resident_bytes
from tests.support.service_contract import Numbers
from tests.support.waiting import PATIENCE

MIB = 1024 * 1024
GIB = 1024 * MIB
#: Growth of a process that is no leak: caches, buffers, code.
SLACK = 48 * MIB


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def envelope(data: bytes, *, call_id: bytes = bytes(16), proto: str = "Numbers.rpc_square") -> bytes:
    request = PersistentConnectionRequest(callId=call_id, callUnary=CallUnaryRequest(peer=b"", proto=proto, data=data))
    encoded = request.SerializeToString()
    return varint(len(encoded)) + encoded


RANDOM = random.Random(0).randbytes(10_000)
UNARY = {
    "random": RANDOM,
    "nothing": b"",
    "an endless varint": b"\xff" * 100,
    "a length of 0": varint(0),
    "a length of 1 GiB": varint(GIB) + bytes(MIB),
    "a length just allowed, without content": varint(4 * MIB),
    "no envelope": varint(5) + b"\xff" * 5,
    "a short call id": envelope(b"", call_id=b"short"),
    "an unknown handler inside": envelope(b"", proto="Nobody.rpc_x"),
    "no message": envelope(b"\xff\xff"),
    "cut in the middle": envelope(bytes(1000))[:500],
    "more after the request": envelope(b"") + b"more",
}
STREAM = {
    "random": RANDOM,
    "nothing": b"",
    "an unknown marker": b"\x05" + bytes(100),
    "a length of 1 GiB": b"\x00" + GIB.to_bytes(8, "big") + bytes(MIB),
    "the longest length": b"\x00" + b"\xff" * 8,
    "a length just allowed, without content": b"\x00" + (64 * MIB).to_bytes(8, "big") + bytes(100),
    "an error of 1 GiB": b"\x01" + GIB.to_bytes(8, "big") + bytes(MIB),
    "no message": b"\x00" + (2).to_bytes(8, "big") + b"\xff\xff",
    "cut in the header": b"\x00\x00\x00",
    "more after the end": b"\x01" + bytes(8) + b"more",
}


async def throw(sender: P2P, receiver: P2P, name: str, garbage: bytes) -> bytes:
    """Send ``garbage`` as the bytes of the network stream; what came back."""
    stream = await sender.transport.open(receiver.peer_id, name, Mode.RAW, soon())
    answer = b""
    with contextlib.suppress(DispatchFailure):
        for start in range(0, len(garbage), MIB):
            await stream.send(garbage[start : start + MIB])
        await stream.finish()
        while (data := await stream.receive()) is not None:
            answer += data
    stream.reset()
    return answer


@pytest.mark.asyncio
async def test_garbage_costs_its_sender_the_call() -> None:
    async with await P2P.create() as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        await Numbers().add_p2p_handlers(alice)
        stub = Numbers.get_stub(bob, alice.peer_id)
        child = alice._child
        assert child is not None
        assert child.pid is not None
        await stub.rpc_square(test_pb2.TestRequest(number=1))
        daemon, own = resident_bytes(child.pid), resident_bytes()
        async with asyncio.timeout(4 * PATIENCE):
            for _ in range(10):
                for garbage in UNARY.values():
                    await throw(bob, alice, "Numbers.rpc_square", garbage)
                for garbage in STREAM.values():
                    await throw(bob, alice, "Numbers.rpc_next", garbage)
                    await throw(bob, alice, "Numbers.rpc_count", garbage)
        assert (await stub.rpc_square(test_pb2.TestRequest(number=3))).number == 9
        assert (await stub.rpc_sum(_one())).number == 1
        assert resident_bytes(child.pid) - daemon < SLACK
        assert resident_bytes() - own < SLACK


async def _one():  # type: ignore[no-untyped-def]
    yield test_pb2.TestRequest(number=1)


@pytest.mark.asyncio
async def test_many_claims_of_long_messages_take_no_memory() -> None:
    """A hundred streams at once, each of which announces 64 MiB and sends little."""
    async with await P2P.create() as alice, await P2P.create(await alice.get_visible_maddrs()) as bob:
        await Numbers().add_p2p_handlers(alice)
        child = alice._child
        assert child is not None
        assert child.pid is not None
        await Numbers.get_stub(bob, alice.peer_id).rpc_square(test_pb2.TestRequest(number=1))
        daemon, own = resident_bytes(child.pid), resident_bytes()
        streams = []
        for _ in range(100):
            stream = await bob.transport.open(alice.peer_id, "Numbers.rpc_next", Mode.RAW, soon())
            await stream.send(b"\x00" + (64 * MIB).to_bytes(8, "big") + bytes(1000))
            streams.append(stream)
        assert (await Numbers.get_stub(bob, alice.peer_id).rpc_square(test_pb2.TestRequest(number=3))).number == 9
        assert resident_bytes(child.pid) - daemon < 2 * SLACK
        assert resident_bytes() - own < SLACK
        for stream in streams:
            stream.reset()
