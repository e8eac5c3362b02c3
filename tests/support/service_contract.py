"""What `hivemind.p2p.P2P` and its services do, over any transport, with a fixture ``pair`` of two connected peers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hivemind.errors import (
    ConfigError,
    DeadlineExceeded,
    DispatchFailure,
    HandlerBusy,
    P2PDaemonError,
    P2PHandlerError,
    PeerBusy,
    SerializationError,
    StreamReset,
)
from hivemind.p2p import P2P, Mode, P2PContext, ServicerBase, Stream, StreamInfo
from hivemind.proto.p2pd_pb2 import RPCError
from hivemind.proto.runtime_pb2 import Tensor
from hivemind.proto.test_pb2 import TestRequest, TestResponse
from tests.support.conformance import Hanging, soon
from tests.support.waiting import PATIENCE, eventually

Pair = tuple[P2P, P2P]


class Numbers(ServicerBase):
    """One handler of each shape."""

    def __init__(self) -> None:
        self.hanging = Hanging()
        self.contexts: list[P2PContext] = []
        self.taken = 0

    async def rpc_square(self, request: TestRequest, context: P2PContext) -> TestResponse:
        self.contexts.append(context)
        if request.number < 0:
            raise ValueError("negative")
        return TestResponse(number=request.number**2)

    async def rpc_sum(self, requests: AsyncIterator[TestRequest], context: P2PContext) -> TestResponse:
        return TestResponse(number=sum([request.number async for request in requests]))

    async def rpc_count(self, request: TestRequest, context: P2PContext) -> AsyncIterator[TestResponse]:
        for number in range(request.number):
            yield TestResponse(number=number)
        if request.number == 3:
            raise ValueError("three is wrong")

    async def rpc_next(self, requests: AsyncIterator[TestRequest], context: P2PContext) -> AsyncIterator[TestResponse]:
        async for request in requests:
            yield TestResponse(number=request.number + 1)

    async def rpc_busy(self, request: TestRequest, context: P2PContext) -> TestResponse:
        raise HandlerBusy("the queue is full", request.number / 10)

    async def rpc_count_busily(self, request: TestRequest, context: P2PContext) -> AsyncIterator[TestResponse]:
        yield TestResponse(number=1)
        raise HandlerBusy("the queue is full", request.number / 10)

    async def rpc_hang(self, request: TestRequest, context: P2PContext) -> TestResponse:
        await self.hanging.unary(b"", context.remote_id)
        return TestResponse()

    async def rpc_hang_after_one(self, request: TestRequest, context: P2PContext) -> AsyncIterator[TestResponse]:
        yield TestResponse(number=1)
        await self.hanging.unary(b"", context.remote_id)

    async def rpc_first_only(self, requests: AsyncIterator[TestRequest], context: P2PContext) -> TestResponse:
        return await anext(aiter(requests))  # type: ignore[return-value]

    async def rpc_endless(self, request: TestRequest, context: P2PContext) -> AsyncIterator[Tensor]:
        try:
            while True:
                self.taken += 1
                # large, so that all buffers on the way are soon full
                yield Tensor(chunks=self.taken, buffer=bytes(16384))
        finally:
            self.hanging.cancelled.set()


async def numbers(*values: int) -> AsyncIterator[TestRequest]:
    for value in values:
        yield TestRequest(number=value)


async def collect(responses: AsyncIterator[TestResponse]) -> list[int]:
    async with asyncio.timeout(PATIENCE):
        return [response.number async for response in responses]


class ServiceContract:
    """The contract of `hivemind.p2p.P2P`."""

    @pytest.mark.asyncio
    async def test_the_four_shapes(self, pair: Pair) -> None:
        alice, bob = pair
        service = Numbers()
        await service.add_p2p_handlers(alice)
        stub = Numbers.get_stub(bob, alice.peer_id)
        assert await stub.rpc_square(TestRequest(number=7)) == TestResponse(number=49)
        assert await stub.rpc_sum(numbers(1, 2, 3)) == TestResponse(number=6)
        assert await stub.rpc_sum(numbers()) == TestResponse(number=0)
        assert await collect(await stub.rpc_count(TestRequest(number=5))) == [0, 1, 2, 3, 4]
        assert await collect(await stub.rpc_count(TestRequest())) == []
        assert await collect(await stub.rpc_next(numbers(*range(500)))) == list(range(1, 501))
        assert service.contexts == [P2PContext("Numbers.rpc_square", alice.peer_id, bob.peer_id)]

    @pytest.mark.asyncio
    async def test_namespaces_and_removal(self, pair: Pair) -> None:
        alice, bob = pair
        one, two = Numbers(), Numbers()
        await one.add_p2p_handlers(alice, namespace="one")
        await two.add_p2p_handlers(alice, namespace="two")
        await Numbers.get_stub(bob, alice.peer_id, namespace="two").rpc_square(TestRequest(number=1))
        assert [context.handle_name for context in two.contexts] == ["two::Numbers.rpc_square"]
        assert one.contexts == []
        with pytest.raises(P2PDaemonError, match="protocol not supported"):
            await Numbers.get_stub(bob, alice.peer_id).rpc_square(TestRequest(number=1))
        with pytest.raises(P2PDaemonError):
            await one.add_p2p_handlers(alice, namespace="one")
        await one.remove_p2p_handlers(alice, namespace="one")
        with pytest.raises(P2PDaemonError, match="protocol not supported"):
            await Numbers.get_stub(bob, alice.peer_id, namespace="one").rpc_square(TestRequest(number=1))
        await one.add_p2p_handlers(alice, namespace="one")
        await Numbers.get_stub(bob, alice.peer_id, namespace="one").rpc_square(TestRequest(number=1))

    @pytest.mark.asyncio
    async def test_a_wrapper_stands_before_the_service(self, pair: Pair) -> None:
        alice, bob = pair

        class Refusing:
            def __getattr__(self, name: str) -> Any:
                async def refuse(request: TestRequest, context: P2PContext) -> TestResponse:
                    raise PermissionError(name)

                return refuse

        await Numbers().add_p2p_handlers(alice, Refusing())
        with pytest.raises(P2PHandlerError, match=r"PermissionError.*rpc_square"):
            await Numbers.get_stub(bob, alice.peer_id).rpc_square(TestRequest(number=1))

    @pytest.mark.asyncio
    async def test_errors_of_handlers(self, pair: Pair) -> None:
        alice, bob = pair
        await Numbers().add_p2p_handlers(alice)
        stub = Numbers.get_stub(bob, alice.peer_id)
        with pytest.raises(P2PHandlerError, match=r"^ValueError\('negative'\)$"):
            await stub.rpc_square(TestRequest(number=-1))
        responses = await stub.rpc_count(TestRequest(number=3))
        assert [(await anext(responses)).number for _ in range(3)] == [0, 1, 2]
        with pytest.raises(P2PHandlerError, match=r"^three is wrong$"):
            await anext(responses)
        with pytest.raises(StopAsyncIteration):
            await anext(responses)
        # the handler runs out of requests: any error, but one
        with pytest.raises(P2PHandlerError):
            await stub.rpc_first_only(numbers())

    @pytest.mark.asyncio
    async def test_a_handler_that_is_busy(self, pair: Pair) -> None:
        """It says when to try again."""
        alice, bob = pair
        await Numbers().add_p2p_handlers(alice)
        stub = Numbers.get_stub(bob, alice.peer_id)
        with pytest.raises(HandlerBusy, match=r"^the queue is full: try again in 2.5 s$") as refused:
            await stub.rpc_busy(TestRequest(number=25))
        assert refused.value.retry_after == 2.5
        assert isinstance(refused.value, PeerBusy)
        responses = await stub.rpc_count_busily(TestRequest(number=5))
        assert (await anext(responses)).number == 1
        with pytest.raises(HandlerBusy) as refused:
            await anext(responses)
        assert refused.value.retry_after == 0.5
        # a time that nobody waits for is no word of a busy handler
        with pytest.raises(P2PHandlerError, match="HandlerBusy"):
            await stub.rpc_busy(TestRequest(number=-1))

    @pytest.mark.asyncio
    async def test_a_stub_takes_a_timeout(self, pair: Pair) -> None:
        alice, bob = pair
        service = Numbers()
        await service.add_p2p_handlers(alice)
        stub = Numbers.get_stub(bob, alice.peer_id)
        with pytest.raises(TimeoutError):
            await stub.rpc_hang(TestRequest(), timeout=0.3)
        await eventually(service.hanging.cancelled.is_set, "the handler is cancelled")
        with pytest.raises(ValueError, match="timeout"):
            await stub.rpc_count(TestRequest(), timeout=1)
        with pytest.raises(ConfigError):
            await stub.rpc_square(TestRequest(), timeout=-1)

    @pytest.mark.asyncio
    async def test_a_deadline_bounds_a_whole_stream(self, pair: Pair) -> None:
        alice, bob = pair
        service = Numbers()
        await service.add_p2p_handlers(alice)
        responses = await bob.iterate_protobuf_handler(
            alice.peer_id, "Numbers.rpc_hang_after_one", TestRequest(), TestResponse, timeout=0.5
        )
        with pytest.raises(DeadlineExceeded):
            await collect(responses)
        await eventually(service.hanging.cancelled.is_set, "the handler is cancelled")

    @pytest.mark.asyncio
    async def test_cancelling_a_reader_cancels_the_handler(self, pair: Pair) -> None:
        alice, bob = pair
        service = Numbers()
        await service.add_p2p_handlers(alice)
        responses = await Numbers.get_stub(bob, alice.peer_id).rpc_hang_after_one(TestRequest())
        async with asyncio.TaskGroup() as group:
            task = group.create_task(collect(responses))
            await eventually(service.hanging.entered.is_set, "the handler hangs")
            task.cancel()
        await eventually(service.hanging.cancelled.is_set, "the handler is cancelled")

    @pytest.mark.asyncio
    async def test_closing_the_iterator_ends_the_handler(self, pair: Pair) -> None:
        alice, bob = pair
        service = Numbers()
        await service.add_p2p_handlers(alice)
        responses = await Numbers.get_stub(bob, alice.peer_id).rpc_endless(TestRequest())
        assert (await anext(responses)).chunks == 1
        await responses.aclose()
        await responses.aclose()
        await eventually(service.hanging.cancelled.is_set, "the generator is closed")
        with pytest.raises(StopAsyncIteration):
            await anext(responses)

    @pytest.mark.asyncio
    async def test_dropping_the_iterator_ends_the_handler(self, pair: Pair) -> None:
        alice, bob = pair
        service = Numbers()
        await service.add_p2p_handlers(alice)
        responses = await Numbers.get_stub(bob, alice.peer_id).rpc_hang_after_one(TestRequest())
        await eventually(service.hanging.entered.is_set, "the handler hangs")
        del responses
        gc.collect()
        await eventually(service.hanging.cancelled.is_set, "the handler is cancelled")

    @pytest.mark.asyncio
    async def test_dropping_the_iterator_ends_the_requests(self, pair: Pair) -> None:
        alice, bob = pair
        await Numbers().add_p2p_handlers(alice)
        entered, closed = asyncio.Event(), asyncio.Event()

        async def blocked() -> AsyncIterator[TestRequest]:
            yield TestRequest(number=1)
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                closed.set()

        responses = await Numbers.get_stub(bob, alice.peer_id).rpc_next(blocked())
        await eventually(entered.is_set, "the requests block")
        del responses
        gc.collect()
        await eventually(closed.is_set, "the requests are closed")

    @pytest.mark.asyncio
    async def test_an_endless_handler_waits_for_its_reader(self, pair: Pair) -> None:
        alice, bob = pair
        service = Numbers()
        await service.add_p2p_handlers(alice)
        responses = await Numbers.get_stub(bob, alice.peer_id).rpc_endless(TestRequest())
        assert (await anext(responses)).chunks == 1
        seen = -1
        async with asyncio.timeout(PATIENCE):
            while seen != service.taken:
                seen = service.taken
                await asyncio.sleep(0.5)
        await responses.aclose()

    @pytest.mark.asyncio
    async def test_requests_that_raise_end_the_call(self, pair: Pair) -> None:
        alice, bob = pair
        await Numbers().add_p2p_handlers(alice)
        stub = Numbers.get_stub(bob, alice.peer_id)

        async def failing() -> AsyncIterator[TestRequest]:
            yield TestRequest(number=1)
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await stub.rpc_sum(failing())
        with pytest.raises(KeyError, match="mine"):
            await collect(await stub.rpc_next(failing()))

    @pytest.mark.asyncio
    async def test_a_handler_that_needs_no_more_requests(self, pair: Pair) -> None:
        alice, bob = pair

        class Early(ServicerBase):
            async def rpc_early(
                self, requests: AsyncIterator[TestRequest], context: P2PContext
            ) -> AsyncIterator[TestResponse]:
                yield TestResponse(number=(await anext(aiter(requests))).number)

        await Early().add_p2p_handlers(alice)
        closed = asyncio.Event()

        async def endless() -> AsyncIterator[TestRequest]:
            try:
                while True:
                    yield TestRequest(number=5)
                    await asyncio.sleep(0)
            finally:
                closed.set()

        assert await collect(await Early.get_stub(bob, alice.peer_id).rpc_early(endless())) == [5]
        await eventually(closed.is_set, "the requests are closed")

    @pytest.mark.asyncio
    async def test_one_answer_means_one(self, pair: Pair) -> None:
        alice, bob = pair
        await Numbers().add_p2p_handlers(alice)
        for count in (0, 2):
            with pytest.raises(P2PHandlerError, match="expected one answer"):
                await bob.call_protobuf_handler(
                    alice.peer_id, "Numbers.rpc_next", numbers(*range(count)), TestResponse, timeout=PATIENCE
                )

    @pytest.mark.asyncio
    @pytest.mark.parametrize("count", [0, 2])
    async def test_one_request_means_one(self, pair: Pair, count: int) -> None:
        alice, bob = pair
        await Numbers().add_p2p_handlers(alice)
        responses = await bob.iterate_protobuf_handler(
            alice.peer_id, "Numbers.rpc_count", numbers(*range(count)), TestResponse
        )
        with pytest.raises(P2PHandlerError, match="expected exactly one request"):
            await collect(responses)

    @pytest.mark.asyncio
    async def test_garbage_costs_its_sender_the_call(self, pair: Pair) -> None:
        alice, bob = pair
        await Numbers().add_p2p_handlers(alice)
        with pytest.raises(P2PHandlerError, match="DecodeError"):
            await bob.transport.call(alice.peer_id, "Numbers.rpc_square", b"\xff\xff", soon())
        stream = await bob.transport.open(alice.peer_id, "Numbers.rpc_next", Mode.MESSAGES, soon())
        await stream.send(b"\xff\xff")
        with pytest.raises(P2PHandlerError, match="TestRequest"):
            await stream.receive()
        assert (await Numbers.get_stub(bob, alice.peer_id).rpc_square(TestRequest(number=2))).number == 4

    @pytest.mark.asyncio
    async def test_garbage_in_an_answer_is_an_error_here(self, pair: Pair) -> None:
        alice, bob = pair

        async def garbage(request: object, remote: object) -> bytes:
            return b"\xff\xff"

        async def garbage_stream(stream: Stream) -> None:
            await stream.send(b"\xff\xff")
            await stream.receive()

        await alice.transport.listen_unary("garbage", garbage)
        await alice.transport.listen_stream("garbage stream", Mode.MESSAGES, garbage_stream)
        with pytest.raises(SerializationError):
            await bob.call_protobuf_handler(alice.peer_id, "garbage", TestRequest(), TestResponse)
        with pytest.raises(SerializationError):
            await collect(
                await bob.iterate_protobuf_handler(alice.peer_id, "garbage stream", TestRequest(), TestResponse)
            )

    @pytest.mark.asyncio
    async def test_a_handler_that_gives_no_message(self, pair: Pair) -> None:
        alice, bob = pair

        async def nothing(request: TestRequest, context: P2PContext) -> None:
            return None

        await alice.add_protobuf_handler("nothing", nothing, TestRequest)
        with pytest.raises(P2PHandlerError, match="NoneType instead of a protobuf message"):
            await bob.call_protobuf_handler(alice.peer_id, "nothing", TestRequest(), TestResponse)

    @pytest.mark.asyncio
    async def test_a_streaming_handler_may_be_a_coroutine(self, pair: Pair) -> None:
        alice, bob = pair

        async def give(request: TestRequest, context: P2PContext) -> AsyncIterator[TestResponse]:
            async def generate() -> AsyncIterator[TestResponse]:
                yield TestResponse(number=request.number)

            return generate()

        await alice.add_protobuf_handler("give", give, TestRequest, stream_output=True)
        responses = await bob.iterate_protobuf_handler(alice.peer_id, "give", TestRequest(number=3), TestResponse)
        assert await collect(responses) == [3]

    # -- raw streams -----------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_raw_streams_are_readers_and_writers(self, pair: Pair) -> None:
        alice, bob = pair
        infos: list[StreamInfo] = []

        async def upper(info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            infos.append(info)
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()

        await alice.add_binary_stream_handler("upper", upper)
        info, reader, writer = await bob.call_binary_stream_handler(alice.peer_id, "upper", timeout=PATIENCE)
        assert (info.peer_id, info.proto) == (alice.peer_id, "upper")
        async with asyncio.timeout(PATIENCE):
            writer.writelines([b"one\n", b"two\n"])
            assert await reader.readline() == b"ONE\n"
            writer.write(b"x" * 50_000 + b"\n")
            writer.write_eof()
            assert await reader.read() == b"TWO\n" + b"X" * 50_000 + b"\n"
            writer.close()
            await writer.wait_closed()
        assert [(each.peer_id, each.proto) for each in infos] == [(bob.peer_id, "upper")]
        await alice.remove_binary_stream_handler("upper")
        with pytest.raises(DispatchFailure, match="protocol not supported"):
            await open_raw(bob, alice, "upper")

    @pytest.mark.asyncio
    async def test_protobufs_on_raw_streams(self, pair: Pair) -> None:
        alice, bob = pair

        async def double(info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                message, error = await P2P.receive_protobuf(TestRequest, reader)
                if error is not None:
                    break
                assert message is not None
                await P2P.send_protobuf(TestResponse(number=2 * message.number), writer)
            await P2P.send_raw_data(bytes(300_000), writer)
            await P2P.send_protobuf(RPCError(message="so long"), writer)

        await alice.add_binary_stream_handler("double", double)
        async with asyncio.timeout(PATIENCE):
            _, reader, writer = await bob.call_binary_stream_handler(alice.peer_id, "double")
            for number in (0, 21):
                await P2P.send_protobuf(TestRequest(number=number), writer)
                assert await P2P.receive_protobuf(TestResponse, reader) == (TestResponse(number=2 * number), None)
            await P2P.send_protobuf(P2P.END_OF_STREAM, writer)
            assert await P2P.receive_raw_data(reader) == bytes(300_000)
            assert await P2P.receive_protobuf(TestResponse, reader) == (None, RPCError(message="so long"))
            writer.close()
            await writer.wait_closed()

    @pytest.mark.asyncio
    async def test_a_raw_writer_waits_and_notices_the_end(self, pair: Pair) -> None:
        alice, bob = pair
        go_on = asyncio.Event()

        async def lazy(info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go_on.wait()
            await reader.readexactly(1)
            raise RuntimeError("enough")

        await alice.add_binary_stream_handler("lazy", lazy)
        _, reader, writer = await bob.call_binary_stream_handler(alice.peer_id, "lazy")
        written = 0

        async def write_for_ever() -> None:
            nonlocal written
            while True:
                writer.write(bytes(100_000))
                await writer.drain()
                written += 1

        async def watch() -> None:
            seen = -1
            while seen != written:
                seen = written
                await asyncio.sleep(0.5)
            go_on.set()

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(watch())
            with pytest.raises(ConnectionError):
                await write_for_ever()
        with pytest.raises(ConnectionError):
            await reader.read()

    # -- the peer itself -------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_peers_and_addresses(self, pair: Pair) -> None:
        alice, bob = pair
        await Numbers().add_p2p_handlers(alice)
        await Numbers.get_stub(bob, alice.peer_id).rpc_square(TestRequest(number=1))
        await alice.wait_for_at_least_n_peers(1)
        with pytest.raises(RuntimeError):
            await alice.wait_for_at_least_n_peers(10, attempts=2, delay=0)
        visible = await alice.get_visible_maddrs()
        assert all(str(address).endswith(f"/p2p/{alice.peer_id}") for address in visible)
        assert await alice.get_visible_maddrs(latest=True) == visible
        await bob.disconnect(alice.peer_id)
        await bob.connect(alice.peer_id, visible)
        assert bob.is_alive

    @pytest.mark.asyncio
    async def test_shutdown_ends_readers_and_may_be_repeated(self, pair: Pair) -> None:
        alice, bob = pair
        service = Numbers()
        await service.add_p2p_handlers(alice)
        responses = await Numbers.get_stub(bob, alice.peer_id).rpc_hang_after_one(TestRequest())
        _ = await anext(responses)

        async def read() -> None:
            with pytest.raises((StreamReset, P2PDaemonError)):
                await collect(responses)

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(read())
            await eventually(service.hanging.entered.is_set, "the handler hangs")
            await bob.shutdown()
        await bob.shutdown()
        assert not bob.is_alive
        with pytest.raises(P2PDaemonError):
            await Numbers.get_stub(bob, alice.peer_id).rpc_square(TestRequest(number=1))
        await eventually(service.hanging.cancelled.is_set, "the handler is cancelled")


async def open_raw(caller: P2P, callee: P2P, name: str) -> bytes:
    """A daemon may notice only when reading that the peer has no such handler."""
    _, reader, writer = await caller.call_binary_stream_handler(callee.peer_id, name)
    try:
        return await reader.read()
    except ConnectionError as error:
        raise DispatchFailure(str(error)) from error
    finally:
        writer.close()
