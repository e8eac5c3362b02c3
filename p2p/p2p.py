"""`P2P`: a peer of the network, as its users see it."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from google.protobuf.message import Message
from multiaddr import Multiaddr

from hivemind.aio import TaskScope
from hivemind.clock import Deadline
from hivemind.config import make_options
from hivemind.errors import ConfigError, P2PDaemonError
from hivemind.identity import PeerID, PeerInfo
from hivemind.p2p import binary, rpc
from hivemind.p2p.binary import StreamInfo
from hivemind.p2p.config import P2PConfig, as_peer_ids
from hivemind.p2p.daemon import ControlTransport, DaemonTransport
from hivemind.p2p.guest import GuestTransport
from hivemind.p2p.identity_check import prepare_identity
from hivemind.p2p.oversight import Oversight
from hivemind.p2p.process import DaemonProcess
from hivemind.p2p.reachability import Reachability
from hivemind.p2p.serving import end_handlers
from hivemind.p2p.transport import Mode, Stream, Transport
from hivemind.proto import p2pd_pb2

__all__ = ["P2P"]

M = TypeVar("M", bound=Message)
BinaryHandler = Callable[[StreamInfo, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class P2P(Oversight):
    """A peer of the network: calls handlers of others by name and answers to its own.

    Made by `create` (a daemon of its own), `replicate` (another client of a running daemon) or `over` (any transport,
    for instance the in-memory network's). It belongs to the event loop on which it was made; end it by `shutdown` or
    ``async with``.

    It can be given to another process (pickled, with the start methods spawn and forkserver): there it is one more
    client of the same daemon, of the loop that uses it first, with handlers and an end of its own. In a forked child
    it raises `RuntimeClosedError`.
    """

    END_OF_STREAM: ClassVar[p2pd_pb2.RPCError] = binary.END_OF_STREAM

    send_raw_data = staticmethod(binary.send_raw_data)
    receive_raw_data = staticmethod(binary.receive_raw_data)
    send_protobuf = staticmethod(binary.send_protobuf)
    receive_protobuf = staticmethod(binary.receive_protobuf)

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._pid = os.getpid()
        # senders of request streams and pumps of raw streams
        self._scope = TaskScope("streams of P2P")
        self._visible: list[Multiaddr] | None = None
        self._visible_since = 0
        self._open = False
        self._finalizer: weakref.finalize[..., Any] | None = None

    @classmethod
    async def over(cls, transport: Transport) -> Self:
        """A peer over ``transport``, which it starts and closes."""
        p2p = cls(transport)
        await transport.start()
        p2p._open = True
        if isinstance(transport, DaemonTransport):
            # an owner that is dropped without shutdown() takes its daemon along; the process module ends what is left
            # at exit
            p2p._finalizer = weakref.finalize(p2p, transport.process.dispose)
            p2p._finalizer.atexit = False
        return p2p

    @classmethod
    async def create(cls, initial_peers: Sequence[Multiaddr | str] | None = None, **options: Any) -> Self:
        """Start a daemon and join the network.

        :param initial_peers: addresses of peers to join through, ``/…/p2p/<id>``; None = be the first
        :param options: those of `P2PConfig`
        :raises ConfigError: if an option is wrong
        :raises P2PDaemonError: if the daemon does not start, no initial peer answers ("failed to connect to bootstrap
            peers"), or the identity is "already taken by another peer"
        """
        config = make_options(P2PConfig, {"initial_peers": initial_peers, **options}, where="P2P.create")
        return await cls.from_config(config)

    @classmethod
    async def from_config(cls, config: P2PConfig) -> Self:
        """As `create`, with the options gathered."""
        await prepare_identity(config)
        return await cls.over(DaemonTransport(config))

    @classmethod
    async def replicate(cls, daemon_listen_maddr: Multiaddr) -> Self:
        """Another client of the daemon that listens at ``daemon_listen_maddr``; shutting it down leaves that running.

        :raises ControlFailure: if none does
        """
        return await cls.over(GuestTransport(Path(str(daemon_listen_maddr.value_for_protocol("unix")))))

    def __reduce__(self) -> tuple[Any, ...]:
        """
        :raises P2PDaemonError: if it was shut down, or has no daemon that another process could reach
        """
        if not self._open:
            raise P2PDaemonError("this peer was shut down: another process cannot share its daemon")
        path = str(self.daemon_listen_maddr.value_for_protocol("unix"))
        return _attached, (type(self), path, self.peer_id)

    @property
    def daemon_listen_maddr(self) -> Multiaddr:
        """Where other processes of this user reach the daemon: for `replicate`.

        :raises P2PDaemonError: over a transport without a daemon
        """
        if not isinstance(self._transport, ControlTransport):
            raise P2PDaemonError("this peer has no daemon that could be shared")
        return Multiaddr(f"/unix{self._transport.control_path}")

    @property
    def _child(self) -> DaemonProcess | None:
        """The daemon's process, where this is its owner: hivemind 1.1's tools look at its ``pid``."""
        return self._transport.process if isinstance(self._transport, DaemonTransport) else None

    @property
    def peer_id(self) -> PeerID:
        """This peer."""
        return self._transport.peer_id

    @property
    def transport(self) -> Transport:
        """What it stands on."""
        return self._transport

    @property
    def is_alive(self) -> bool:
        """Whether it was started and not shut down."""
        return self._open

    # -- the network -----------------------------------------------------------------------------------------------

    async def get_visible_maddrs(self, latest: bool = False) -> list[Multiaddr]:
        """The addresses by which others reach this peer, each ending in ``/p2p/<id>``.

        :param latest: ask anew instead of giving those asked for first
        :raises ValueError: if there are none
        """
        restarts = self._transport.restarts if isinstance(self._transport, ControlTransport) else 0
        if self._visible is None or latest or self._visible_since != restarts:
            self._visible, self._visible_since = await self._transport.addresses(), restarts
        if not self._visible:
            raise ConfigError("visible addresses", "none", "a peer that listens (no_listen=False)")
        return list(self._visible)

    async def list_peers(self) -> list[PeerInfo]:
        """Those connected now."""
        return await self._transport.peers()

    async def reachability(self) -> Reachability:
        """Whether others reach this peer directly, and through which relays.

        :raises P2PDaemonError: over a transport without a daemon
        """
        return await self._daemon().reachability()

    async def set_relay_allowlist(self, peer_ids: Iterable[PeerID | str]) -> None:
        """With ``relay_service``: only these peers may use this relay from now on, at either end; none = nobody.
        Connections that are there go on to their limits.

        :raises ConfigError: if one is no peer id
        :raises P2PDaemonError: if this peer is no relay
        """
        if not isinstance(self._transport, ControlTransport):
            raise P2PDaemonError("this peer has no daemon that could relay")
        await self._transport.allow_relaying(as_peer_ids("peer_ids", peer_ids))

    async def stats(self) -> dict[str, int]:
        """Counters since the start, among them ``bytes_in`` and ``bytes_out``: all that was received from and sent to
        other peers by this peer's daemon, without encryption and multiplexing. Of a relay also
        ``relay_reservations`` and ``relay_circuits``, those of now, ``relay_bytes`` and ``relay_refused``."""
        return await self._transport.stats()

    async def wait_for_at_least_n_peers(self, n_peers: int, attempts: int = 3, delay: float = 1) -> None:
        """Look ``attempts`` times, every ``delay`` seconds, whether at least ``n_peers`` are connected.

        :raises RuntimeError: if there are never so many
        """
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(delay)
            if len(await self.list_peers()) >= n_peers:
                return
        raise RuntimeError(f"not connected to {n_peers} peers after {attempts} looks, one every {delay} s")

    async def connect(
        self, peer_id: PeerID, addresses: Sequence[Multiaddr] = (), *, timeout: float | None = 15.0
    ) -> None:
        """Make sure there is a connection.

        :param addresses: where to try; without them the routing is asked
        :param timeout: seconds
        :raises PeerUnreachable: names each address and why
        """
        await self._transport.connect(peer_id, addresses, Deadline.after(timeout))

    async def disconnect(self, peer_id: PeerID) -> None:
        """Close the connections to ``peer_id``, if there are any."""
        await self._transport.disconnect(peer_id)

    # -- protobuf handlers -----------------------------------------------------------------------------------------

    async def add_protobuf_handler(
        self,
        name: str,
        handler: Callable[..., Any],
        input_type: type[Message],
        *,
        stream_input: bool = False,
        stream_output: bool = False,
        balanced: bool = False,
    ) -> None:
        """Answer calls to ``name``.

        :param handler: ``handler(request, context)``, where the request is a message of ``input_type``, or with
            ``stream_input`` an async iterator of them; gives a message (awaited), or with ``stream_output`` is an async
            generator of messages. It is cancelled when the caller gives up; what it raises reaches the caller as
            `P2PHandlerError`
        :param balanced: several clients of one daemon share the name; a call goes to one of them
        :raises P2PDaemonError: if the name has a handler
        """
        if not stream_input and not stream_output:
            unary = rpc.unary_handler(name, self.peer_id, handler, input_type)
            await self._transport.listen_unary(name, unary, balanced=balanced)
            return
        streams = rpc.stream_handler(
            name, self.peer_id, handler, input_type, stream_input=stream_input, stream_output=stream_output
        )
        await self._transport.listen_stream(name, Mode.MESSAGES, streams, balanced=balanced)

    async def remove_protobuf_handler(
        self, name: str, *, stream_input: bool = False, stream_output: bool = False
    ) -> None:
        """Forget the handler of ``name``; calls that run go on."""
        del stream_input, stream_output  # part of hivemind 1.1's call: names alone tell handlers apart here
        await self._transport.unlisten(name)

    async def call_protobuf_handler(
        self,
        peer_id: PeerID,
        name: str,
        input: Message | AsyncIterable[Message],
        output_type: type[M],
        *,
        timeout: float | None = None,
    ) -> M:
        """Call a handler that gives one answer. Cancelling the call cancels the handler.

        :param input: the request; an async iterator calls a handler with ``stream_input``
        :param timeout: seconds for the whole call
        :raises P2PHandlerError: the handler raised; the text is its repr
        :raises P2PDaemonError: the call could not be brought there or back (see `DispatchFailure`'s subclasses)
        :raises DeadlineExceeded: the timeout passed
        """
        deadline = Deadline.after(timeout)
        if not isinstance(input, Message):
            return await rpc.call_stream(self._transport, self._scope, peer_id, name, input, output_type, deadline)
        answer = await self._transport.call(peer_id, name, input.SerializeToString(), deadline)
        return rpc.parse(output_type, answer)

    async def iterate_protobuf_handler(
        self,
        peer_id: PeerID,
        name: str,
        input: Message | AsyncIterable[Message],
        output_type: type[M],
        *,
        timeout: float | None = None,
    ) -> rpc.Responses[M]:
        """Call a handler that gives a stream of answers: ``async for answer in await p2p.iterate_protobuf_handler(…)``.

        Closing the iterator ends the call. Raises as `call_protobuf_handler`, here or while iterating.

        :param timeout: seconds for the whole exchange
        """
        deadline = Deadline.after(timeout)
        return await rpc.open_responses(self._transport, self._scope, peer_id, name, input, output_type, deadline)

    # -- raw streams -----------------------------------------------------------------------------------------------

    async def add_binary_stream_handler(self, name: str, handler: BinaryHandler, balanced: bool = False) -> None:
        """Accept raw streams: ``await handler(StreamInfo, reader, writer)``. The stream ends with the handler.

        :raises P2PDaemonError: if the name has a handler
        """
        scope = self._scope

        async def handle(stream: Stream) -> None:
            reader, writer = binary.open_pair(stream, scope)
            try:
                await handler(StreamInfo(stream.remote_id, None, name), reader, writer)
            except BaseException:
                writer.transport.abort()
                raise
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

        await self._transport.listen_stream(name, Mode.RAW, handle, balanced=balanced)

    async def remove_binary_stream_handler(self, name: str) -> None:
        """Forget the handler of ``name``; streams that run go on."""
        await self._transport.unlisten(name)

    async def call_binary_stream_handler(
        self, peer_id: PeerID, name: str, *, timeout: float | None = None
    ) -> tuple[StreamInfo, asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a raw stream to a handler of ``peer_id``; close the writer when done.

        :param timeout: seconds for the opening
        :raises P2PDaemonError: if it could not be opened
        """
        stream = await self._transport.open(peer_id, name, Mode.RAW, Deadline.after(timeout))
        return StreamInfo(peer_id, None, name), *binary.open_pair(stream, self._scope)

    # -- the end ---------------------------------------------------------------------------------------------------

    async def shutdown(self) -> None:
        """Leave the network: cancel handlers, end calls; ends the daemon if it was made by `create`. Idempotent."""
        if self._pid != os.getpid():
            return  # it is the parent's
        self._open = False
        try:
            await end_handlers(self._scope)
        finally:
            await self._transport.close()
            if self._finalizer is not None:
                self._finalizer.detach()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()


def _attached(kind: type[P2P], path: str, peer_id: PeerID) -> P2P:
    """A peer in the process that it was given to; it connects when it is first used."""
    p2p = kind(GuestTransport(Path(path), peer_id))
    p2p._open = True
    return p2p
