"""A servicer and its caller that both libraries run unchanged: calls in all four shapes, and faults.

Only what the documented API of hivemind 1.1 has is used, so the same lines are the handler and the caller of either
side.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, AsyncIterator  # noqa: UP035 (1.1.12 knows a stream by this one only)

from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.proto.runtime_pb2 import Tensor
from hivemind.proto.test_pb2 import TestRequest, TestResponse

try:
    from hivemind.errors import HandlerBusy
except ImportError:  # hivemind 1.1: an error of that name

    class HandlerBusy(Exception):  # type: ignore[no-redef]
        """A handler has no time now."""


CALL_TIMEOUT = 30.0  # seconds for one call; typical is a few milliseconds


class Arithmetic(ServicerBase):
    """Every shape of a call, on numbers, and two on bytes."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.started = 0
        self.cancelled = 0

    async def rpc_square(self, request: TestRequest, context: P2PContext) -> TestResponse:
        self.callers.append(context.remote_id.to_base58())
        return TestResponse(number=request.number**2)

    async def rpc_count(self, request: TestRequest, context: P2PContext) -> AsyncIterator[TestResponse]:
        for number in range(request.number):
            yield TestResponse(number=number)

    async def rpc_sum(self, requests: AsyncIterator[TestRequest], context: P2PContext) -> TestResponse:
        return TestResponse(number=sum([request.number async for request in requests]))

    async def rpc_running_sum(
        self, requests: AsyncIterator[TestRequest], context: P2PContext
    ) -> AsyncIterator[TestResponse]:
        total = 0
        async for request in requests:
            total += request.number
            yield TestResponse(number=total)

    async def rpc_refuse(self, request: TestRequest, context: P2PContext) -> TestResponse:
        raise ValueError(f"refused {request.number}")

    async def rpc_busy(self, request: TestRequest, context: P2PContext) -> TestResponse:
        raise HandlerBusy("the queue is full", request.number / 2)

    async def rpc_count_then_refuse(self, request: TestRequest, context: P2PContext) -> AsyncIterator[TestResponse]:
        for number in range(request.number):
            yield TestResponse(number=number)
        raise ValueError(f"refused after {request.number}")

    async def rpc_hang(self, request: TestRequest, context: P2PContext) -> TestResponse:
        await self._hang()
        return TestResponse()

    async def rpc_hang_midway(self, request: TestRequest, context: P2PContext) -> AsyncIterator[TestResponse]:
        yield TestResponse(number=request.number)
        await self._hang()

    async def rpc_mirror(self, request: Tensor, context: P2PContext) -> Tensor:
        return Tensor(buffer=bytes(reversed(request.buffer)))

    async def rpc_length(self, request: Tensor, context: P2PContext) -> TestResponse:
        await asyncio.sleep(0.1)  # so that many are under way at once
        return TestResponse(number=len(request.buffer))

    async def rpc_mirror_stream(self, requests: AsyncIterator[Tensor], context: P2PContext) -> AsyncIterator[Tensor]:
        async for request in requests:
            yield Tensor(buffer=bytes(reversed(request.buffer)))

    async def _hang(self) -> None:
        self.started += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def send_numbers(numbers: list[int]) -> AsyncIterator[TestRequest]:
    for number in numbers:
        yield TestRequest(number=number)


async def send_blobs(blobs: list[bytes]) -> AsyncIterator[Tensor]:
    for blob in blobs:
        yield Tensor(buffer=blob)


async def call(p2p: P2P, peer_id: str, method: str, argument: Any) -> Any:
    """Call ``Arithmetic.<method>`` of the peer once.

    :param argument: an int, a list of ints, bytes or a list of bytes, as the method takes
    :returns: what the peer answered, in the same plain types. A call that fails is an answer too: ``{"raised": type,
        "text": text, "before": items}`` with the items that came before the failure
    """
    stub = Arithmetic.get_stub(p2p, PeerID.from_base58(peer_id))
    received: list[Any] = []
    try:
        return await asyncio.wait_for(_CALLS[method](stub, argument, received), CALL_TIMEOUT)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the outcome)
        return {"raised": type(error).__name__, "text": str(error), "before": received}


async def hang(p2p: P2P, peer_id: str) -> None:
    """Call a handler that never answers; it is for the caller to cancel this coroutine."""
    await Arithmetic.get_stub(p2p, PeerID.from_base58(peer_id)).rpc_hang(TestRequest(number=1))


async def _collect(opening: Awaitable[AsyncIterator[Any]], field: str, received: list[Any]) -> list[Any]:
    async for response in await opening:
        received.append(getattr(response, field))  # noqa: PERF401 (what came before a failure has to be kept)
    return received


async def _square(stub: Any, number: int, received: list[Any]) -> Any:
    return (await stub.rpc_square(TestRequest(number=number))).number


async def _count(stub: Any, number: int, received: list[Any]) -> Any:
    return await _collect(stub.rpc_count(TestRequest(number=number)), "number", received)


async def _sum(stub: Any, numbers: list[int], received: list[Any]) -> Any:
    return (await stub.rpc_sum(send_numbers(numbers))).number


async def _running_sum(stub: Any, numbers: list[int], received: list[Any]) -> Any:
    return await _collect(stub.rpc_running_sum(send_numbers(numbers)), "number", received)


async def _refuse(stub: Any, number: int, received: list[Any]) -> Any:
    return (await stub.rpc_refuse(TestRequest(number=number))).number


async def _busy(stub: Any, number: int, received: list[Any]) -> Any:
    return (await stub.rpc_busy(TestRequest(number=number))).number


async def _count_then_refuse(stub: Any, number: int, received: list[Any]) -> Any:
    return await _collect(stub.rpc_count_then_refuse(TestRequest(number=number)), "number", received)


async def _mirror(stub: Any, blob: bytes, received: list[Any]) -> Any:
    return (await stub.rpc_mirror(Tensor(buffer=blob))).buffer


async def _mirror_stream(stub: Any, blobs: list[bytes], received: list[Any]) -> Any:
    return await _collect(stub.rpc_mirror_stream(send_blobs(blobs)), "buffer", received)


async def _lengths(stub: Any, lengths: list[int], received: list[Any]) -> Any:
    """A call for each length, all at once; the lengths that the peer has found."""
    answers = await asyncio.gather(*(stub.rpc_length(Tensor(buffer=bytes(length))) for length in lengths))
    return [answer.number for answer in answers]


async def _cancel_stream(stub: Any, number: int, received: list[Any]) -> Any:
    """Take the first item of a stream whose handler then hangs, and close the stream."""
    stream = await stub.rpc_hang_midway(TestRequest(number=number))
    first = await stream.__anext__()
    await stream.aclose()
    return first.number


_CALLS: dict[str, Callable[[Any, Any, list[Any]], Awaitable[Any]]] = {
    "square": _square,
    "count": _count,
    "sum": _sum,
    "running_sum": _running_sum,
    "refuse": _refuse,
    "busy": _busy,
    "count_then_refuse": _count_then_refuse,
    "mirror": _mirror,
    "mirror_stream": _mirror_stream,
    "lengths": _lengths,
    "cancel_stream": _cancel_stream,
}
