"""The way of a DHT node to the node of another process on the same daemon.

A node whose peer id is one's own is nobody that the network could look up. The process
whose node answers for the peer keeps a `Door`, a unix socket beside that of the daemon, in the same folder of mode
0700; a copy of the DHT in another process reaches it by a `Home`. One connection carries one call: a request ``u32
length, u8 method, message``, then an answer ``u32 length, u8 failed, message or text of the error``, big-endian.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline
from hivemind.errors import HivemindError, P2PHandlerError, PeerUnreachable, ProtocolViolation, StreamReset
from hivemind.identity import PeerID
from hivemind.log import get_logger
from hivemind.p2p import DEFAULT_MAX_MSG_SIZE, P2PContext
from hivemind.proto import dht_pb2

__all__ = ["Door", "Home"]

logger = get_logger(__name__)

#: method → messages of its request and answer; the place in the list is its number in a request.
_METHODS: Final[dict[str, tuple[type[Any], type[Any]]]] = {
    "rpc_ping": (dht_pb2.PingRequest, dht_pb2.PingResponse),
    "rpc_store": (dht_pb2.StoreRequest, dht_pb2.StoreResponse),
    "rpc_find": (dht_pb2.FindRequest, dht_pb2.FindResponse),
}
_NAMES: Final = tuple(_METHODS)
_HEAD: Final = struct.Struct(">IB")
#: Seconds for a whole call, and how many may be under way: neither is met in use.
_CALL_SECONDS: Final = 15.0
_MAX_CALLS: Final = 512

Handlers = Callable[[str, Any, P2PContext], Awaitable[Any]]


class Door:
    """Answers calls of other processes with the handlers of a node. Owned by the network thread.

    :param folder: where its socket is made; only this user may enter it
    :param peer_id: the peer of both sides
    :param handle: ``await handle("rpc_…", request, context)``
    """

    def __init__(self, folder: Path, peer_id: PeerID, handle: Handlers) -> None:
        # not longer than the name of the daemon's own socket: paths of sockets are short
        self.path = folder / f"{secrets.token_hex(4)}.dht"
        self._peer_id = peer_id
        self._handle = handle
        self._scope = TaskScope("calls of other processes")
        self._server: asyncio.AbstractServer | None = None

    async def open(self) -> None:
        """Begin to answer.

        :raises OSError: if the socket cannot be made
        """
        self._server = await asyncio.start_unix_server(self._enter, str(self.path))

    def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(tuple(self._scope.tasks)) >= _MAX_CALLS:
            writer.transport.abort()
            return
        self._scope.start(self._serve(reader, writer), name="call of another process")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await with_deadline(self._answer(reader, writer), Deadline.after(_CALL_SECONDS), "call of another process")
        except asyncio.IncompleteReadError:
            logger.debug("a process on this daemon has ended in the middle of a call")
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, data = await _read(reader)
        if number >= len(_NAMES):
            raise ProtocolViolation(f"method {number} of the DHT")
        name = _NAMES[number]
        try:
            request = _METHODS[name][0].FromString(data)
            response = await self._handle(name, request, P2PContext(name, self._peer_id, self._peer_id))
        except (HivemindError, DecodeError) as error:
            failed, answer = 1, repr(error).encode()
        else:
            failed, answer = 0, response.SerializeToString()
        writer.write(_HEAD.pack(len(answer), failed) + answer)
        await writer.drain()
        # the answer is out when the other side has closed its end
        await reader.read(1)

    async def close(self) -> None:
        """Answer no more. Idempotent."""
        if self._server is not None:
            self._server.close()
        await self._scope.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


class Home:
    """A stub of the node behind a `Door`; methods as those of the stubs of `DHTProtocol`.

    :param path: the door's socket
    :param peer_id: the peer of both sides
    """

    def __init__(self, path: Path, peer_id: PeerID) -> None:
        self.path = path
        self.peer_id = peer_id

    async def rpc_ping(self, request: dht_pb2.PingRequest, timeout: float | None = None) -> dht_pb2.PingResponse:
        """`DHTProtocol.rpc_ping` of the node."""
        response: dht_pb2.PingResponse = await self._call("rpc_ping", request, timeout)
        return response

    async def rpc_store(self, request: dht_pb2.StoreRequest, timeout: float | None = None) -> dht_pb2.StoreResponse:
        """`DHTProtocol.rpc_store` of the node."""
        response: dht_pb2.StoreResponse = await self._call("rpc_store", request, timeout)
        return response

    async def rpc_find(self, request: dht_pb2.FindRequest, timeout: float | None = None) -> dht_pb2.FindResponse:
        """`DHTProtocol.rpc_find` of the node."""
        response: dht_pb2.FindResponse = await self._call("rpc_find", request, timeout)
        return response

    async def _call(self, name: str, request: Any, timeout: float | None) -> Any:
        """
        :raises PeerUnreachable: if nobody is behind the door any more
        :raises StreamReset: if it was closed during the call
        :raises P2PHandlerError: what the handler has raised
        :raises DeadlineExceeded: after ``timeout``
        """
        deadline = Deadline.after(_CALL_SECONDS if timeout is None else timeout)
        failed, answer = await with_deadline(self._exchange(name, request), deadline, f"{name} of the own node")
        if failed:
            raise P2PHandlerError(answer.decode(errors="replace"))
        return _METHODS[name][1].FromString(answer)

    async def _exchange(self, name: str, request: Any) -> tuple[int, bytes]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.path))
        except OSError as error:
            why = f"the process that it was made in has shut it down or ended ({error})"
            raise PeerUnreachable(f"the DHT that this one is a copy of does not answer: {why}") from error
        try:
            data = request.SerializeToString()
            writer.write(_HEAD.pack(len(data), _NAMES.index(name)) + data)
            await writer.drain()
            return await _read(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise StreamReset("the DHT that this one is a copy of has ended during a call") from error
        finally:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """
    :raises ProtocolViolation: if a message is announced that is larger than any
    """
    size, number = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if size > DEFAULT_MAX_MSG_SIZE:
        raise ProtocolViolation(f"a message of {size} bytes, at most {DEFAULT_MAX_MSG_SIZE}")
    return number, await reader.readexactly(size)
