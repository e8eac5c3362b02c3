"""The two ends of a stream of the in-memory network."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hivemind.errors import HivemindError, StreamReset
from hivemind.identity import PeerID
from hivemind.p2p.limits import WINDOW, check_message
from hivemind.p2p.refusals import error_told
from hivemind.p2p.transport import Buffer, Mode

__all__ = ["MemoryStream", "Path", "stream_pair"]

#: Bytes that every waiting message counts besides its own, so that empty ones are bounded too.
_MESSAGE_COST = 16
#: Seconds by which a timer may fire early through rounding.
_EPSILON = 1e-9


class Path(Protocol):
    """The way from one peer to another under the faults of the moment."""

    def arrival(self, size: int) -> float | None:
        """When ``size`` bytes sent now arrive, on the loop's clock; None = held up, nobody knows.

        :raises StreamReset: the message is lost
        """
        ...

    def deliver(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` run when a notice sent now arrives."""
        ...


class _Kind(enum.Enum):
    MESSAGE = 1
    FIN = 2
    ERROR = 3


class _Entry:
    """Something on its way or waiting to be read."""

    __slots__ = ("at", "cost", "kind", "payload")

    def __init__(self, at: float | None, kind: _Kind, payload: Buffer, cost: int) -> None:
        self.at = at
        self.kind = kind
        self.payload = payload
        self.cost = cost


class MemoryStream:
    """One end. Owned by the loop."""

    def __init__(self, remote_id: PeerID, mode: Mode, path: Path, *, caller: bool) -> None:
        self.mode = mode
        self._remote_id = remote_id
        self._path = path
        self._caller = caller
        self._other: MemoryStream = self
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[_Entry] = deque()
        self._waiting_bytes = 0
        self._last_arrival = 0.0
        self._finished = False
        self._remote_finished = False
        self._over: HivemindError | None = None
        self._discarding = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        #: called once, when the stream is over for this end
        self.on_over: Callable[[], object] | None = None
        #: callee only: the handler's task, cancelled when the caller resets
        self.task: asyncio.Task[None] | None = None

    @property
    def remote_id(self) -> PeerID:
        return self._remote_id

    async def send(self, message: Buffer) -> None:
        data = message if isinstance(message, bytes) else bytes(message)
        check_message(len(data))
        if self.mode is Mode.RAW and not data:
            return
        other = self._other
        while self._may_send() and other._waiting_bytes >= WINDOW:
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if not self._may_send():
            raise self._over or StreamReset(f"stream with {self.remote_id} has ended: {self._why_no_more()}")
        self._put(_Kind.MESSAGE, data)

    async def send_error(self, text: str) -> None:
        if not self._may_send():
            raise self._over or StreamReset(f"stream with {self.remote_id} has ended: {self._why_no_more()}")
        self._finished = True
        self._put(_Kind.ERROR, text.encode())
        self._check_done()

    async def finish(self) -> None:
        if self._finished or self._over is not None:
            return
        self._finished = True
        self._put(_Kind.FIN, b"")
        self._check_done()

    async def receive(self) -> bytearray | memoryview | bytes | None:
        while True:
            wake_at: float | None = None
            if self._inbox:
                wake_at = self._inbox[0].at
                if wake_at is not None and wake_at <= self._loop.time() + _EPSILON:
                    return self._take()
            if self._over is not None:
                raise self._over
            if self._remote_finished and not self._inbox:
                return None
            await self._wait_for_arrival(wake_at)

    def reset(self) -> None:
        if self._over is None:
            self._end(StreamReset(f"stream with {self.remote_id} was reset on this side"))
            self._path.deliver(lambda: self._other.break_off(f"{self._other.remote_id} reset the stream"))

    def abandon(self) -> None:
        """The handler has ended, nobody reads here any more: what comes is dropped, so that the other side does not
        wait. A handler that ended without finishing resets the stream."""
        if not self._finished:
            self.reset()
            return
        self._discarding = True
        for entry in self._inbox:
            self._remote_finished |= entry.kind is not _Kind.MESSAGE
        self._inbox.clear()
        self._waiting_bytes = 0
        _wake(self._other._writer)
        self._check_done()

    def break_off(self, why: str) -> None:
        """End this side as a connection that breaks does: the handler is cancelled, readers get what had come."""
        if self._over is not None:
            return
        task = self.task
        self._end(StreamReset(why))
        if task is not None:
            task.cancel()

    def released(self) -> None:
        """The fault that held messages up is healed: they travel from now on."""
        for entry in self._inbox:
            if entry.at is None:
                try:
                    entry.at = self._ordered(self._other._path.arrival(entry.cost))
                except StreamReset as error:
                    self._lost(error)
                    return
        _wake(self._reader)

    def _may_send(self) -> bool:
        ended_by_callee = self._caller and self.mode is Mode.MESSAGES and self._remote_finished
        return self._over is None and not self._finished and not ended_by_callee

    def _why_no_more(self) -> str:
        return "this side has finished" if self._finished else "the other side has finished"

    def _put(self, kind: _Kind, data: bytes) -> None:
        other = self._other
        if other._discarding:
            other._remote_finished |= kind is not _Kind.MESSAGE
            other._check_done()
            return
        try:
            at = self._path.arrival(len(data))
        except StreamReset as error:
            other._lost(error)
            raise
        other._inbox.append(_Entry(other._ordered(at), kind, data, len(data) + _MESSAGE_COST))
        other._waiting_bytes += len(data) + _MESSAGE_COST
        _wake(other._reader)

    def _lost(self, error: StreamReset) -> None:
        self.break_off(str(error))
        self._other.break_off(str(error))

    def _ordered(self, at: float | None) -> float | None:
        if at is None:
            return None
        self._last_arrival = max(self._last_arrival, at)
        return self._last_arrival

    def _take(self) -> bytes | bytearray | memoryview | None:
        entry = self._inbox.popleft()
        self._waiting_bytes -= entry.cost
        if self._waiting_bytes < WINDOW:
            _wake(self._other._writer)
        if entry.kind is _Kind.MESSAGE:
            return entry.payload
        self._remote_finished = True
        _wake(self._writer)
        self._check_done()
        if entry.kind is _Kind.ERROR:
            error = error_told(bytes(entry.payload).decode())
            self._end(error)
            raise error
        return None

    def _check_done(self) -> None:
        if self.mode is Mode.MESSAGES:
            done = self._remote_finished if self._caller else self._finished
        else:
            done = self._finished and self._remote_finished
        if done and self.on_over is not None:
            on_over, self.on_over = self.on_over, None
            on_over()

    async def _wait_for_arrival(self, at: float | None) -> None:
        self._reader = reader = self._loop.create_future()
        timer = None if at is None else self._loop.call_at(at, _wake, reader)
        try:
            await reader
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    def _end(self, error: HivemindError) -> None:
        self._over = error
        _wake(self._reader)
        _wake(self._writer)
        _wake(self._other._writer)
        on_over, self.on_over = self.on_over, None
        if on_over is not None:
            on_over()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def stream_pair(
    caller: PeerID, callee: PeerID, mode: Mode, there: Path, back: Path
) -> tuple[MemoryStream, MemoryStream]:
    """A stream between two peers: the caller's end and the callee's."""
    near = MemoryStream(callee, mode, there, caller=True)
    far = MemoryStream(caller, mode, back, caller=False)
    near._other, far._other = far, near
    return near, far
