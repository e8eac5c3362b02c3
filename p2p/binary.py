"""Raw streams between peers as `asyncio` readers and writers, and the framing of hivemind 1.1 on top of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from multiaddr import Multiaddr

from hivemind.aio import TaskScope
from hivemind.errors import DispatchFailure, ProtocolViolation
from hivemind.identity import PeerID
from hivemind.p2p.limits import MAX_STREAM_MESSAGE
from hivemind.p2p.transport import Stream
from hivemind.proto import p2pd_pb2

__all__ = [
    "END_OF_STREAM",
    "StreamInfo",
    "open_pair",
    "receive_protobuf",
    "receive_raw_data",
    "send_protobuf",
    "send_raw_data",
]

M = TypeVar("M", bound=Message)

#: Sent by a caller after its last request.
END_OF_STREAM = p2pd_pb2.RPCError()
_LENGTH_BYTES = 8
_MESSAGE = b"\x00"
_ERROR = b"\x01"
#: Bytes waiting to be sent above which `drain` waits, and below which it goes on.
_HIGH_WATER = 256 * 1024
_LOW_WATER = 64 * 1024
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class StreamInfo:
    """The other side of a raw stream.

    :param peer_id: the peer
    :param addr: the address it was reached by, where known
    :param proto: the handler's name
    """

    peer_id: PeerID
    addr: Multiaddr | None
    proto: str


class _StreamTransport(asyncio.Transport):
    """An asyncio transport over a `Stream`: two tasks carry the bytes, one each way."""

    def __init__(self, stream: Stream, protocol: asyncio.StreamReaderProtocol, scope: TaskScope) -> None:
        super().__init__({"peername": stream.remote_id})
        self._stream = stream
        self._protocol = protocol
        self._buffer = bytearray()
        self._paused = False
        self._closing = False
        self._eof = False
        self._lost = False
        self._something = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        protocol.connection_made(self)
        self._receiver = scope.start(self._receive(), name="raw stream, in")
        scope.start(self._send(), name="raw stream, out")

    async def _receive(self) -> None:
        try:
            while True:
                await self._reading.wait()
                data = await self._stream.receive()
                if data is None:
                    self._protocol.eof_received()
                    return
                self._protocol.data_received(bytes(data))
        except DispatchFailure as error:
            self._connection_lost(ConnectionResetError(str(error)))

    async def _send(self) -> None:
        try:
            while not (self._eof or self._closing) or self._buffer:
                await self._something.wait()
                self._something.clear()
                while self._buffer:
                    data, self._buffer = self._buffer, bytearray()
                    for start in range(0, len(data), _CHUNK):
                        await self._stream.send(bytes(memoryview(data)[start : start + _CHUNK]))
                    self._resume_if_low()
            await self._stream.finish()
            while not self._closing:
                await self._something.wait()
                self._something.clear()
        except DispatchFailure as error:
            self._connection_lost(ConnectionResetError(str(error)))
            return
        except asyncio.CancelledError:
            self._connection_lost(ConnectionResetError("the peer was shut down"))
            raise
        self._connection_lost(None)

    def _resume_if_low(self) -> None:
        if self._paused and len(self._buffer) <= _LOW_WATER:
            self._paused = False
            self._protocol.resume_writing()

    def _connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._buffer.clear()
        self._reading.set()
        self._something.set()
        self._receiver.cancel()
        self._protocol.connection_lost(error)

    def write(self, data: Any) -> None:
        if self._closing or self._eof:
            return
        self._buffer += data
        self._something.set()
        if len(self._buffer) > _HIGH_WATER and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof = True
        self._something.set()

    def close(self) -> None:
        self._closing = True
        self._something.set()

    def abort(self) -> None:
        self._stream.reset()
        self._connection_lost(None)

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading.is_set()

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)


def open_pair(stream: Stream, scope: TaskScope) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """``stream`` as an asyncio reader and writer, whose tasks ``scope`` owns. Closing the writer finishes the stream
    after what was written; aborting its transport resets it."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_CHUNK, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = _StreamTransport(stream, protocol, scope)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def send_raw_data(
    data: bytes | bytearray | memoryview, writer: asyncio.StreamWriter, *, chunk_size: int = _CHUNK
) -> None:
    """Write an 8-byte big-endian length and ``data``, waiting for room after every ``chunk_size`` bytes."""
    view = memoryview(data)
    writer.write(len(view).to_bytes(_LENGTH_BYTES, "big"))
    for start in range(0, len(view), chunk_size):
        writer.write(view[start : start + chunk_size])
        await writer.drain()
    await writer.drain()


async def receive_raw_data(reader: asyncio.StreamReader, *, max_size: int = MAX_STREAM_MESSAGE) -> bytes:
    """Read what `send_raw_data` wrote. Memory grows as bytes arrive, not by the length that a peer claims.

    :raises ProtocolViolation: if the length is over ``max_size``
    :raises asyncio.IncompleteReadError: if the stream ends before
    """
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if size > max_size:
        raise ProtocolViolation(f"a message of {size} bytes; the limit is {max_size}")
    return await reader.readexactly(size)


async def send_protobuf(message: Message, writer: asyncio.StreamWriter) -> None:
    """Write a marker byte (1 for an `RPCError`, else 0) and the message by `send_raw_data`."""
    writer.write(_ERROR if isinstance(message, p2pd_pb2.RPCError) else _MESSAGE)
    await send_raw_data(message.SerializeToString(), writer)


async def receive_protobuf(
    input_type: type[M], reader: asyncio.StreamReader
) -> tuple[M | None, p2pd_pb2.RPCError | None]:
    """Read what `send_protobuf` wrote.

    :returns: the message and None, or None and the error (`END_OF_STREAM` is an empty one)
    :raises ProtocolViolation: on an unknown marker or bytes that are no such message
    :raises asyncio.IncompleteReadError: if the stream ends before
    """
    marker = await reader.readexactly(1)
    if marker not in (_MESSAGE, _ERROR):
        raise ProtocolViolation(f"unknown marker {marker.hex()} before a message")
    data = await receive_raw_data(reader)
    try:
        if marker == _ERROR:
            return None, p2pd_pb2.RPCError.FromString(data)
        return input_type.FromString(data), None
    except DecodeError as error:
        raise ProtocolViolation(f"{len(data)} bytes are not the message announced: {error}") from error
