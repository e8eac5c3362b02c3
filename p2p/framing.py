"""Frames of the control protocol (docs/control-protocol.md), without I/O.

`FrameReader` is fed by a buffered protocol: it says where the next bytes go and learns how many have come. Payloads of
DATA frames go straight into the buffer of their message, all else through one scratch buffer.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, Protocol

from hivemind.errors import ControlFailure
from hivemind.p2p.transport import Mode

__all__ = [
    "HEADER_BYTES",
    "MAX_FRAME",
    "VERSION",
    "Flag",
    "FrameReader",
    "FrameSink",
    "FrameType",
    "Header",
    "ResetCode",
    "Target",
    "mode_of",
    "pack_header",
    "pack_target",
    "unpack_header",
    "unpack_target",
]

VERSION: Final = 2
HEADER_BYTES: Final = 16
#: Bytes of the longest payload: 256 KiB of a user, and what stands around them in their message.
MAX_FRAME: Final = 260 * 1024

_HEADER = struct.Struct("<IBBHII")
_TARGET = struct.Struct("<HH")
#: Bytes read at once where no payload has a buffer of its own.
_SCRATCH = 64 * 1024
#: ...and after a payload that had one: another is likely to follow its header, and what is read with that is copied.
_SHORT = 4 * 1024


class FrameType(enum.IntEnum):
    """What a frame is."""

    REQUEST = 1
    RESPONSE = 2
    OPEN = 3
    OPENED = 4
    ACCEPT = 5
    DATA = 6
    FIN = 7
    RESET = 8
    WINDOW = 9
    EVENT = 10


class Flag(enum.IntEnum):
    """Flags of frames: bits. No `enum.IntFlag`, whose operators cost more than all else that is done with a header."""

    ERROR = 1
    FIRST = 2


class ResetCode(enum.IntEnum):
    """Why a stream was reset or a request refused."""

    CANCELLED = 1
    DEADLINE = 2
    UNREACHABLE = 3
    NOT_SUPPORTED = 4
    REMOTE_RESET = 5
    TOO_LARGE = 6
    BUSY = 7
    MALFORMED = 8
    INTERNAL = 9
    HANDLER_TAKEN = 10
    CLOSING = 11
    NOT_FOUND = 12
    TRUNCATED = 13
    BAD_REQUEST = 14


class Header(NamedTuple):
    """A frame without its payload; the fields are described in the protocol."""

    length: int
    type: int
    flags: int
    code: int
    stream: int
    aux: int


class Target(NamedTuple):
    """Who and what a stream is opened for."""

    peer: bytes
    name: str


def pack_header(kind: int, stream: int, length: int = 0, *, flags: int = 0, code: int = 0, aux: int = 0) -> bytes:
    """The 16 bytes of a header."""
    return _HEADER.pack(length, kind, flags, code, stream, aux)


def unpack_header(data: bytes | bytearray | memoryview, offset: int = 0) -> Header:
    """
    :raises ControlFailure: if the header breaks the protocol
    """
    header = Header._make(_HEADER.unpack_from(data, offset))
    if header.length > MAX_FRAME:
        raise ControlFailure(f"a frame with {header.length} bytes of payload, the limit is {MAX_FRAME}")
    if header.type == FrameType.DATA and header.aux < header.length:
        raise ControlFailure(f"a DATA frame of {header.length} bytes where {header.aux} are to come")
    return header


def pack_target(peer: bytes, name: str) -> bytes:
    """The start of the payload of OPEN and ACCEPT."""
    encoded = name.encode()
    return _TARGET.pack(len(peer), len(encoded)) + peer + encoded


def unpack_target(payload: bytes | memoryview) -> tuple[Target, int]:
    """
    :returns: the target and the number of its bytes
    :raises ControlFailure: if it is cut short or no text
    """
    if len(payload) < _TARGET.size:
        raise ControlFailure(f"a target of {len(payload)} bytes")
    peer_size, name_size = _TARGET.unpack_from(payload)
    middle = _TARGET.size + peer_size
    end = middle + name_size
    if end > len(payload):
        raise ControlFailure("a target cut short")
    try:
        name = str(payload[middle:end], "utf-8")
    except UnicodeDecodeError as error:
        raise ControlFailure("a target whose name is not UTF-8") from error
    return Target(bytes(payload[_TARGET.size : middle]), name), end


class FrameSink(Protocol):
    """What `FrameReader` calls. Exceptions end the connection."""

    def frame(self, header: Header, payload: memoryview) -> None:
        """A whole frame other than DATA; ``payload`` is valid only during the call."""
        ...

    def data_buffer(self, header: Header) -> memoryview | None:
        """A DATA frame begins: where its ``header.length`` bytes go; None drops them."""
        ...

    def data_done(self, header: Header) -> None:
        """The bytes of that frame have come."""
        ...


class FrameReader:
    """Takes bytes apart into frames; pure. Use: ``view = get_buffer()``, write n bytes there, ``advance(n)``."""

    def __init__(self, sink: FrameSink) -> None:
        self._sink = sink
        self._scratch = bytearray(_SCRATCH + HEADER_BYTES)
        self._view = memoryview(self._scratch)
        # bytes of the scratch buffer that have come and belong to a frame not yet whole
        self._kept = 0
        # payload of the DATA frame under way
        self._data: Header | None = None
        self._target: memoryview | None = None
        self._missing = 0
        # the last bytes went into a payload's own buffer
        self._bulk = False
        # a frame other than DATA that is longer than the scratch buffer
        self._long: Header | None = None
        self._body = bytearray()

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to be written; never empty."""
        if self._target is not None and self._missing > _SCRATCH // 4:
            return self._target[len(self._target) - self._missing :]
        if self._bulk and self._kept < _SHORT:
            return self._view[self._kept : _SHORT]
        return self._view[self._kept :]

    def advance(self, count: int) -> None:
        """``count`` bytes were written to what `get_buffer` gave last.

        :raises ControlFailure: if they break the protocol
        """
        if self._target is not None and self._missing > _SCRATCH // 4:
            self._missing -= count
            self._bulk = True
            if self._missing == 0:
                self._end_data()
            return
        self._bulk = False
        self._parse(self._kept + count)

    def _parse(self, end: int) -> None:
        position = 0
        while position < end:
            if self._data is not None or self._long is not None:
                position += self._take(position, end)
                continue
            if end - position < HEADER_BYTES:
                break
            header = unpack_header(self._scratch, position)
            if header.type == FrameType.DATA:
                position += HEADER_BYTES
                self._begin_data(header)
            elif header.length > _SCRATCH:
                position += HEADER_BYTES
                self._long, self._missing = header, header.length
            elif end - position - HEADER_BYTES < header.length:
                break
            else:
                start = position + HEADER_BYTES
                position = start + header.length
                self._sink.frame(header, self._view[start:position])
        self._kept = end - position
        if position and self._kept:
            self._scratch[: self._kept] = self._scratch[position:end]

    def _begin_data(self, header: Header) -> None:
        self._target = self._sink.data_buffer(header)
        self._data, self._missing = header, header.length
        if not header.length:
            self._end_data()

    def _take(self, position: int, end: int) -> int:
        count = min(self._missing, end - position)
        piece = self._view[position : position + count]
        if self._long is not None:
            self._body += piece
        elif self._target is not None:
            start = len(self._target) - self._missing
            self._target[start : start + count] = piece
        self._missing -= count
        if self._missing:
            return count
        if self._long is None:
            self._end_data()
            return count
        header, body = self._long, self._body
        self._long, self._body = None, bytearray()
        self._sink.frame(header, memoryview(body))
        return count

    def _end_data(self) -> None:
        header, self._data, self._target = self._data, None, None
        if header is not None:
            self._sink.data_done(header)


def mode_of(code: int) -> Mode:
    """
    :raises ControlFailure: if ``code`` is no mode of a stream
    """
    try:
        return Mode(code)
    except ValueError as error:
        raise ControlFailure(f"a stream of unknown mode {code}") from error
