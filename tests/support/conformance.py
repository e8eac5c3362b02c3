"""What every `hivemind.p2p.Transport` does. Each implementation runs this class with a fixture ``swarm`` of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import pytest

from hivemind.clock import Deadline
from hivemind.errors import (
    ConfigError,
    DeadlineExceeded,
    DispatchFailure,
    HivemindError,
    MessageTooLarge,
    P2PDaemonError,
    P2PHandlerError,
    PeerUnreachable,
    ProtocolNotSupported,
    StreamReset,
)
from hivemind.identity import PeerID
from hivemind.p2p import DEFAULT_MAX_MSG_SIZE, Mode, Stream, Transport
from tests.support.waiting import PATIENCE, eventually

MIB = 1024 * 1024
#: A well-formed id of nobody.
STRANGER = PeerID(bytes.fromhex("002408011220") + bytes(range(32)))


class Swarm(Protocol):
    """Makes transports that reach each other; the fixture closes them."""

    async def transport(self) -> Transport:
        """A new peer, started and connected to those made before."""
        ...

    async def replica(self, of: Transport) -> Transport:
        """Another client of the same peer."""
        ...


def soon(seconds: float = PATIENCE) -> Deadline:
    return Deadline.after(seconds)


async def echo(request: bytes | bytearray | memoryview, remote: PeerID) -> bytes | bytearray | memoryview:
    return request


async def echo_stream(stream: Stream) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)


async def until_end(stream: Stream) -> list[bytes]:
    messages = []
    while (message := await stream.receive()) is not None:
        messages.append(bytes(message))
    return messages


class Hanging:
    """A handler that never answers, and tells when it was entered and cancelled."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def unary(self, request: object, remote: PeerID) -> bytes:
        await self._hang()
        return b""

    async def stream(self, stream: Stream) -> None:
        await self._hang()

    async def _hang(self) -> None:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def bounded(awaitable: Awaitable[object]) -> object:
    async with asyncio.timeout(PATIENCE):
        return await awaitable


class TransportConformance:
    """The contract of `hivemind.p2p.transport`."""

    # -- unary calls -----------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    @pytest.mark.parametrize("size", [0, 1, 100, 70_000, 300_000, 3 * MIB])
    async def test_an_answer_comes_back_whole(self, swarm: Swarm, size: int) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_unary("echo", echo)
        request = bytes(range(256)) * (size // 256 + 1)
        answer = await bob.call(alice.peer_id, "echo", request[:size], soon())
        assert bytes(answer) == request[:size]

    @pytest.mark.asyncio
    async def test_a_handler_learns_who_calls(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def who(request: object, remote: PeerID) -> bytes:
            return remote.to_bytes()

        await alice.listen_unary("who", who)
        assert await bob.call(alice.peer_id, "who", b"", soon()) == bob.peer_id.to_bytes()

    @pytest.mark.asyncio
    async def test_what_a_handler_raises_reaches_the_caller_as_repr(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def fail(request: object, remote: PeerID) -> bytes:
            raise ValueError("boom")

        await alice.listen_unary("fail", fail)
        with pytest.raises(P2PHandlerError, match=r"^ValueError\('boom'\)$"):
            await bob.call(alice.peer_id, "fail", b"", soon())
        await alice.listen_unary("echo", echo)
        assert await bob.call(alice.peer_id, "echo", b"still here", soon()) == b"still here"

    @pytest.mark.asyncio
    async def test_an_unknown_handler_is_not_supported(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        with pytest.raises(ProtocolNotSupported, match="protocol not supported"):
            await bob.call(alice.peer_id, "nothing", b"", soon())

        async def open_and_receive() -> None:
            # an implementation may notice only when reading
            stream = await bob.open(alice.peer_id, "nothing", Mode.MESSAGES, soon())
            await stream.receive()

        with pytest.raises(ProtocolNotSupported, match="protocol not supported"):
            await open_and_receive()

    @pytest.mark.asyncio
    async def test_a_removed_handler_is_not_supported(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_unary("echo", echo)
        await bob.call(alice.peer_id, "echo", b"", soon())
        await alice.unlisten("echo")
        await alice.unlisten("never there")
        with pytest.raises(DispatchFailure, match="protocol not supported"):
            await bob.call(alice.peer_id, "echo", b"", soon())
        await alice.listen_unary("echo", echo)
        assert await bob.call(alice.peer_id, "echo", b"again", soon()) == b"again"

    @pytest.mark.asyncio
    async def test_a_stranger_is_unreachable_and_named(self, swarm: Swarm) -> None:
        alice = await swarm.transport()
        await swarm.transport()
        with pytest.raises(PeerUnreachable, match=str(STRANGER)):
            await alice.call(STRANGER, "echo", b"", soon())
        with pytest.raises(PeerUnreachable, match=str(STRANGER)):
            await alice.open(STRANGER, "echo", Mode.RAW, soon())

    @pytest.mark.asyncio
    async def test_a_peer_calls_itself(self, swarm: Swarm) -> None:
        alice = await swarm.transport()
        request = bytes(range(256)) * 4096
        await alice.listen_unary("echo", echo)
        assert await alice.call(alice.peer_id, "echo", request, soon()) == request

        async def who(request: object, remote: PeerID) -> bytes:
            return remote.to_bytes()

        # another client of the same peer
        replica = await swarm.replica(alice)
        await replica.listen_unary("who", who)
        assert await alice.call(alice.peer_id, "who", b"", soon()) == alice.peer_id.to_bytes()
        with pytest.raises(ProtocolNotSupported, match="protocol not supported"):
            await alice.call(alice.peer_id, "nothing", b"", soon())
        assert await alice.peers() == []
        with pytest.raises(PeerUnreachable, match="dial to self"):
            await alice.connect(alice.peer_id, [], soon())

    @pytest.mark.asyncio
    async def test_a_peer_has_streams_to_itself(self, swarm: Swarm) -> None:
        alice = await swarm.transport()

        async def twice(stream: Stream) -> None:
            while (message := await stream.receive()) is not None:
                await stream.send(bytes(message) * 2)

        hanging = Hanging()
        for name, mode in (("messages", Mode.MESSAGES), ("raw", Mode.RAW)):
            await alice.listen_stream(name, mode, twice)
            stream = await alice.open(alice.peer_id, name, mode, soon())
            await stream.send(b"ab")
            await stream.finish()
            assert await bounded(until_end(stream)) == [b"abab"]
        await alice.listen_stream("hang", Mode.MESSAGES, hanging.stream)
        stream = await alice.open(alice.peer_id, "hang", Mode.MESSAGES, soon())
        await bounded(hanging.entered.wait())
        stream.reset()
        await bounded(hanging.cancelled.wait())

    @pytest.mark.asyncio
    async def test_a_deadline_ends_the_call_on_both_sides(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        hanging = Hanging()
        await alice.listen_unary("hang", hanging.unary)
        with pytest.raises(DeadlineExceeded):
            await bob.call(alice.peer_id, "hang", b"", soon(0.5))
        await bounded(hanging.cancelled.wait())

    @pytest.mark.asyncio
    async def test_a_deadline_that_has_passed_calls_nobody(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        hanging = Hanging()
        await alice.listen_unary("hang", hanging.unary)
        with pytest.raises(DeadlineExceeded):
            await bob.call(alice.peer_id, "hang", b"", soon(0))
        with pytest.raises(DeadlineExceeded):
            await bob.open(alice.peer_id, "hang", Mode.MESSAGES, soon(0))
        assert not hanging.entered.is_set()

    @pytest.mark.asyncio
    async def test_cancelling_a_call_cancels_its_handler(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        hanging = Hanging()
        await alice.listen_unary("hang", hanging.unary)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bob.call(alice.peer_id, "hang", b"", soon()))
            await bounded(hanging.entered.wait())
            task.cancel()
        await bounded(hanging.cancelled.wait())

    @pytest.mark.asyncio
    async def test_a_peer_that_leaves_ends_its_calls(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        hanging = Hanging()
        await alice.listen_unary("hang", hanging.unary)

        async def leave() -> None:
            await hanging.entered.wait()
            await alice.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(leave())
            with pytest.raises(HivemindError):
                await bob.call(alice.peer_id, "hang", b"", soon())
        assert hanging.cancelled.is_set()

    @pytest.mark.asyncio
    async def test_a_request_over_the_limit_is_refused_here(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_unary("echo", echo)
        with pytest.raises(MessageTooLarge, match=str(DEFAULT_MAX_MSG_SIZE)):
            await bob.call(alice.peer_id, "echo", bytes(DEFAULT_MAX_MSG_SIZE), soon())
        assert await bob.call(alice.peer_id, "echo", b"1", soon()) == b"1"

    @pytest.mark.asyncio
    async def test_an_answer_over_the_limit_is_told(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def too_much(request: object, remote: PeerID) -> bytes:
            return bytes(DEFAULT_MAX_MSG_SIZE)

        await alice.listen_unary("much", too_much)
        with pytest.raises(P2PHandlerError, match="response size exceeds message size limit"):
            await bob.call(alice.peer_id, "much", b"", soon())

    @pytest.mark.asyncio
    async def test_a_hundred_calls_at_once(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        running = 0

        async def meet(request: bytes | bytearray | memoryview, remote: PeerID) -> bytes:
            nonlocal running
            running += 1
            # each answers only once all have come: they run at the same time
            await eventually(lambda: running == 100, "all calls run")
            return bytes(request)

        await alice.listen_unary("meet", meet)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(bob.call(alice.peer_id, "meet", str(number).encode(), soon()))
                for number in range(100)
            ]
        assert [bytes(task.result()) for task in tasks] == [str(number).encode() for number in range(100)]

    @pytest.mark.asyncio
    async def test_calls_both_ways_at_once(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def call_back(request: bytes | bytearray | memoryview, remote: PeerID) -> bytes:
            return bytes(await alice.call(remote, "echo", request, soon())) * 2

        await alice.listen_unary("back", call_back)
        await bob.listen_unary("echo", echo)
        assert await bob.call(alice.peer_id, "back", b"ab", soon()) == b"abab"

    # -- streams of messages ---------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_messages_keep_their_borders_and_order(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_stream("echo", Mode.MESSAGES, echo_stream)
        messages = [b"", b"a", bytes(1000), b"", bytes(range(256)) * 2000, b"end"]
        stream = await bob.open(alice.peer_id, "echo", Mode.MESSAGES, soon())
        assert stream.remote_id == alice.peer_id
        for message in messages:
            await stream.send(message)
        await stream.finish()
        assert await bounded(until_end(stream)) == messages
        assert await stream.receive() is None

    @pytest.mark.asyncio
    async def test_a_message_of_16_mib(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_stream("echo", Mode.MESSAGES, echo_stream)
        message = bytes(range(256)) * (16 * MIB // 256)
        stream = await bob.open(alice.peer_id, "echo", Mode.MESSAGES, soon())
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(stream.send(message))
            assert await stream.receive() == message
        await stream.finish()
        assert await bounded(until_end(stream)) == []

    @pytest.mark.asyncio
    async def test_answers_go_on_after_the_end_of_requests(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def count(stream: Stream) -> None:
            got = await until_end(stream)
            for message in got:
                await stream.send(message + b"!")

        await alice.listen_stream("count", Mode.MESSAGES, count)
        stream = await bob.open(alice.peer_id, "count", Mode.MESSAGES, soon())
        for number in range(20):
            await stream.send(str(number).encode())
        await stream.finish()
        await stream.finish()
        assert await bounded(until_end(stream)) == [f"{number}!".encode() for number in range(20)]

    @pytest.mark.asyncio
    async def test_the_callee_may_end_first(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def one(stream: Stream) -> None:
            await stream.send(b"enough")

        await alice.listen_stream("one", Mode.MESSAGES, one)
        stream = await bob.open(alice.peer_id, "one", Mode.MESSAGES, soon())
        assert await bounded(until_end(stream)) == [b"enough"]

        async def send_for_ever() -> None:
            while True:
                await stream.send(bytes(100_000))

        with pytest.raises(StreamReset):
            await bounded(send_for_ever())
        await stream.finish()
        stream.reset()

    @pytest.mark.asyncio
    async def test_what_a_callee_says_at_its_end_survives_what_is_sent_meanwhile(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def fail(stream: Stream) -> None:
            await stream.receive()
            await stream.send(b"first")
            await stream.send_error("enough")

        await alice.listen_stream("fail", Mode.MESSAGES, fail)
        stream = await bob.open(alice.peer_id, "fail", Mode.MESSAGES, soon())

        # what is sent is dropped, or broken off inside of a message
        with suppress(DispatchFailure):
            for _ in range(8):
                await bounded(stream.send(bytes(3 * MIB)))
        assert await stream.receive() == b"first"
        with pytest.raises(P2PHandlerError, match="enough"):
            await stream.receive()

    @pytest.mark.asyncio
    async def test_an_error_ends_the_stream_after_what_was_sent(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def fail(stream: Stream) -> None:
            await stream.send(b"first")
            await stream.send_error("wörds")

        await alice.listen_stream("fail", Mode.MESSAGES, fail)
        stream = await bob.open(alice.peer_id, "fail", Mode.MESSAGES, soon())
        assert await stream.receive() == b"first"
        with pytest.raises(P2PHandlerError, match=r"^wörds$"):
            await bounded(stream.receive())

    @pytest.mark.asyncio
    async def test_an_empty_error_is_an_error(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def fail(stream: Stream) -> None:
            await stream.send_error("")

        await alice.listen_stream("fail", Mode.MESSAGES, fail)
        stream = await bob.open(alice.peer_id, "fail", Mode.MESSAGES, soon())
        with pytest.raises(P2PHandlerError):
            await bounded(stream.receive())

    @pytest.mark.asyncio
    async def test_a_handler_that_raises_resets(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def fail(stream: Stream) -> None:
            await stream.receive()
            raise RuntimeError("not told to the peer at this level")

        await alice.listen_stream("fail", Mode.MESSAGES, fail)
        stream = await bob.open(alice.peer_id, "fail", Mode.MESSAGES, soon())
        await stream.send(b"")
        with pytest.raises(StreamReset):
            await bounded(stream.receive())

    @pytest.mark.asyncio
    @pytest.mark.parametrize("mode", [Mode.MESSAGES, Mode.RAW])
    async def test_a_reset_cancels_the_handler(self, swarm: Swarm, mode: Mode) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        hanging = Hanging()
        await alice.listen_stream("hang", mode, hanging.stream)
        stream = await bob.open(alice.peer_id, "hang", mode, soon())
        await stream.send(b"1")
        await bounded(hanging.entered.wait())
        stream.reset()
        stream.reset()
        await bounded(hanging.cancelled.wait())
        with pytest.raises(StreamReset):
            await stream.receive()
        with pytest.raises(StreamReset):
            await stream.send(b"2")

    @pytest.mark.asyncio
    async def test_a_reset_after_the_requests_cancels_the_handler(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        hanging = Hanging()

        async def hang(stream: Stream) -> None:
            await until_end(stream)
            await hanging.stream(stream)

        await alice.listen_stream("hang", Mode.MESSAGES, hang)
        stream = await bob.open(alice.peer_id, "hang", Mode.MESSAGES, soon())
        await stream.finish()
        await bounded(hanging.entered.wait())
        stream.reset()
        await bounded(hanging.cancelled.wait())

    @pytest.mark.asyncio
    async def test_a_sender_waits_for_its_reader(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        read_on = asyncio.Event()
        received = 0

        async def lazy(stream: Stream) -> None:
            nonlocal received
            await read_on.wait()
            while (message := await stream.receive()) is not None:
                received += len(message)

        await alice.listen_stream("lazy", Mode.MESSAGES, lazy)
        stream = await bob.open(alice.peer_id, "lazy", Mode.MESSAGES, soon())
        sent = 0
        total = 128 * MIB

        async def send_all() -> None:
            nonlocal sent
            piece = bytes(MIB)
            while sent < total:
                await stream.send(piece)
                sent += len(piece)
            await stream.finish()

        async with asyncio.timeout(2 * PATIENCE), asyncio.TaskGroup() as group:
            sender = group.create_task(send_all())
            # it stands still once the buffers on the way are full, long before all is sent
            seen = -1
            while seen != sent:
                seen = sent
                await asyncio.sleep(0.5)
            assert not sender.done()
            assert sent < total / 2
            read_on.set()
            assert await until_end(stream) == []
        assert received == total

    @pytest.mark.asyncio
    async def test_a_slow_stream_holds_no_other_up(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        hanging = Hanging()
        await alice.listen_stream("hang", Mode.MESSAGES, hanging.stream)
        await alice.listen_unary("echo", echo)
        stream = await bob.open(alice.peer_id, "hang", Mode.MESSAGES, soon())

        async def flood() -> None:
            while True:
                await stream.send(bytes(MIB))

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            flooding = group.create_task(flood())
            for _ in range(10):
                assert await bob.call(alice.peer_id, "echo", b"quick", soon()) == b"quick"
            assert not flooding.done()
            flooding.cancel()
        stream.reset()

    # -- raw streams -----------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_raw_bytes_and_half_close(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def reverse(stream: Stream) -> None:
            whole = b"".join(await until_end(stream))
            await stream.send(whole[::-1])

        await alice.listen_stream("reverse", Mode.RAW, reverse)
        stream = await bob.open(alice.peer_id, "reverse", Mode.RAW, soon())
        sent = bytes(range(256)) * 4096
        await stream.send(sent[:1000])
        await stream.send(b"")
        await stream.send(sent[1000:])
        await stream.finish()
        assert b"".join(await bounded(until_end(stream))) == sent[::-1]  # type: ignore[arg-type]

    @pytest.mark.asyncio
    async def test_a_raw_handler_that_returns_drops_the_rest(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()

        async def brief(stream: Stream) -> None:
            await stream.receive()
            await stream.send(b"bye")

        await alice.listen_stream("brief", Mode.RAW, brief)
        stream = await bob.open(alice.peer_id, "brief", Mode.RAW, soon())
        async with asyncio.timeout(PATIENCE):
            for _ in range(8):
                await stream.send(bytes(MIB))
            await stream.finish()
            assert b"".join(await until_end(stream)) == b"bye"

    # -- handlers --------------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_a_name_has_one_handler(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_unary("echo", echo)
        with pytest.raises(P2PDaemonError, match="echo"):
            await alice.listen_unary("echo", echo)
        with pytest.raises(P2PDaemonError, match="echo"):
            await alice.listen_stream("echo", Mode.MESSAGES, echo_stream)
        assert await bob.call(alice.peer_id, "echo", b"1", soon()) == b"1"

    @pytest.mark.asyncio
    async def test_replicas_share_balanced_names_only(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        twin = await swarm.replica(alice)
        assert twin.peer_id == alice.peer_id
        answering: set[str] = set()
        both = asyncio.Event()

        def handler(name: str) -> Callable[[object, PeerID], Awaitable[bytes]]:
            async def handle(request: object, remote: PeerID) -> bytes:
                answering.add(name)
                if len(answering) == 2:
                    both.set()
                await both.wait()
                return name.encode()

            return handle

        await alice.listen_unary("shared", handler("alice"), balanced=True)
        await twin.listen_unary("shared", handler("twin"), balanced=True)
        with pytest.raises(P2PDaemonError):
            await (await swarm.replica(alice)).listen_unary("shared", echo)
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            # calls under way at the same time go to the one who has the least of them
            calls = [group.create_task(bob.call(alice.peer_id, "shared", b"", soon())) for _ in range(2)]
        assert {bytes(call.result()) for call in calls} == {b"alice", b"twin"}
        await twin.close()
        for _ in range(4):
            assert await bob.call(alice.peer_id, "shared", b"", soon()) == b"alice"

    @pytest.mark.asyncio
    async def test_open_is_not_for_unary(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        with pytest.raises(ConfigError):
            await bob.open(alice.peer_id, "echo", Mode.UNARY, soon())
        with pytest.raises(ConfigError):
            await alice.listen_stream("echo", Mode.UNARY, echo_stream)

    # -- the network -----------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_connect_peers_and_disconnect(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        addresses = await alice.addresses()
        assert addresses
        assert all(str(address).endswith(f"/p2p/{alice.peer_id}") for address in addresses)
        await bob.connect(alice.peer_id, addresses, soon())
        await bob.connect(alice.peer_id, (), soon())
        assert alice.peer_id in {info.peer_id for info in await bob.peers()}
        assert bob.peer_id in {info.peer_id for info in await alice.peers()}
        await bob.disconnect(alice.peer_id)
        await bob.disconnect(STRANGER)
        assert alice.peer_id not in {info.peer_id for info in await bob.peers()}
        with pytest.raises(PeerUnreachable, match=str(STRANGER)):
            await bob.connect(STRANGER, (), soon())

    @pytest.mark.asyncio
    async def test_bytes_are_counted_on_both_sides(self, swarm: Swarm) -> None:
        callee, caller = await swarm.transport(), await swarm.transport()
        await callee.listen_unary("swallow", lambda request, remote: echo(b"", remote))
        before = (await caller.stats())["bytes_out"], (await callee.stats())["bytes_in"]
        await caller.call(callee.peer_id, "swallow", bytes(MIB), soon())
        sent = (await caller.stats())["bytes_out"] - before[0]
        received = (await callee.stats())["bytes_in"] - before[1]
        assert MIB <= sent < 2 * MIB
        assert MIB <= received < 2 * MIB

    @pytest.mark.asyncio
    async def test_disconnecting_ends_streams(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        hanging = Hanging()
        await alice.listen_stream("hang", Mode.MESSAGES, hanging.stream)
        stream = await bob.open(alice.peer_id, "hang", Mode.MESSAGES, soon())
        await stream.send(b"1")
        await bounded(hanging.entered.wait())
        await bob.disconnect(alice.peer_id)
        with pytest.raises(StreamReset):
            await bounded(stream.receive())
        await bounded(hanging.cancelled.wait())

    # -- the end ---------------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_close_ends_all_and_may_be_repeated(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        here, there = Hanging(), Hanging()
        await alice.listen_unary("hang", there.unary)
        await alice.listen_stream("hang stream", Mode.MESSAGES, there.stream)
        await bob.listen_unary("hang", here.unary)
        stream = await bob.open(alice.peer_id, "hang stream", Mode.MESSAGES, soon())

        async def failing(awaitable: Awaitable[object]) -> None:
            with pytest.raises(HivemindError):
                await awaitable

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(failing(bob.call(alice.peer_id, "hang", b"", soon())))
            group.create_task(failing(alice.call(bob.peer_id, "hang", b"", soon())))
            group.create_task(failing(stream.receive()))
            await here.entered.wait()
            await there.entered.wait()
            await bob.close()
        assert here.cancelled.is_set()
        await bounded(there.cancelled.wait())
        await bob.close()
        with pytest.raises(P2PDaemonError):
            await bob.call(alice.peer_id, "echo", b"", soon())
        with pytest.raises(P2PDaemonError):
            await bob.peers()
        with pytest.raises(P2PDaemonError):
            await bob.listen_unary("echo", echo)

    @pytest.mark.asyncio
    async def test_calls_that_come_while_closing_do_no_harm(
        self, swarm: Swarm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logging.getLogger("hivemind"), "propagate", True)
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_unary("echo", echo)
        await alice.listen_stream("stream", Mode.MESSAGES, echo_stream)
        calls = 0

        async def call_on() -> None:
            nonlocal calls
            while True:
                await bob.call(alice.peer_id, "echo", b"x", soon())
                stream = await bob.open(alice.peer_id, "stream", Mode.MESSAGES, soon())
                await stream.send(b"x")
                await stream.receive()
                stream.reset()
                calls += 1

        async def call_to_the_end() -> None:
            with pytest.raises(DispatchFailure):
                await call_on()

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(call_to_the_end())
            await eventually(lambda: calls > 100, "calls are under way")
            await alice.close()
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []

    @pytest.mark.asyncio
    async def test_close_is_bounded_though_a_handler_clings(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        entered, released, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def cling(request: object, remote: PeerID) -> bytes:
            entered.set()
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue
            left.set()
            return b""

        await alice.listen_unary("cling", cling)

        async def call() -> None:
            with pytest.raises(HivemindError):
                await bob.call(alice.peer_id, "cling", b"", soon())

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(call())
            await entered.wait()
            await alice.close()
        released.set()
        await bounded(left.wait())

    @pytest.mark.asyncio
    async def test_many_streams_at_once_lose_nothing(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_stream("echo", Mode.MESSAGES, echo_stream)
        sizes = [0, 1, 5_000, 40_000, 300_000]

        async def exchange(number: int) -> None:
            stream = await bob.open(alice.peer_id, "echo", Mode.MESSAGES, soon(2 * PATIENCE))
            sent = [bytes([number]) * sizes[(number + turn) % len(sizes)] for turn in range(6)]

            async def send() -> None:
                for message in sent:
                    await stream.send(message)
                await stream.finish()

            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                assert await until_end(stream) == sent

        async def worker(first: int) -> None:
            for number in range(first, 200, 20):
                await exchange(number)

        async with asyncio.timeout(2 * PATIENCE), asyncio.TaskGroup() as group:
            for first in range(20):
                group.create_task(worker(first))

    @pytest.mark.asyncio
    async def test_a_closed_peer_is_unreachable(self, swarm: Swarm) -> None:
        alice, bob = await swarm.transport(), await swarm.transport()
        await alice.listen_unary("echo", echo)
        await bob.call(alice.peer_id, "echo", b"", soon())
        gone = alice.peer_id
        await alice.close()
        with pytest.raises(DispatchFailure):
            await bob.call(gone, "echo", b"", soon())
