"""Calls between hivemind 1.1.12 and this library, each way round: every shape, errors, cancellation, sizes."""

from __future__ import annotations

import asyncio
import os
from itertools import accumulate
from pathlib import Path

import pytest

from tests.compat.pairs import KINDS, Kind, OurCaller, check_stream, eventually, other, start_caller, start_pair
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault

MIB = 1 << 20

pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("caller", KINDS)]


@repeat_on_legacy_fault
async def test_all_four_shapes(legacy: LegacyPeers, caller: Kind) -> None:
    """One request or many, one answer or many; also none at all, and default values (empty messages)."""
    async with start_pair(legacy, caller) as (calling, callee):
        assert await calling.call(callee.peer_id, "square", 12) == 144
        assert await calling.call(callee.peer_id, "square", 0) == 0
        for length in (0, 1, 5, 300):
            numbers = list(range(length))
            check_stream(other(caller), await calling.call(callee.peer_id, "count", length), numbers)
            assert await calling.call(callee.peer_id, "sum", numbers) == sum(numbers)
            running = await calling.call(callee.peer_id, "running_sum", numbers)
            check_stream(other(caller), running, list(accumulate(numbers)))
        assert (await callee.seen())["callers"] == [calling.peer_id] * 2


@repeat_on_legacy_fault
async def test_errors_reach_the_caller(legacy: LegacyPeers, caller: Kind) -> None:
    """A handler that raises, at once or after some answers, is a P2PHandlerError with its text; the peer goes on."""
    async with start_pair(legacy, caller) as (calling, callee):
        refused = await calling.call(callee.peer_id, "refuse", 3)
        assert refused["raised"] == "P2PHandlerError"
        assert "ValueError('refused 3')" in refused["text"]

        refused = await calling.call(callee.peer_id, "count_then_refuse", 2)
        assert refused["raised"] == "P2PHandlerError"
        assert "refused after 2" in refused["text"]
        assert refused["before"] == [0, 1]

        # one that says when to try again is that error here, and its text there
        refused = await calling.call(callee.peer_id, "busy", 5)
        if caller == "ours":
            assert refused["raised"] == "HandlerBusy"
            assert refused["text"] == "the queue is full: try again in 2.5 s"
        else:
            assert refused["raised"] == "P2PHandlerError"
            assert "HandlerBusy('the queue is full', 2.5)" in refused["text"]

        assert await calling.call(callee.peer_id, "square", 2) == 4


@repeat_on_legacy_fault
async def test_a_missing_handler_is_named(legacy: LegacyPeers, caller: Kind) -> None:
    """A peer without the handler: the error says that the protocol is not supported, for a call and for a stream."""
    async with (
        start_caller(other(caller), legacy, []) as callee,
        start_caller(caller, legacy, callee.maddrs) as calling,
    ):
        for method, argument in (("square", 1), ("count", 1), ("running_sum", [1])):
            failed = await calling.call(callee.peer_id, method, argument)
            assert "raised" in failed
            if method == "square":
                assert "not supported" in failed["text"]
        assert "raised" in await calling.call(calling.peer_id, "square", 1)  # a peer cannot dial itself


@repeat_on_legacy_fault
async def test_cancellation_reaches_the_handler(legacy: LegacyPeers, caller: Kind) -> None:
    """A call that its caller cancels, and a stream that its reader closes, cancel the handler at the other peer."""
    async with start_pair(legacy, caller) as (calling, callee):

        async def seen(what: str, count: int) -> bool:
            return bool((await callee.seen())[what] == count)

        await calling.begin_hang(callee.peer_id)
        assert await eventually(lambda: seen("started", 1))
        assert await calling.cancel_hang()
        assert await eventually(lambda: seen("cancelled", 1))

        assert await calling.call(callee.peer_id, "cancel_stream", 7) == 7
        assert await eventually(lambda: seen("cancelled", 2))
        assert await calling.call(callee.peer_id, "square", 2) == 4


@repeat_on_legacy_fault
async def test_large_messages(legacy: LegacyPeers, caller: Kind) -> None:
    """3 MiB in one call (4 MiB is its limit), 3 MiB and 5 MiB in one message of a stream, many of 64 KiB."""
    async with start_pair(legacy, caller) as (calling, callee):
        blob = os.urandom(3 * MIB)
        assert await calling.call(callee.peer_id, "mirror", blob) == blob[::-1]
        for blobs in ([blob] * 3, [os.urandom(5 * MIB)], [os.urandom(64 * 1024) for _ in range(100)], [b"", b"x"]):
            mirrored = await calling.call(callee.peer_id, "mirror_stream", blobs)
            check_stream(other(caller), mirrored, [blob[::-1] for blob in blobs])


@repeat_on_legacy_fault
async def test_a_message_over_the_limit_costs_only_its_call(legacy: LegacyPeers, caller: Kind) -> None:
    """A call of 5 MiB fails with an error, and the next one works."""
    async with start_pair(legacy, caller) as (calling, callee):
        assert "raised" in await calling.call(callee.peer_id, "mirror", bytes(5 * MIB))
        assert await calling.call(callee.peer_id, "square", 2) == 4


@repeat_on_legacy_fault
async def test_calls_in_flight_both_ways(legacy: LegacyPeers, caller: Kind) -> None:
    """64 calls and 8 streams at once, each way, get their own answers."""
    async with start_pair(legacy, caller) as (calling, callee):
        await calling.serve()
        squares = await asyncio.gather(
            *(calling.call(callee.peer_id, "square", number) for number in range(64)),
            *(callee.call(calling.peer_id, "square", number) for number in range(64)),
        )
        assert squares == [number**2 for number in range(64)] * 2
        there = [calling.call(callee.peer_id, "running_sum", list(range(count))) for count in range(8)]
        back = [callee.call(calling.peer_id, "running_sum", list(range(count))) for count in range(8)]
        expected = [list(accumulate(range(count))) for count in range(8)]
        kinds = [other(caller)] * 8 + [caller] * 8
        for kind, sums, right in zip(kinds, await asyncio.gather(*there, *back), expected * 2, strict=True):
            check_stream(kind, sums, right)


@repeat_on_legacy_fault
async def test_what_training_needs_is_never_limited(legacy: LegacyPeers, caller: Kind) -> None:
    """200 calls of 1 MiB at once, again and again: none is refused, and nobody is taken for one who floods."""
    async with start_pair(legacy, caller) as (calling, callee):
        for _ in range(3):
            lengths = [MIB - number for number in range(200)]
            assert await calling.call(callee.peer_id, "lengths", lengths) == lengths
        ours = calling if isinstance(calling, OurCaller) else callee
        assert isinstance(ours, OurCaller)
        metrics = await ours.p2p.metrics()
        assert await ours.p2p.bans() == {}
        (peer,) = metrics.peers.values()
        assert not peer.slowed
        for calls in (peer.incoming, peer.outgoing):
            assert calls.errors == {}
        assert peer.incoming.calls + peer.outgoing.calls == 600


@repeat_on_legacy_fault
async def test_rsa_identities(legacy: LegacyPeers, caller: Kind, tmp_path: Path) -> None:
    """A peer with an identity file has an RSA key ("Qm…") and keeps its id; peers of both kinds of key talk."""
    identity = str(tmp_path / "identity")
    ids = []
    for _ in range(2):
        async with start_pair(legacy, caller, identity_path=identity) as (calling, callee):
            assert await calling.call(callee.peer_id, "square", 3) == 9
            assert (await callee.seen())["callers"] == [calling.peer_id]
            ids.append(calling.peer_id)
    assert ids[0] == ids[1]
    assert ids[0].startswith("Qm")


@repeat_on_legacy_fault
async def test_an_identity_file_serves_both(legacy: LegacyPeers, caller: Kind, tmp_path: Path) -> None:
    """The identity that one library wrote is the same peer under the other."""
    identity = str(tmp_path / "identity")
    ids = []
    for kind in (caller, other(caller)):
        async with start_caller(kind, legacy, [], identity_path=identity) as peer:
            ids.append(peer.peer_id)
    assert ids[0] == ids[1]


@pytest.mark.parametrize("quic", [False, True], ids=["tcp", "quic"])
@repeat_on_legacy_fault
async def test_transports(legacy: LegacyPeers, caller: Kind, quic: bool) -> None:
    """TCP and QUIC, each with the security and muxer that the two agree on."""
    listen = ["/ip4/127.0.0.1/udp/0/quic-v1" if quic else "/ip4/127.0.0.1/tcp/0"]
    async with start_caller(other(caller), legacy, [], host_maddrs=listen) as callee:
        await callee.serve()
        async with start_caller(caller, legacy, callee.maddrs, host_maddrs=listen) as calling:
            assert await calling.call(callee.peer_id, "square", 5) == 25
            blob = os.urandom(MIB)
            assert await calling.call(callee.peer_id, "mirror", blob) == blob[::-1]
