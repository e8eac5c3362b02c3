"""The network seam: what the layers above need from a network, and nothing more.

Two implementations pass one conformance test: `hivemind.p2p.daemon` (libp2p through the daemon, what users run) and
`hivemind.p2p.memory` (a network inside one process, with faults by name). All methods run on one event loop.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from multiaddr import Multiaddr

    from hivemind.clock import Deadline
    from hivemind.identity import PeerID, PeerInfo

__all__ = ["Buffer", "Mode", "Stream", "StreamHandler", "Transport", "UnaryHandler"]

#: The payload of one message. A received buffer belongs to its receiver.
Buffer = bytes | bytearray | memoryview


class Mode(enum.IntEnum):
    """What a stream carries; the numbers are those of the control protocol."""

    UNARY = 1
    MESSAGES = 2
    RAW = 3


class Stream(Protocol):
    """One stream between two peers, seen from either side. `receive` and `send` may run at the same time; each by one
    task at a time."""

    @property
    def remote_id(self) -> PeerID:
        """The peer at the other side, authenticated."""
        ...

    async def send(self, message: Buffer) -> None:
        """Send one message (RAW: some bytes); waits while the other side does not read.

        :raises StreamReset: if the stream is over
        """
        ...

    async def send_error(self, text: str) -> None:
        """Callee of MESSAGES only: end the stream with an error that the caller gets as `P2PHandlerError`."""
        ...

    async def finish(self) -> None:
        """This side has no more messages. The caller of MESSAGES may go on receiving; idempotent."""
        ...

    async def receive(self) -> bytearray | memoryview | bytes | None:
        """The next message (RAW: the next bytes), or None once the other side has finished.

        :raises P2PHandlerError: if the callee ended with an error
        :raises StreamReset: if the stream was reset or its connection broke
        :raises StreamTruncated: if it ended inside a message
        """
        ...

    def reset(self) -> None:
        """End the stream now, both ways: the other side's handler is cancelled. Idempotent, never raises."""
        ...


#: ``await handler(request, remote)`` gives the answer; what it raises reaches the caller as `P2PHandlerError` with its
#: ``repr`` as text. Cancelled when the caller gives up.
UnaryHandler = Callable[[Buffer, "PeerID"], Awaitable[Buffer]]
#: ``await handler(stream)``; the stream is reset if it raises or is cancelled, finished if it returns.
StreamHandler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    """A network as seen by one peer. Every wait is bounded by its ``deadline``."""

    @property
    def peer_id(self) -> PeerID:
        """This peer; known once started."""
        ...

    async def start(self) -> None:
        """Join the network.

        :raises P2PDaemonError: if that fails
        """
        ...

    async def call(self, peer: PeerID, name: str, request: Buffer, deadline: Deadline) -> Buffer:
        """One request, one answer. Cancelling it cancels the peer's handler.

        :raises P2PHandlerError: the handler raised
        :raises DispatchFailure: the call could not be brought there or back (see its subclasses)
        :raises DeadlineExceeded: the deadline passed
        """
        ...

    async def open(self, peer: PeerID, name: str, mode: Mode, deadline: Deadline) -> Stream:
        """Open a stream (MESSAGES or RAW) to a handler of ``peer``; ``deadline`` bounds the opening only.

        :raises DispatchFailure: it could not be opened
        :raises DeadlineExceeded: the deadline passed
        """
        ...

    async def listen_unary(self, name: str, handler: UnaryHandler, *, balanced: bool = False) -> None:
        """Answer unary calls to ``name``. With ``balanced`` several clients of one daemon share the name.

        :raises P2PDaemonError: if the name has a handler already
        """
        ...

    async def listen_stream(self, name: str, mode: Mode, handler: StreamHandler, *, balanced: bool = False) -> None:
        """Accept streams to ``name`` (MESSAGES or RAW).

        :raises P2PDaemonError: if the name has a handler already
        """
        ...

    async def unlisten(self, name: str) -> None:
        """Remove the handler of ``name``; what already runs goes on. Unknown names are ignored."""
        ...

    async def connect(self, peer: PeerID, addresses: Sequence[Multiaddr], deadline: Deadline) -> None:
        """Make sure there is a connection to ``peer``.

        :raises PeerUnreachable: no address answered; names each and why
        :raises DeadlineExceeded: the deadline passed
        """
        ...

    async def disconnect(self, peer: PeerID) -> None:
        """Close the connections to ``peer``, if there are any."""
        ...

    async def peers(self) -> list[PeerInfo]:
        """Those connected now."""
        ...

    async def addresses(self) -> list[Multiaddr]:
        """Own visible addresses, each ending in ``/p2p/<own id>``."""
        ...

    async def stats(self) -> dict[str, int]:
        """Counters since the start. Every network has ``bytes_in`` and ``bytes_out``: what was received and sent on
        streams and in calls, without encryption and multiplexing."""
        ...

    async def close(self) -> None:
        """Leave the network: cancel handlers, reset streams. Idempotent and bounded."""
        ...
