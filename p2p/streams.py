"""Streams over the control connection."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from hivemind.errors import ConfigError, HivemindError, StreamReset
from hivemind.identity import PeerID
from hivemind.p2p.calls import Incoming, ItemKind, Outgoing, error_of
from hivemind.p2p.framing import MAX_FRAME, Flag, FrameType, Header, ResetCode, pack_header
from hivemind.p2p.limits import check_message
from hivemind.p2p.refusals import error_told
from hivemind.p2p.transport import Buffer, Mode

__all__ = ["ControlStream", "Link"]


#: Bytes of the smallest part of a longer message that is sent for want of credit: small frames cost more than the wait.
_LEAST_PART = MAX_FRAME // 4


class Link(Protocol):
    """The connection as a stream sees it."""

    window: int
    max_message: int

    def write(self, header: bytes, payload: Buffer = b"", *, last: bool = False) -> None:
        """Send a frame, soon and in order. ``payload`` must not change any more.

        :param last: the stream sends no more in this turn of the loop
        """
        ...

    def writable(self) -> asyncio.Future[None] | None:
        """What to wait for before sending more; None: nothing."""
        ...

    def forget(self, number: int) -> None:
        """The stream ``number`` is over."""
        ...

    def waiting_bytes(self) -> int:
        """Bytes that have come whole on all open streams and were not received."""
        ...


class ControlStream:
    """One stream (`transport.Stream`), also of a unary call. Owned by the loop of its connection.

    What is sent is not copied: a message must not be changed afterwards.
    """

    __slots__ = (
        "__weakref__",
        "_caller",
        "_finished",
        "_forgotten",
        "_incoming",
        "_link",
        "_loop",
        "_outgoing",
        "_over",
        "_reader",
        "_remote_finished",
        "_remote_id",
        "_sending",
        "_writer",
        "first_pending",
        "mode",
        "name",
        "number",
        "opened",
        "task",
    )

    def __init__(self, link: Link, number: int, mode: Mode, remote_id: PeerID, name: str, *, caller: bool) -> None:
        self.number = number
        self.mode = mode
        self.name = name
        self._remote_id = remote_id
        self._caller = caller
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._incoming = Incoming(link.window, link.max_message)
        self._outgoing = Outgoing(link.window)
        self._finished = False
        self._sending = False
        # all that the other side says has come: for a unary call its answer
        self._remote_finished = False
        self._over: HivemindError | None = None
        self._forgotten = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        #: caller of MESSAGES and RAW: set once the stream is open
        self.opened: asyncio.Future[None] | None = None
        #: caller of UNARY: the request did not fit into OPEN and is still to be sent
        self.first_pending = False
        #: callee: the handler's task, cancelled when the caller gives up
        self.task: asyncio.Task[Any] | None = None

    @property
    def remote_id(self) -> PeerID:
        return self._remote_id

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have come whole and were not received."""
        return self._incoming.waiting_bytes

    # -- sending ---------------------------------------------------------------------------------------------------

    async def send(self, message: Buffer) -> None:
        await self.send_message(message)

    async def send_error(self, text: str) -> None:
        await self.send_message(text.encode(), Flag.ERROR)
        self._finished = True
        self._end(StreamReset(f"stream {self.name} with {self.remote_id} has ended: by an error on this side"))

    async def send_message(self, message: Buffer, flags: int = 0) -> None:
        """Send one message in frames, as credit allows; an interrupted one resets the stream."""
        view = memoryview(message).cast("B")
        check_message(len(view), self._link.max_message)
        if self.mode is Mode.RAW and not view:
            return
        if self._sending:
            raise ConfigError("send", "called while a message of the same stream is being sent", "one at a time")
        self._sending = True
        # what fits a frame goes in one, so that an interrupted wait for credit leaves no part of it behind
        sent, least = 0, len(view) if len(view) <= MAX_FRAME else _LEAST_PART
        try:
            while True:
                await self._wait_for_credit(min(least, len(view) - sent))
                if self._answered_early():
                    return
                count = self._outgoing.take(len(view) - sent)
                ahead = count if self.mode is Mode.RAW else len(view) - sent
                header = pack_header(FrameType.DATA, self.number, count, flags=flags, aux=ahead)
                self._link.write(header, view[sent : sent + count], last=self.mode is Mode.UNARY)
                sent += count
                if sent == len(view):
                    break
        except BaseException:
            if sent and not self._call_is_over():
                self.reset()
            raise
        finally:
            self._sending = False
        await self._wait_for_room()

    def spend(self, count: int) -> bool:
        """Take the credit for a first message inside OPEN, if there is so much."""
        return self._outgoing.take_whole(count)

    def answered(self) -> None:
        """Callee of UNARY: the answer is sent, which ends the stream."""
        self._finished = True
        self._forget()

    async def finish(self) -> None:
        if self._finished or self._over is not None:
            return
        if self._sending:
            raise ConfigError("finish", "called while a message of the same stream is being sent", "after it")
        self._finished = True
        self._link.write(pack_header(FrameType.FIN, self.number))
        self._check_done()

    async def _wait_for_credit(self, count: int) -> None:
        while True:
            self._check_sending()
            if self._outgoing.has(count) or self._answered_early():
                break
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        await self._wait_for_room()
        self._check_sending()

    async def _wait_for_room(self) -> None:
        while self._over is None and (room := self._link.writable()) is not None:
            await asyncio.shield(room)

    def _answered_early(self) -> bool:
        """A unary call whose answer came before its request was sent: the peer refused it, and tells why."""
        return self._remote_finished and self._caller and self.mode is Mode.UNARY

    def _call_is_over(self) -> bool:
        """The callee has ended the call: what it has said is still to be received, what is sent is dropped."""
        return self._remote_finished and self._caller and self.mode is Mode.MESSAGES

    def _check_sending(self) -> None:
        if self._over is not None:
            raise self._over
        if self._finished:
            raise StreamReset(f"stream {self.name} with {self.remote_id} has ended: this side has finished")
        if self._call_is_over():
            raise StreamReset(f"stream {self.name} with {self.remote_id} has ended: the other side has finished")

    # -- receiving -------------------------------------------------------------------------------------------------

    async def receive(self) -> bytearray | memoryview | bytes | None:
        while True:
            item = self._incoming.take()
            if item is not None:
                break
            if self._over is not None:
                raise self._over
            if self._remote_finished:
                return None
            if self._reader is not None:
                raise ConfigError("receive", "called while the same stream is being received from", "one at a time")
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        self._grant()
        if item.kind is ItemKind.MESSAGE:
            return item.payload
        if item.kind is ItemKind.FIN:
            return None
        error = error_told(str(item.payload, "utf-8", "replace"))
        self._end(error)
        raise error

    def reset(self) -> None:
        if self._over is None:
            if not self._forgotten:
                self._link.write(pack_header(FrameType.RESET, self.number, code=ResetCode.CANCELLED))
            self._end(StreamReset(f"stream {self.name} with {self.remote_id} was reset on this side"))
            self._incoming.drop()

    def abandon(self) -> None:
        """The handler has ended and nobody receives any more; one that did not finish resets the stream."""
        if not self._finished:
            self.reset()
            return
        self._incoming.drop()
        self._grant()

    # -- frames from the daemon ------------------------------------------------------------------------------------

    def on_data(self, header: Header) -> memoryview | None:
        """A DATA frame begins: where its payload goes."""
        return self._incoming.begin(header)

    def on_data_done(self, header: Header) -> None:
        """That payload has come."""
        if self._incoming.end(header):
            if self.mode is Mode.UNARY:
                self._remote_finished = True
                if self._caller:
                    self._forget()
                    _wake(self._writer)
            elif header.flags & Flag.ERROR:
                self._remote_finished = True
                self._forget()
                _wake(self._writer)
            _wake(self._reader)
        if not self._forgotten:
            self._grant()

    def on_first(self, payload: bytes) -> None:
        """The message inside ACCEPT."""
        self._incoming.put_first(payload)
        if self.mode is Mode.UNARY:
            self._remote_finished = True

    def on_fin(self) -> None:
        """The other side has no more messages."""
        if self._remote_finished:
            return
        self._remote_finished = True
        self._incoming.put(ItemKind.FIN)
        if self.mode is Mode.MESSAGES and self._caller and not self._finished:
            # the callee's end is the end of the call, and the daemon waits for this side's
            self._finished = True
            self._link.write(pack_header(FrameType.FIN, self.number))
        self._check_done()
        _wake(self._reader)
        _wake(self._writer)

    def on_reset(self, code: int, text: str) -> None:
        """The stream is over; what has come whole can still be received."""
        self._close(error_of(code, text, f"{self.name} on {self.remote_id}" if self._caller else self.name))

    def on_window(self, count: int) -> None:
        """The daemon takes so many bytes more."""
        self._outgoing.credit += count
        _wake(self._writer)

    def on_opened(self) -> None:
        """The stream stands."""
        _wake(self.opened)

    def break_off(self, error: HivemindError) -> None:
        """End the stream for a fault on this side or of the connection."""
        if self._over is None and not self._forgotten:
            self._link.write(pack_header(FrameType.RESET, self.number, code=ResetCode.CANCELLED))
        self._close(error)

    def lost(self, error: HivemindError) -> None:
        """The connection is gone."""
        self._close(error)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _close(self, error: HivemindError) -> None:
        if self._over is not None:
            return
        task = self.task
        self._end(error)
        if task is not None:
            task.cancel()

    def _end(self, error: HivemindError) -> None:
        self._over = error
        if self.opened is not None and not self.opened.done():
            self.opened.set_exception(error)
        self._forget()
        _wake(self._reader)
        _wake(self._writer)

    def _check_done(self) -> None:
        if self._finished and (self._remote_finished or (not self._caller and self.mode is not Mode.RAW)):
            self._forget()

    def _forget(self) -> None:
        if not self._forgotten:
            self._forgotten = True
            self._link.forget(self.number)
            _wake(self.opened)

    def _grant(self) -> None:
        if not self._forgotten and (count := self._incoming.grant(self._link.waiting_bytes)):
            self._link.write(pack_header(FrameType.WINDOW, self.number, aux=count))


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
