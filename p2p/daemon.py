"""The transport that users run: libp2p through the daemon, as its owner or as a guest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiaddr import Multiaddr

from hivemind.aio import TaskScope
from hivemind.clock import Deadline
from hivemind.errors import (
    ConfigError,
    ControlFailure,
    DaemonDied,
    DaemonStartError,
    DeadlineExceeded,
    HivemindError,
    P2PDaemonError,
    StreamReset,
)
from hivemind.identity import PeerID, PeerInfo
from hivemind.log import get_logger
from hivemind.p2p.config import P2PConfig
from hivemind.p2p.control import ControlClient
from hivemind.p2p.process import DaemonProcess
from hivemind.p2p.reachability import Reachability, parse_reachability
from hivemind.p2p.transport import Buffer, Mode, Stream, StreamHandler, UnaryHandler

__all__ = ["ControlTransport", "DaemonTransport", "GuestTransport", "daemon_config"]

logger = get_logger(__name__)

#: Seconds for what a daemon does when it is asked to stop.
_SHUTDOWN_SECONDS = 0.3
#: Seconds in which a guest's connection must stand.
_CONNECT_SECONDS = 5.0


class ControlTransport:
    """What owner and guest have in common: a `transport.Transport` over a control connection."""

    def __init__(self) -> None:
        self._client: ControlClient | None = None
        self._closed = False

    @property
    def peer_id(self) -> PeerID:
        peer_id = None if self._client is None else self._client.peer_id
        if peer_id is None:
            raise P2PDaemonError("this peer was not started")
        return peer_id

    @property
    def control_path(self) -> Path:
        """Where guests connect."""
        raise NotImplementedError

    async def start(self) -> None:
        raise NotImplementedError

    async def call(self, peer: PeerID, name: str, request: Buffer, deadline: Deadline) -> Buffer:
        return await self._open_client().call(peer, name, request, deadline)

    async def open(self, peer: PeerID, name: str, mode: Mode, deadline: Deadline) -> Stream:
        if mode is Mode.UNARY:
            raise ConfigError("mode", mode, "Mode.MESSAGES or Mode.RAW")
        return await self._open_client().open(peer, name, mode, deadline)

    async def listen_unary(self, name: str, handler: UnaryHandler, *, balanced: bool = False) -> None:
        await self._open_client().listen(name, Mode.UNARY, handler, balanced=balanced)

    async def listen_stream(self, name: str, mode: Mode, handler: StreamHandler, *, balanced: bool = False) -> None:
        if mode is Mode.UNARY:
            raise ConfigError("mode", mode, "Mode.MESSAGES or Mode.RAW")
        await self._open_client().listen(name, mode, handler, balanced=balanced)

    async def unlisten(self, name: str) -> None:
        await self._open_client().unlisten(name)

    async def connect(self, peer: PeerID, addresses: Sequence[Multiaddr], deadline: Deadline) -> None:
        deadline.check(f"connecting to {peer}")
        # the daemon's word on a deadline says which addresses it tried, so it comes a moment before the deadline
        seconds = min(max(deadline.remaining() * 0.95, 0.001), 3600.0)
        await self._open_client().request(
            "connect", deadline=deadline, peer=str(peer), addrs=[str(each) for each in addresses], timeout=seconds
        )

    async def disconnect(self, peer: PeerID) -> None:
        await self._open_client().request("disconnect", peer=str(peer))

    async def peers(self) -> list[PeerInfo]:
        found = await self._open_client().request("peers")
        return [
            PeerInfo(PeerID.from_base58(each["id"]), tuple(Multiaddr(text) for text in each["addrs"] or ()))
            for each in found["peers"] or ()
        ]

    async def addresses(self) -> list[Multiaddr]:
        found = await self._open_client().request("addrs")
        return [Multiaddr(text) for text in found["addrs"] or ()]

    async def reachability(self) -> Reachability:
        """What the daemon knows of the ways to this peer."""
        return parse_reachability(await self._open_client().request("reachability"))

    async def stats(self) -> dict[str, int]:
        return await self._open_client().request("stats")

    async def close(self) -> None:
        raise NotImplementedError

    def _open_client(self) -> ControlClient:
        if self._closed:
            raise P2PDaemonError("this peer was shut down")
        if self._client is None:
            raise P2PDaemonError("this peer was not started")
        return self._client


class DaemonTransport(ControlTransport):
    """Starts a daemon and owns it.

    :param config: the options of the node; the identity file must exist if one is named
    :param ephemeral: a daemon that only looks something up: nothing is listened on and no identity used
    """

    def __init__(self, config: P2PConfig, *, ephemeral: bool = False) -> None:
        super().__init__()
        self._config = config
        self.process = DaemonProcess(daemon_config(config, ephemeral=ephemeral))
        self._burial = TaskScope("burial of the p2p daemon")

    @property
    def control_path(self) -> Path:
        return self.process.control_path

    async def start(self) -> None:
        deadline = Deadline.after(self._config.startup_timeout)
        _, sock = await self.process.start(deadline)
        try:
            client = ControlClient(self._lost)
            await asyncio.get_running_loop().create_unix_connection(lambda: client, sock=sock)
            self._client = client
            await client.hello()
        except (ControlFailure, DeadlineExceeded, OSError) as error:
            await self._abandon()
            raise DaemonStartError(f"the daemon does not answer: {error}", self.process.log_tail) from error
        except BaseException:
            await self._abandon()
            raise

    async def _abandon(self) -> None:
        self._closed = True
        self.process.stop_now()
        if self._client is not None:
            self._client.abort(ControlFailure("the daemon did not start"))
        await self._burial.close()

    def _lost(self) -> None:
        if not self._closed:
            self._burial.start(self._bury())

    async def _bury(self) -> None:
        code = await self.process.bury()
        error = DaemonDied(code, self.process.log_tail)
        logger.error("%s", str(error).partition("\n")[0])
        if self._client is not None:
            self._client.fail(error)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        client = self._client
        try:
            if client is not None:
                await client.close_handlers()
                with contextlib.suppress(HivemindError):
                    await client.request("shutdown", deadline=Deadline.after(_SHUTDOWN_SECONDS))
                client.abort(StreamReset("this peer was shut down"))
            await self._burial.close()
            await self.process.stop()
        finally:
            # also where this was cancelled on the way
            if client is not None:
                client.abort(StreamReset("this peer was shut down"))
            self.process.stop_now()


class GuestTransport(ControlTransport):
    """Another client of a daemon that runs.

    :param path: its control socket
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @property
    def control_path(self) -> Path:
        return self._path

    async def start(self) -> None:
        client = ControlClient(self._lost)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.create_unix_connection(lambda: client, str(self._path))
        except (OSError, TimeoutError) as error:
            why = f"{error}; it may have been shut down"
            raise ControlFailure(f"no p2p daemon answers at {self._path}: {why}") from error
        self._client = client
        try:
            await client.hello()
        except BaseException:
            await self.close()
            raise

    def _lost(self) -> None:
        if self._client is not None:
            self._client.fail(DaemonDied(None))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        client = self._client
        if client is not None:
            try:
                # before the handlers end, so that no call comes to a client that is gone
                with contextlib.suppress(HivemindError):
                    await client.unlisten_all(Deadline.after(_SHUTDOWN_SECONDS))
                await client.close_handlers()
            finally:
                client.abort(StreamReset("this peer was shut down"))


def daemon_config(config: P2PConfig, *, ephemeral: bool = False) -> dict[str, Any]:
    """The configuration of the daemon (docs/control-protocol.md) for these options."""
    verbose = logging.getLogger("hivemind.p2pd").isEnabledFor(logging.DEBUG)
    content: dict[str, Any] = {
        "listen": [] if config.no_listen else [str(each) for each in config.host_maddrs],
        "announce": [str(each) for each in config.announce_maddrs or ()],
        "no_listen": config.no_listen,
        "bootstrap": [str(each) for each in config.initial_peers or ()],
        # the daemon gives up a little before us, and says why
        "bootstrap_timeout": 0.9 * config.startup_timeout,
        "dial_timeout": min(15.0, 0.9 * config.startup_timeout),
        "dht_mode": config.dht_mode,
        "tls": config.tls,
        "relay": config.use_relay,
        "auto_relay": config.use_auto_relay,
        "trusted_relays": [str(each) for each in config.trusted_relays or ()],
        "relay_service": config.relay_service,
        "force_reachability": config.force_reachability or "",
        "nat_port_map": config.nat_port_map and not config.only_loopback,
        "auto_nat": config.auto_nat,
        "max_unary": config.persistent_conn_max_msg_size,
        "identity_path": "" if config.identity_path is None else str(Path(config.identity_path).absolute()),
        "log_level": "DEBUG" if verbose else "WARN",
    }
    if ephemeral:
        content |= {"no_listen": True, "listen": [], "announce": [], "dht_mode": "client", "identity_path": ""}
        content |= {"nat_port_map": False, "auto_nat": False, "auto_relay": False, "trusted_relays": []}
        content |= {"relay_service": False, "force_reachability": ""}
    return content
