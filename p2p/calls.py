"""The state of the streams of a control connection: numbers, messages under way, credit. Pure: no loop, no socket."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from hivemind.errors import (
    ControlFailure,
    DeadlineExceeded,
    HivemindError,
    MessageTooLarge,
    P2PDaemonError,
    PeerBusy,
    PeerUnreachable,
    ProtocolNotSupported,
    StreamReset,
    StreamTruncated,
)
from hivemind.p2p.framing import MAX_FRAME, Flag, Header, ResetCode
from hivemind.p2p.transport import Buffer

__all__ = ["FRAME_COST", "Incoming", "Item", "ItemKind", "Numbers", "Outgoing", "error_of"]

#: A buffer is at most so many times longer than what has come of its message: a peer's word allocates nothing.
_GROWTH = 4
#: Bytes of credit that a DATA frame, or a first message inside OPEN or ACCEPT, costs besides its payload: what it takes
#: to keep it, so that empty messages are bounded too.
FRAME_COST = 64
#: Bytes of credit that are granted anew at least: a frame for each would be too many.
_PORTION = 192 * 1024
#: Whole messages that may wait unread without the sender being slowed down, and bytes of them.
PREFETCH = 5
PREFETCH_BYTES = 4 * 1024 * 1024
#: Bytes of them on all streams together; where more wait, each stream holds what its window does.
PREFETCH_ALL_BYTES = 32 * 1024 * 1024

_ERRORS: dict[int, type[HivemindError]] = {
    ResetCode.CANCELLED: StreamReset,
    ResetCode.DEADLINE: DeadlineExceeded,
    ResetCode.UNREACHABLE: PeerUnreachable,
    ResetCode.NOT_SUPPORTED: ProtocolNotSupported,
    ResetCode.REMOTE_RESET: StreamReset,
    ResetCode.TOO_LARGE: MessageTooLarge,
    ResetCode.BUSY: PeerBusy,
    ResetCode.MALFORMED: StreamReset,
    ResetCode.INTERNAL: ControlFailure,
    ResetCode.HANDLER_TAKEN: P2PDaemonError,
    ResetCode.CLOSING: P2PDaemonError,
    ResetCode.NOT_FOUND: PeerUnreachable,
    ResetCode.TRUNCATED: StreamTruncated,
    ResetCode.BAD_REQUEST: ControlFailure,
}
#: Words that callers of hivemind 1.1 look for.
_WORDS = {ResetCode.NOT_SUPPORTED: "protocol not supported"}


def error_of(code: int, text: str, what: str) -> HivemindError:
    """The error for a reset code of the daemon.

    :param what: what failed, in words
    """
    words = _WORDS.get(ResetCode(code), "") if code in _ERRORS else f"unknown code {code}"
    if words and words not in text:
        text = f"{words}: {text}"
    return _ERRORS.get(code, ControlFailure)(f"{what}: {text}" if text else what)


class ItemKind(enum.Enum):
    """What waits to be received."""

    MESSAGE = 1
    ERROR = 2
    FIN = 3


class Item(NamedTuple):
    """A whole message, an error's text, or the end of messages."""

    kind: ItemKind
    payload: Buffer


class Numbers:
    """Numbers of streams or requests: those of this side of the connection, each used by one at a time."""

    def __init__(self, first: int, step: int) -> None:
        self._first = first
        self._step = step
        self._next = first

    def take(self, used: dict[int, object]) -> int:
        """A number that is not a key of ``used``."""
        while (number := self._next) in used:
            self._advance()
        self._advance()
        return number

    def _advance(self) -> None:
        self._next += self._step
        if self._next > 0xFFFFFFFF:
            self._next = self._first


class Outgoing:
    """What this side may still send on a stream."""

    __slots__ = ("credit",)

    def __init__(self, window: int) -> None:
        self.credit = window

    def has(self, count: int) -> bool:
        """Whether there is credit for a frame of ``count`` bytes."""
        return self.credit >= count + FRAME_COST

    def take(self, wanted: int) -> int:
        """The bytes of the next frame, of ``wanted`` that are left; there must be credit for one."""
        count = min(wanted, MAX_FRAME, self.credit - FRAME_COST)
        self.credit -= count + FRAME_COST
        return count

    def take_whole(self, count: int) -> bool:
        """Take the credit of a frame of ``count`` bytes, if there is so much."""
        if not self.has(count):
            return False
        self.credit -= count + FRAME_COST
        return True


class Incoming:
    """Messages of one stream on their way in: puts frames together, and decides when the sender gets new credit.

    :param window: bytes of credit that the sender starts with
    :param limit: bytes of the longest message
    """

    __slots__ = (
        "_buffer",
        "_dropping",
        "_items",
        "_limit",
        "_owed",
        "_received",
        "_total",
        "_waiting_bytes",
        "_window",
    )

    def __init__(self, window: int, limit: int) -> None:
        self._window = window
        self._limit = limit
        self._items: deque[Item] = deque()
        self._waiting_bytes = 0
        # the message under way
        self._buffer: bytearray | None = None
        self._total = 0
        self._received = 0
        # credit of what has come that was not granted anew
        self._owed = 0
        self._dropping = False

    def begin(self, header: Header) -> memoryview | None:
        """A DATA frame begins; where its payload goes (None: nowhere).

        :raises ControlFailure: if it does not go on where the last one ended, or is too long
        """
        if self._dropping:
            return None
        if self._buffer is None:
            if header.aux > self._limit:
                raise ControlFailure(f"a message of {header.aux} bytes, the limit is {self._limit}")
            self._total, self._received = header.aux, 0
            self._buffer = bytearray(min(self._total, _GROWTH * header.length))
        elif header.aux != self._total - self._received:
            raise ControlFailure(f"a message of {self._total} bytes goes on wrongly after {self._received}")
        elif self._received + header.length > len(self._buffer):
            longer = bytearray(min(self._total, _GROWTH * (self._received + header.length)))
            # from view to view: a bytearray would take a copy of the copy
            memoryview(longer)[: self._received] = memoryview(self._buffer)[: self._received]
            self._buffer = longer
        return memoryview(self._buffer)[self._received : self._received + header.length]

    def end(self, header: Header) -> bool:
        """The payload of that frame has come; whether a message is whole now."""
        self._owed += header.length + FRAME_COST
        if self._dropping or self._buffer is None:
            return False
        self._received += header.length
        if self._received < self._total:
            return False
        kind = ItemKind.ERROR if header.flags & Flag.ERROR else ItemKind.MESSAGE
        self.put(kind, self._buffer)
        self._buffer = None
        return True

    def put_first(self, payload: Buffer) -> None:
        """The message that came inside OPEN or ACCEPT."""
        self._owed += len(payload) + FRAME_COST
        self.put(ItemKind.MESSAGE, payload)

    def put(self, kind: ItemKind, payload: Buffer = b"") -> None:
        """Something to receive, after what waits already."""
        if self._dropping:
            return
        self._items.append(Item(kind, payload))
        self._waiting_bytes += len(payload) + FRAME_COST

    def take(self) -> Item | None:
        """The next thing to receive, if there is one."""
        if not self._items:
            return None
        item = self._items.popleft()
        self._waiting_bytes -= len(item.payload) + FRAME_COST
        return item

    @property
    def truncated(self) -> bool:
        """Whether a message is under way."""
        return self._buffer is not None

    def drop(self) -> None:
        """Nobody receives any more: what waits and what comes is dropped."""
        self._dropping = True
        self._items.clear()
        self._waiting_bytes = 0
        self._buffer = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have come whole and were not received, with what it takes to keep them."""
        return self._waiting_bytes

    def grant(self, waiting_bytes: Callable[[], int]) -> int:
        """Bytes of credit to grant the sender now: in portions, and none while much waits unread.

        :param waiting_bytes: that of all streams together
        """
        if self._owed < _PORTION:
            return 0
        few = len(self._items) < PREFETCH and self._waiting_bytes < PREFETCH_BYTES
        if self._waiting_bytes >= self._window // 2 and not (few and waiting_bytes() < PREFETCH_ALL_BYTES):
            return 0
        granted, self._owed = self._owed, 0
        return granted
