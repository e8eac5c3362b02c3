"""A control client without a daemon: frames are put into it, and all that it writes is checked against the protocol."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from hivemind.errors import DaemonDied
from hivemind.p2p.calls import FRAME_COST
from hivemind.p2p.control import ControlClient
from hivemind.p2p.framing import (
    Flag,
    FrameReader,
    FrameType,
    Header,
    mode_of,
    pack_header,
    unpack_target,
)
from hivemind.p2p.limits import WINDOW
from hivemind.p2p.transport import Mode, StreamHandler, UnaryHandler

__all__ = ["Wire", "packed"]


class Written:
    """What the client has written, as its daemon would read it.

    :raises AssertionError: from the methods of a `FrameSink`, where it breaks the protocol
    """

    def __init__(self) -> None:
        self.reader = FrameReader(self)
        self.credit: defaultdict[int, int] = defaultdict(lambda: WINDOW)
        self.under_way: dict[int, int] = {}
        self.opened: set[int] = set()
        self.finished: set[int] = set()
        self.reset: set[int] = set()
        self.requests: list[int] = []

    def feed(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            view = self.reader.get_buffer()
            count = min(len(view), len(data) - position)
            view[:count] = data[position : position + count]
            self.reader.advance(count)
            position += count

    def frame(self, header: Header, payload: memoryview) -> None:
        stream = header.stream
        if header.type == FrameType.REQUEST:
            self.requests.append(stream)
            return
        assert stream not in self.reset, f"{header} after RESET"
        if header.type == FrameType.OPEN:
            assert stream % 2 == 1
            assert stream not in self.opened, f"{header}: open already"
            self.opened.add(stream)
            _, used = unpack_target(payload)
            mode_of(header.code)
            if header.flags & Flag.FIRST:
                self.credit[stream] -= len(payload) - used + FRAME_COST
                assert self.credit[stream] >= 0
        elif header.type == FrameType.FIN:
            assert stream not in self.finished, f"{header}: finished already"
            assert stream not in self.under_way, f"{header} inside a message"
            self.finished.add(stream)
        elif header.type == FrameType.RESET:
            self.reset.add(stream)
        else:
            assert header.type == FrameType.WINDOW, f"{header} is none of a client's"

    def data_buffer(self, header: Header) -> memoryview | None:
        stream = header.stream
        assert stream not in self.reset | self.finished, f"{header} after the end"
        self.credit[stream] -= header.length + FRAME_COST
        assert self.credit[stream] >= 0, f"{header}: over the credit"
        assert self.under_way.get(stream, header.aux) == header.aux, f"{header}: {self.under_way[stream]} were to come"
        if header.aux > header.length:
            self.under_way[stream] = header.aux - header.length
        else:
            self.under_way.pop(stream, None)
        return None

    def data_done(self, header: Header) -> None:
        return


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = Written()
        self.aborted = False

    def write(self, data: Any) -> None:
        if not self.aborted:
            self.written.feed(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def abort(self) -> None:
        self.aborted = True


class Wire:
    """The client, and the way into it."""

    def __init__(self) -> None:
        self.transport = _Transport()
        self.client = ControlClient(lambda: None)
        self.client.connection_made(self.transport)
        self.fed = 0
        self._numbers_seen: set[int] = set()

    @property
    def written(self) -> Written:
        return self.transport.written

    async def listen(self, name: str, mode: Mode, handler: UnaryHandler | StreamHandler) -> None:
        """Register a handler, with the daemon's consent."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.client.listen(name, mode, handler, balanced=False))
            while not task.done():
                await asyncio.sleep(0)
                for number in self.written.requests[len(self._numbers_seen) :]:
                    self._numbers_seen.add(number)
                    self.feed(pack_header(FrameType.RESPONSE, number, 2) + b"{}")

    def feed(self, data: bytes) -> None:
        """Bytes from the daemon; those after a fault are not read any more."""
        position = 0
        while position < len(data) and not self.transport.aborted:
            view = self.client.get_buffer(-1)
            assert len(view) > 0
            count = min(len(view), len(data) - position)
            view[:count] = data[position : position + count]
            self.client.buffer_updated(count)
            position += count
        self.fed += position

    def feed_frame(self, header: Header, payload: bytes) -> None:
        """A frame from the daemon; credit that it grants may be used from here on."""
        if header.type == FrameType.WINDOW:
            self.written.credit[header.stream] += header.aux
        elif header.type in (FrameType.ACCEPT, FrameType.RESET):
            self._forget(header.stream)
        self.feed(packed(header) + payload)

    def _forget(self, stream: int) -> None:
        """A number that the daemon ends, or uses anew."""
        self.written.under_way.pop(stream, None)
        if stream % 2 == 0:
            self.written.credit.pop(stream, None)
            self.written.finished.discard(stream)
            self.written.reset.discard(stream)

    @property
    def buffered(self) -> int:
        """Bytes of messages under way that the client holds room for."""
        return sum(len(each._incoming._buffer or b"") for each in self.client._streams.values())

    async def end(self) -> None:
        """The daemon is gone."""
        self.client.connection_lost(None)
        self.client.fail(DaemonDied(None))
        await self.client.close_handlers()


def packed(header: Header) -> bytes:
    """The bytes of a header."""
    return pack_header(header.type, header.stream, header.length, flags=header.flags, code=header.code, aux=header.aux)
