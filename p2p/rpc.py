"""Protobuf messages over a transport: the callers and handlers of the four shapes of a remote call."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from hivemind.aio import TaskScope, cancel_and_wait, with_deadline
from hivemind.clock import Deadline
from hivemind.errors import DispatchFailure, HandlerBusy, P2PHandlerError, SerializationError
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p.serving import MAX_ERROR_TEXT
from hivemind.p2p.transport import Buffer, Mode, Stream, StreamHandler, Transport, UnaryHandler

__all__ = [
    "P2PContext",
    "Responses",
    "call_stream",
    "open_responses",
    "parse",
    "stream_handler",
    "unary_handler",
]

logger = get_logger(__name__)

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class P2PContext:
    """What a handler is told about its call.

    :param handle_name: the name that was called
    :param local_id: this peer
    :param remote_id: the caller, authenticated
    """

    handle_name: str
    local_id: PeerID
    remote_id: PeerID


class _Closable(Protocol):
    async def aclose(self) -> None: ...


# -- callers -------------------------------------------------------------------------------------------------------


class Responses(Generic[M]):
    """The answers of a stream call as an async iterator. `aclose` (or the end of the object's life) ends the call on
    both sides; the peer's handler is cancelled if it still runs.

    Raises `P2PHandlerError` if the handler raised, `DispatchFailure` if the stream broke, `DeadlineExceeded` if the
    call's deadline passed, and whatever the iterator of requests raised.
    """

    def __init__(self, stream: Stream, output_type: type[M], deadline: Deadline, name: str) -> None:
        self._stream = stream
        self._output_type = output_type
        self._deadline = deadline
        self._name = name
        # the task that sends the requests, if they are a stream
        self._senders: list[asyncio.Task[None]] = []
        self._ended = False
        loop = asyncio.get_running_loop()
        # one that is dropped unread must not leave the peer's handler running; finalizers may run on any thread
        self._finalizer = weakref.finalize(self, _drop_soon, loop, stream, self._senders)
        self._finalizer.atexit = False

    def send_from(self, scope: TaskScope, requests: AsyncIterable[Message]) -> None:
        """Send ``requests`` in the background, as a task of ``scope``."""
        self._senders.append(scope.start(_send_all(self._stream, requests), name=f"requests of {self._name}"))

    def __aiter__(self) -> Responses[M]:
        return self

    async def __anext__(self) -> M:
        if self._ended:
            raise StopAsyncIteration
        try:
            data = await with_deadline(self._stream.receive(), self._deadline, f"answers of {self._name}")
            message = None if data is None else parse(self._output_type, data)
        except BaseException as error:
            await self._end(failed=True)
            self._raise_senders_error(error)
            raise
        if message is None:
            await self._end(failed=False)
            raise StopAsyncIteration
        return message

    def _raise_senders_error(self, error: BaseException) -> None:
        """The fault that came first is the sender's if its requests raised: the stream only broke because of that."""
        for sender in self._senders:
            if sender.done() and not sender.cancelled() and isinstance(error, DispatchFailure):
                cause = sender.exception()
                if cause is not None and not isinstance(cause, DispatchFailure):
                    raise cause

    async def _end(self, *, failed: bool) -> None:
        if self._ended:
            return
        self._ended = True
        self._finalizer.detach()
        await cancel_and_wait(*(sender for sender in self._senders if not sender.done()))
        if failed:
            self._stream.reset()
        else:
            await self._stream.finish()

    async def aclose(self) -> None:
        """End the call. Idempotent."""
        await self._end(failed=True)


def _drop_soon(loop: asyncio.AbstractEventLoop, stream: Stream, senders: list[asyncio.Task[None]]) -> None:
    def drop() -> None:
        stream.reset()
        for sender in senders:
            sender.cancel()

    with suppress(RuntimeError):  # the loop is closed, and the stream with it
        loop.call_soon_threadsafe(drop)


async def _send_all(stream: Stream, requests: AsyncIterable[Message]) -> None:
    try:
        async for request in requests:
            await stream.send(request.SerializeToString())
    except DispatchFailure:
        return  # the reader of the answers meets the same error, or the peer had no need of more requests
    except BaseException:
        stream.reset()
        raise
    finally:
        close = getattr(requests, "aclose", None)
        if close is not None:
            await close()
    await stream.finish()


async def open_responses(
    transport: Transport,
    scope: TaskScope,
    peer: PeerID,
    name: str,
    requests: Message | AsyncIterable[Message],
    output_type: type[M],
    deadline: Deadline,
) -> Responses[M]:
    """Call a handler that answers with a stream, or takes one; ``deadline`` bounds the whole exchange."""
    stream = await transport.open(peer, name, Mode.MESSAGES, deadline)
    responses = Responses(stream, output_type, deadline, name)
    if not isinstance(requests, Message):
        responses.send_from(scope, requests)
        return responses
    try:
        await with_deadline(_send_one(stream, requests), deadline, f"request of {name}")
    except BaseException:
        await responses.aclose()
        raise
    return responses


async def _send_one(stream: Stream, request: Message) -> None:
    with suppress(DispatchFailure):  # the answers tell why
        await stream.send(request.SerializeToString())
        await stream.finish()


async def call_stream(
    transport: Transport,
    scope: TaskScope,
    peer: PeerID,
    name: str,
    requests: AsyncIterable[Message],
    output_type: type[M],
    deadline: Deadline,
) -> M:
    """Call a handler that takes a stream and gives one answer.

    :raises P2PHandlerError: if it gave none or several
    """
    async with aclosing(await open_responses(transport, scope, peer, name, requests, output_type, deadline)) as answers:
        first: M | None = None
        async for message in answers:
            if first is not None:
                raise P2PHandlerError(f"{name}: expected one answer, got several")
            first = message
        if first is None:
            raise P2PHandlerError(f"{name}: expected one answer, got none")
        return first


def parse(kind: type[M], data: Buffer) -> M:
    """
    :raises SerializationError: if ``data`` is not a message of ``kind``
    """
    try:
        return kind.FromString(cast("bytes", data))
    except DecodeError as error:
        raise SerializationError(f"{len(data)} bytes are not a {kind.__name__}: {error}") from error


# -- handlers ------------------------------------------------------------------------------------------------------


def unary_handler(name: str, local_id: PeerID, handler: Callable[..., Any], input_type: type[M]) -> UnaryHandler:
    """Turn ``await handler(message, context)`` into a transport's handler. What it raises is sent back as its repr."""

    async def handle(request: Buffer, remote: PeerID) -> bytes:
        message = input_type.FromString(cast("bytes", request))
        response = await handler(message, P2PContext(name, local_id, remote))
        return _serialized(response, name)

    return handle


def stream_handler(
    name: str,
    local_id: PeerID,
    handler: Callable[..., Any],
    input_type: type[M],
    *,
    stream_input: bool,
    stream_output: bool,
) -> StreamHandler:
    """Turn a handler that takes or gives async iterators into a transport's. What it raises is sent back as its str."""

    async def handle(stream: Stream) -> None:
        context = P2PContext(name, local_id, stream.remote_id)
        try:
            requests = _requests(stream, input_type)
            request = requests if stream_input else await _single(requests)
            if not stream_output:
                await stream.send(_serialized(await handler(request, context), name))
                return
            async with aclosing(await _iterator(handler(request, context))) as responses:
                async for response in cast("AsyncIterator[Any]", responses):
                    await stream.send(_serialized(response, name))
        except HandlerBusy as error:
            with suppress(DispatchFailure):
                await stream.send_error(repr(error)[:MAX_ERROR_TEXT])
        except DispatchFailure:
            raise  # there is nobody to tell
        except Exception as error:
            logger.debug("handler %s failed for %s", name, stream.remote_id, exc_info=True)
            with suppress(DispatchFailure):
                await stream.send_error(str(error)[:MAX_ERROR_TEXT])

    return handle


async def _requests(stream: Stream, input_type: type[M]) -> AsyncIterator[M]:
    while (data := await stream.receive()) is not None:
        yield parse(input_type, data)


async def _single(requests: AsyncIterator[M]) -> M:
    found = [request async for request in _at_most(requests, 2)]
    if len(found) != 1:
        raise ValueError(f"expected exactly one request, got {'none' if not found else 'several'}")
    return found[0]


async def _at_most(items: AsyncIterator[M], count: int) -> AsyncIterator[M]:
    async for item in items:
        yield item
        count -= 1
        if count == 0:
            return


class _PlainIterator:
    """Gives an iterator without `aclose` an empty one."""

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._iterator

    async def aclose(self) -> None:
        return


async def _iterator(result: Any) -> _Closable:
    """A handler is an async generator function, or a coroutine function that returns an async iterator."""
    if asyncio.iscoroutine(result):
        result = await result
    return result if hasattr(result, "aclose") else _PlainIterator(result.__aiter__())


def _serialized(response: object, name: str) -> bytes:
    if not isinstance(response, Message):
        raise TypeError(f"handler {name} gave {type(response).__name__} instead of a protobuf message")
    return response.SerializeToString()
