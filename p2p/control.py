"""The client's side of the control connection: frames in and out, requests, streams."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from hivemind.aio import TaskScope, with_deadline
from hivemind.clock import Deadline
from hivemind.errors import ConfigError, ControlFailure, DeadlineExceeded, HivemindError, StreamReset
from hivemind.identity import PeerID
from hivemind.large_blocks import keep_large_blocks
from hivemind.log import get_logger
from hivemind.p2p.calls import Numbers, error_of
from hivemind.p2p.exposition import track
from hivemind.p2p.framing import (
    MAX_FRAME,
    VERSION,
    Flag,
    FrameReader,
    FrameType,
    Header,
    mode_of,
    pack_header,
    pack_target,
    unpack_target,
)
from hivemind.p2p.limits import DEFAULT_MAX_MSG_SIZE, MAX_STREAM_MESSAGE, WINDOW, check_request
from hivemind.p2p.serving import answer, end_handlers, serve_stream
from hivemind.p2p.streams import ControlStream
from hivemind.p2p.transport import Buffer, Mode, StreamHandler, UnaryHandler
from hivemind.p2p.watch import HandlerWatch

__all__ = ["ControlClient"]

logger = get_logger(__name__)

#: Frames are gathered up to this size before they are written.
_FLUSH_BYTES = 256 * 1024
#: Pieces of no more than this are joined: a vector of them costs more than the copy.
_JOIN_BYTES = 32 * 1024
#: Seconds that the daemon has beyond a deadline to say itself that it passed, with its reasons.
_GRACE = 0.5
#: Seconds in which the daemon answers what it knows without asking the network.
_REQUEST_SECONDS = 10.0
#: Several times the longest unary message: it is received, parsed, built and serialized in blocks of its own.
_KEPT_BYTES = 16 * 1024 * 1024


class ControlClient(asyncio.BufferedProtocol):
    """One connection to the daemon. Owned by one loop.

    :param on_lost: called once when the connection is gone; it must see to it that `fail` is called
    :param on_event: called with each event
    :param watch: times the handlers; by default one of its own
    """

    def __init__(
        self,
        on_lost: Callable[[], None],
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        *,
        watch: HandlerWatch | None = None,
    ) -> None:
        self.watch = watch or HandlerWatch()
        keep_large_blocks(_KEPT_BYTES)
        self.window = WINDOW
        self.max_message = MAX_STREAM_MESSAGE
        self.max_unary = DEFAULT_MAX_MSG_SIZE
        self.peer_id: PeerID | None = None
        self.metrics_address: str | None = None
        self._on_lost = on_lost
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._vectored = False
        self._pieces: list[Buffer] = []
        self._pieces_bytes = 0
        self._reader = FrameReader(self)
        self._streams: dict[int, ControlStream] = {}
        self._requests: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._stream_numbers = Numbers(1, 2)
        self._request_numbers = Numbers(1, 1)
        self._handlers: dict[str, tuple[Mode, Any]] = {}
        self._scope = TaskScope("handlers of P2P")
        self._room: asyncio.Future[None] | None = None
        self._over: HivemindError | None = None
        track(self)

    # -- asyncio.BufferedProtocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # uvloop, and asyncio from 3.12 on, hand several pieces to one system call; before that writelines copies
        self._vectored = not type(transport).__module__.startswith("asyncio.") or sys.version_info >= (3, 12)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._reader.advance(nbytes)
        except ControlFailure as error:
            logger.error("the daemon broke the control protocol: %s", error)
            self.abort(error)
        except Exception as error:
            logger.exception("while reading from the daemon")
            self.abort(ControlFailure(f"while reading from the daemon: {error!r}"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        if self._over is None:
            self._on_lost()

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # -- for streams -----------------------------------------------------------------------------------------------

    def write(self, header: bytes, payload: Buffer = b"", *, last: bool = False) -> None:
        if self._transport is None:
            return  # whoever waits learns it from `fail`
        if not self._pieces:
            if last and len(self._streams) == 1 and len(payload) <= _JOIN_BYTES:
                self._transport.write(b"".join((header, payload)))
                return
            if self._loop.is_closed():
                return  # what a program has left behind ends with it
            # frames of one turn of the loop go out together: a system call costs more than all else here
            self._loop.call_soon(self._flush)
        self._pieces.append(header)
        self._pieces_bytes += len(header)
        if payload:
            self._pieces.append(payload)
            self._pieces_bytes += len(payload)
        if self._pieces_bytes >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        pieces, size = self._pieces, self._pieces_bytes
        transport = self._transport
        if not pieces or transport is None:
            return
        self._pieces, self._pieces_bytes = [], 0
        if size <= _JOIN_BYTES:
            transport.write(b"".join(pieces))
        elif self._vectored:
            transport.writelines(pieces)
        else:
            for piece in pieces:
                transport.write(piece)

    def writable(self) -> asyncio.Future[None] | None:
        return self._room

    @property
    def open_streams(self) -> int:
        """Calls and streams under way, both ways."""
        return len(self._streams)

    def forget(self, number: int) -> None:
        self._streams.pop(number, None)

    def waiting_bytes(self) -> int:
        return sum(stream.waiting_bytes for stream in self._streams.values())

    # -- frames ----------------------------------------------------------------------------------------------------

    def data_buffer(self, header: Header) -> memoryview | None:
        stream = self._streams.get(header.stream)
        return None if stream is None else stream.on_data(header)

    def data_done(self, header: Header) -> None:
        stream = self._streams.get(header.stream)
        if stream is not None:
            stream.on_data_done(header)

    def frame(self, header: Header, payload: memoryview) -> None:
        kind = header.type
        if kind == FrameType.ACCEPT:
            self._accept(header, payload)
        elif kind == FrameType.RESPONSE:
            self._respond(header, payload)
        elif kind == FrameType.EVENT:
            self._event(payload)
        elif (stream := self._streams.get(header.stream)) is not None:
            if kind == FrameType.WINDOW:
                stream.on_window(header.aux)
            elif kind == FrameType.FIN:
                stream.on_fin()
            elif kind == FrameType.RESET:
                stream.on_reset(header.code, str(payload, "utf-8", "replace"))
            elif kind == FrameType.OPENED:
                stream.on_opened()
            else:
                raise ControlFailure(f"a frame of type {kind}")

    def _event(self, payload: memoryview) -> None:
        try:
            content = json.loads(bytes(payload))
        except ValueError as error:
            raise ControlFailure("an event that is not JSON") from error
        logger.debug("event: %s", content)
        if self._on_event is not None:
            self._on_event(content)

    def _respond(self, header: Header, payload: memoryview) -> None:
        future = self._requests.get(header.stream)
        if future is None or future.done():
            return
        try:
            content = json.loads(bytes(payload))
            error = (int(content["code"]), str(content["error"])) if header.flags & Flag.ERROR else None
        except (ValueError, KeyError, TypeError) as fault:
            raise ControlFailure("an answer in another form") from fault
        if not isinstance(content, dict):
            raise ControlFailure("an answer that is no object")
        if error is not None:
            future.set_exception(error_of(*error, "p2p daemon"))
        else:
            future.set_result(content)

    def _accept(self, header: Header, payload: memoryview) -> None:
        target, used = unpack_target(payload)
        mode = mode_of(header.code)
        if header.stream % 2 or not header.stream or header.stream in self._streams:
            raise ControlFailure(f"ACCEPT of stream {header.stream}")
        try:
            peer = PeerID(target.peer)
        except ConfigError as error:
            raise ControlFailure("ACCEPT from no peer") from error
        stream = ControlStream(self, header.stream, mode, peer, target.name, caller=False)
        self._streams[stream.number] = stream
        known = self._handlers.get(target.name)
        if known is None or known[0] is not mode:
            stream.reset()  # it was removed a moment ago
            return
        if header.flags & Flag.FIRST:
            stream.on_first(bytes(payload[used:]))
        handler = known[1]
        if mode is Mode.UNARY:
            stream.task = self._scope.start(self._serve_call(handler, stream), name=target.name)
        else:
            stream.task = self._scope.start(serve_stream(handler, target.name, stream), name=target.name)
        stream.task.add_done_callback(lambda _: stream.abandon())

    async def _serve_call(self, handler: UnaryHandler, stream: ControlStream) -> None:
        request = await stream.receive()
        if request is None:
            return
        result, error = await answer(handler, stream.name, request, stream.remote_id, self.max_unary)
        if result is None:
            await stream.send_message(error.encode(), Flag.ERROR)
        else:
            await stream.send_message(result)
        stream.answered()

    # -- requests --------------------------------------------------------------------------------------------------

    async def hello(self, *, watch_peers: bool = False) -> None:
        """Greet the daemon and learn its limits; the first thing on a connection.

        :param watch_peers: have the event ``peers`` too
        """
        limits = await self.request("hello", version=VERSION, watch_peers=watch_peers)
        self.window = int(limits["window"])
        self.max_message = int(limits["max_message"])
        self.max_unary = int(limits["max_unary"])
        self.peer_id = PeerID.from_base58(limits["peer_id"])
        self.metrics_address = limits["metrics"] or None

    async def request(self, op: str, *, deadline: Deadline | None = None, **content: object) -> dict[str, Any]:
        """A request of the protocol and its answer.

        :raises HivemindError: as `error_of` says
        """
        self.check()
        number = self._request_numbers.take(cast("dict[int, object]", self._requests))
        future = self._requests[number] = self._loop.create_future()
        payload = json.dumps({"op": op, **content}).encode()
        if len(payload) > MAX_FRAME:
            raise ControlFailure(f"{op}: a request of {len(payload)} bytes")
        self.write(pack_header(FrameType.REQUEST, number, len(payload)), payload)
        try:
            return await with_deadline(future, deadline or Deadline.after(_REQUEST_SECONDS), f"p2p daemon: {op}")
        finally:
            self._requests.pop(number, None)

    # -- calls and streams -----------------------------------------------------------------------------------------

    async def call(self, peer: PeerID, name: str, request: Buffer, deadline: Deadline) -> Buffer:
        """See `transport.Transport.call`."""
        self._check_call(name, deadline)
        view = memoryview(request).cast("B")
        check_request(len(view), len(peer.to_bytes()), name, self.max_unary)
        stream = self._open(peer, name, Mode.UNARY, deadline, view)
        guard = self._guard(stream, deadline, "call of {} on {}: no answer in time")
        try:
            if stream.first_pending:
                await stream.send_message(view)
            result = await stream.receive()
        except BaseException:
            stream.reset()
            raise
        finally:
            if guard is not None:
                guard.cancel()
        if result is None:
            raise StreamReset(f"call of {name} on {peer}: no answer")
        return result

    async def open(self, peer: PeerID, name: str, mode: Mode, deadline: Deadline) -> ControlStream:
        """See `transport.Transport.open`."""
        self._check_call(name, deadline)
        stream = self._open(peer, name, mode, deadline, None)
        stream.opened = self._loop.create_future()
        guard = self._guard(stream, deadline, "stream to {} on {}: not open in time")
        try:
            await stream.opened
        except BaseException:
            stream.reset()
            raise
        finally:
            if guard is not None:
                guard.cancel()
        return stream

    def _guard(self, stream: ControlStream, deadline: Deadline, what: str) -> asyncio.TimerHandle | None:
        """Breaks ``stream`` off where not even the daemon says that the deadline has passed; less work than
        `asyncio.timeout`.

        :param what: a form for the handler's name and the peer
        """
        remaining = deadline.timeout()
        if remaining is None:
            return None
        return self._loop.call_later(remaining + _GRACE, self._expire, stream, what)

    @staticmethod
    def _expire(stream: ControlStream, what: str) -> None:
        stream.break_off(DeadlineExceeded(what.format(stream.name, stream.remote_id)))

    def _check_call(self, name: str, deadline: Deadline) -> None:
        self.check()
        deadline.check(f"call of {name}")

    def _open(self, peer: PeerID, name: str, mode: Mode, deadline: Deadline, first: memoryview | None) -> ControlStream:
        number = self._stream_numbers.take(cast("dict[int, object]", self._streams))
        stream = ControlStream(self, number, mode, peer, name, caller=True)
        self._streams[number] = stream
        target = pack_target(peer.to_bytes(), name)
        remaining = deadline.timeout()
        timeout_ms = 0 if remaining is None else min(0xFFFFFFFF, max(1, int(remaining * 1000)))
        fits = first is not None and len(target) + len(first) <= MAX_FRAME and stream.spend(len(first))
        size = len(target) + (len(first) if fits and first is not None else 0)
        flags = Flag.FIRST if fits else 0
        header = pack_header(FrameType.OPEN, number, size, flags=flags, code=mode, aux=timeout_ms)
        self.write(header + target, first if fits and first is not None else b"", last=mode is Mode.UNARY)
        stream.first_pending = not fits
        return stream

    async def listen(self, name: str, mode: Mode, handler: UnaryHandler | StreamHandler, *, balanced: bool) -> None:
        """Answer calls or streams to ``name``."""
        self.check()
        if name in self._handlers:
            raise error_of(10, f"handler for protocol {name} already set", "p2p daemon")
        self._handlers[name] = (mode, self.watch.watch(name, mode, handler))
        try:
            await self.request("listen", name=name, mode=int(mode), balanced=balanced, max_in_flight=0)
        except BaseException:
            self._handlers.pop(name, None)
            raise

    async def unlisten(self, name: str) -> None:
        """Stop answering; unknown names are ignored."""
        if name in self._handlers:
            await self.request("unlisten", name=name)
            self._handlers.pop(name, None)

    async def unlisten_all(self, deadline: Deadline) -> None:
        """Stop answering at all."""
        names = list(self._handlers)
        self._handlers.clear()
        for name in names:
            await self.request("unlisten", deadline=deadline, name=name)

    # -- the end ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """
        :raises HivemindError: if the connection is gone, what ended it
        """
        if self._over is not None:
            raise self._over

    def fail(self, error: HivemindError) -> None:
        """End all that waits, now and from now on, with ``error``. Idempotent."""
        if self._over is not None:
            return
        self._over = error
        self.watch.close()
        for stream in list(self._streams.values()):
            stream.lost(error)
        requests, self._requests = self._requests, {}
        for future in requests.values():
            if not future.done():
                future.set_exception(error)

    def abort(self, error: HivemindError) -> None:
        """`fail`, and drop the connection at once."""
        self.fail(error)
        self._flush()
        if self._transport is not None:
            self._transport.abort()

    async def close_handlers(self) -> None:
        """Cancel the handlers and wait for their end; calls that still come are reset."""
        self._handlers.clear()
        await end_handlers(self._scope)
