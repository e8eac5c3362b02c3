"""The transport that users run: libp2p through a daemon, which it starts, and where asked for starts again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multiaddr import Multiaddr

from hivemind.clock import Deadline, monotonic
from hivemind.errors import (
    ConfigError,
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
from hivemind.p2p.lifeline import Lifeline
from hivemind.p2p.process import DaemonProcess
from hivemind.p2p.reach_watch import ReachabilityWatch
from hivemind.p2p.reachability import Reachability, parse_reachability
from hivemind.p2p.relay_limits import RelayLimits
from hivemind.p2p.restarts import Restarts
from hivemind.p2p.swarm_key import SwarmKey
from hivemind.p2p.transport import Buffer, Mode, Stream, StreamHandler, UnaryHandler
from hivemind.p2p.watch import HandlerWatch

__all__ = ["ControlTransport", "DaemonTransport", "daemon_config"]

logger = get_logger(__name__)

#: Seconds for what a daemon does when it is asked to stop.
_SHUTDOWN_SECONDS = 0.3
#: Seconds in which the daemon answers what it knows without asking the network.
_REQUEST_SECONDS = 10.0
#: Seconds that a daemon which is started again may wait for peers before it serves; it goes on looking for them then.
_REJOIN_SECONDS = 3.0


class ControlTransport(ABC):
    """What owner and guest have in common: a `transport.Transport` over a control connection.

    :param peer_id: the peer, where it is known before there is a connection; see `Lifeline`
    """

    def __init__(self, peer_id: PeerID | None = None) -> None:
        self._line = Lifeline(self._recover, peer_id)

    @property
    def peer_id(self) -> PeerID:
        peer_id = self._line.peer_id
        if peer_id is None:
            raise P2PDaemonError("this peer was not started")
        return peer_id

    @property
    @abstractmethod
    def control_path(self) -> Path:
        """Where guests connect."""

    @property
    def restarts(self) -> int:
        """How often the daemon was started again."""
        return self._line.restarts

    @property
    def metrics_address(self) -> str | None:
        """Where the daemon serves Prometheus text."""
        return None if self._line.client is None else self._line.client.metrics_address

    @abstractmethod
    async def start(self) -> None: ...

    async def call(self, peer: PeerID, name: str, request: Buffer, deadline: Deadline) -> Buffer:
        client = self._line.now() or await self._line.ready(deadline, f"call of {name} on {peer}")
        return await client.call(peer, name, request, deadline)

    async def open(self, peer: PeerID, name: str, mode: Mode, deadline: Deadline) -> Stream:
        if mode is Mode.UNARY:
            raise ConfigError("mode", mode, "Mode.MESSAGES or Mode.RAW")
        client = self._line.now() or await self._line.ready(deadline, f"stream to {name} on {peer}")
        return await client.open(peer, name, mode, deadline)

    async def listen_unary(self, name: str, handler: UnaryHandler, *, balanced: bool = False) -> None:
        await self._line.listen(name, Mode.UNARY, handler, balanced=balanced, deadline=_soon())

    async def listen_stream(self, name: str, mode: Mode, handler: StreamHandler, *, balanced: bool = False) -> None:
        if mode is Mode.UNARY:
            raise ConfigError("mode", mode, "Mode.MESSAGES or Mode.RAW")
        await self._line.listen(name, mode, handler, balanced=balanced, deadline=_soon())

    async def unlisten(self, name: str) -> None:
        await self._line.unlisten(name, _soon())

    async def connect(self, peer: PeerID, addresses: Sequence[Multiaddr], deadline: Deadline) -> None:
        what = f"connecting to {peer}"
        texts = [str(each) for each in addresses]

        async def connect(client: ControlClient) -> None:
            deadline.check(what)
            # the daemon's word on a deadline says which addresses it tried, so it comes a moment before the deadline
            seconds = min(max(deadline.remaining() * 0.95, 0.001), 3600.0)
            await client.request("connect", deadline=deadline, peer=str(peer), addrs=texts, timeout=seconds)

        await self._line.ask(connect, deadline, what)

    async def disconnect(self, peer: PeerID) -> None:
        await self.request("disconnect", peer=str(peer))

    async def peers(self) -> list[PeerInfo]:
        found = await self.request("peers")
        return [
            PeerInfo(PeerID.from_base58(each["id"]), tuple(Multiaddr(text) for text in each["addrs"] or ()))
            for each in found["peers"] or ()
        ]

    async def addresses(self) -> list[Multiaddr]:
        found = await self.request("addrs")
        return [Multiaddr(text) for text in found["addrs"] or ()]

    async def reachability(self) -> Reachability:
        """What the daemon knows of the ways to this peer."""
        return parse_reachability(await self.request("reachability"))

    async def allow_relaying(self, peers: Iterable[PeerID]) -> None:
        """Say who may use this relay from now on."""
        await self.request("relay_allow", peers=[str(each) for each in peers])

    async def stats(self) -> dict[str, int]:
        return await self.request("stats")

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def _recover(self, client: ControlClient | None) -> None:
        """See `Lifeline`."""

    async def request(self, op: str, *, deadline: Deadline | None = None, **content: object) -> dict[str, Any]:
        """Ask the daemon (docs/control-protocol.md, "Requests"), by default for what it knows at once."""
        until = deadline or _soon()
        return await self._line.ask(lambda client: client.request(op, deadline=until, **content), until, op)

    async def ban(self, peer: PeerID, seconds: float) -> None:
        """See `Oversight.ban`."""
        await self._line.ban(peer, seconds, _soon())

    async def unban(self, peer: PeerID) -> bool:
        """See `Oversight.unban`."""
        return await self._line.unban(peer, _soon())


def _soon() -> Deadline:
    return Deadline.after(_REQUEST_SECONDS)


class DaemonTransport(ControlTransport):
    """Starts a daemon and owns it.

    :param config: the options of the node; the identity file must exist if one is named
    :param ephemeral: a daemon that only looks something up: nothing is listened on and no identity used
    """

    def __init__(self, config: P2PConfig, *, ephemeral: bool = False) -> None:
        super().__init__()
        self._line.watch = HandlerWatch(config.slow_handler_seconds)
        self._config = config
        self._ephemeral = ephemeral
        self._watch: ReachabilityWatch | None = None
        content = daemon_config(config, ephemeral=ephemeral)
        if not content["identity_path"]:
            # a daemon that takes the place of another is the same peer
            content["identity_seed"] = secrets.token_hex(32)
        self.process = DaemonProcess(content)
        self._restarts = Restarts()
        # of the daemon that ran last: what it listened on, the peers that it was connected with
        self._listened: list[str] = []
        self._known: list[str] = []
        # who may use this relay, where that was said since the start
        self._relay_allow: list[str] | None = None

    @property
    def control_path(self) -> Path:
        return self.process.control_path

    async def allow_relaying(self, peers: Iterable[PeerID]) -> None:
        allowed = [str(each) for each in peers]
        await self.request("relay_allow", peers=allowed)
        self._relay_allow = allowed

    async def start(self) -> None:
        if self._config.dropped_maddrs and not self._ephemeral:
            dropped = ", ".join(self._config.dropped_maddrs)
            logger.warning("left out: %s: QUIC cannot be used in a private swarm (swarm_key), only TCP can", dropped)
        if not self._ephemeral:
            self._watch = ReachabilityWatch(self._config)
        self._line.begin()
        try:
            await self._launch({})
        except BaseException:
            self._line.closed = True
            self._stop_now()
            raise
        finally:
            self._line.end()

    async def _launch(self, changes: Mapping[str, Any]) -> None:
        """Start a daemon and connect to it.

        :raises DaemonStartError: if it does not start; nothing of it is left
        """
        ready, sock = await self.process.start(Deadline.after(self._config.startup_timeout), changes)
        loop = asyncio.get_running_loop()
        try:
            await self._line.attach(
                lambda client: loop.create_unix_connection(lambda: client, sock=sock),
                self._on_event,
                watch_peers=self._config.restart,
            )
            if self._watch is not None and self._line.client is not None:
                self._watch.take(await self._line.client.request("reachability"))
        except (P2PDaemonError, DeadlineExceeded, OSError) as error:
            code = await self.process.bury()
            ended = "" if code is None else f", it has ended with exit code {code}"
            raise DaemonStartError(f"the daemon does not answer{ended}: {error}", self.process.log_tail) from error
        except BaseException:
            self.process.kill()
            raise
        self._listened = [str(each) for each in ready.get("listen") or ()]

    def _stop_now(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self.process.stop_now()

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "reachability" and self._watch is not None:
            self._watch.take(event)
        elif event.get("event") == "banned":
            self._line.note_ban(PeerID.from_base58(event["peer"]), event["seconds"])
        elif event.get("event") == "peers" and event["peers"]:
            self._known = [f"{address}/p2p/{peer['id']}" for peer in event["peers"] for address in peer["addrs"] or ()]

    async def _recover(self, client: ControlClient | None) -> None:
        assert client is not None
        code = await self.process.bury()
        dropped = self.process.disposed
        restart = self._config.restart and not dropped
        error = DaemonDied(code, self.process.log_tail, "it is being restarted" if restart else "")
        client.fail(error)
        if not restart:
            if not dropped:
                logger.error("%s", error.summary)
            self._stop_now()
            raise error
        await self._restart(error)
        logger.info("the p2p daemon runs again, as %s", self.peer_id)

    async def _restart(self, error: P2PDaemonError) -> None:
        """
        :raises DaemonDied: if it is given up
        """
        again = self._as_before()
        while (pause := self._restarts.died(monotonic())) is not None:
            when = f"restart {self._restarts.recent} in {pause:.1f} s"
            if isinstance(error, DaemonDied):
                logger.warning("%s", DaemonDied(error.exit_code, error.log_tail, when))
            else:
                logger.warning("the p2p daemon does not start again; %s: %s", when, error)
            await asyncio.sleep(pause)
            try:
                await self._launch(again)
            except DaemonStartError as failure:
                error = failure
                if failure.kind == "listen" and again["listen"]:
                    logger.warning("the restarted p2p daemon listens on free ports: %s", failure)
                    again = {**again, "listen": _on_free_ports(again["listen"])}
            else:
                return
        code, tail = (error.exit_code, error.log_tail) if isinstance(error, DaemonDied) else (None, str(error))
        limits = f"{self._restarts.most} restarts within {self._restarts.window:.0f} s"
        final = DaemonDied(code, tail, f"it is given up after {limits}")
        logger.error("%s", final)
        self._stop_now()
        raise final

    def _as_before(self) -> dict[str, Any]:
        """Changes to the configuration for a daemon that takes the place of one that has died: on the same ports, and
        in touch with the same peers; it does not matter whether they answer at once."""
        initial = (str(each) for each in self._config.initial_peers or ())
        allowed = {} if self._relay_allow is None else {"relay_allow": self._relay_allow}
        return {
            **allowed,
            "listen": self._listened,
            "bootstrap": list(dict.fromkeys((*initial, *self._known))),
            "bootstrap_timeout": min(_REJOIN_SECONDS, 0.9 * self._config.startup_timeout),
            "require_bootstrap": False,
        }

    async def close(self) -> None:
        if self._line.closed:
            return
        client = self._line.client
        try:
            await self._line.close()
            if client is not None:
                await client.close_handlers()
                with contextlib.suppress(HivemindError):
                    await client.request("shutdown", deadline=Deadline.after(_SHUTDOWN_SECONDS))
                client.abort(StreamReset("this peer was shut down"))
            await self.process.stop()
        finally:
            # also where this was cancelled on the way
            if client is not None:
                client.abort(StreamReset("this peer was shut down"))
            self._stop_now()


def _on_free_ports(listened: Sequence[str]) -> list[str]:
    return [re.sub(r"/(tcp|udp)/\d+", r"/\1/0", address) for address in listened]


def daemon_config(config: P2PConfig, *, ephemeral: bool = False) -> dict[str, Any]:
    """The configuration of the daemon (docs/control-protocol.md) for these options."""
    limits = config.relay_limits or RelayLimits()
    allowed, key = config.relay_allowlist, config.swarm_key
    verbose = logging.getLogger("hivemind.p2pd").isEnabledFor(logging.DEBUG)
    content: dict[str, Any] = {
        "listen": [] if config.no_listen else [str(each) for each in config.host_maddrs],
        "announce": [str(each) for each in config.announce_maddrs or ()],
        "no_listen": config.no_listen,
        "bootstrap": [str(each) for each in config.initial_peers or ()],
        # the daemon gives up a little before us and says why, and its dials before that: their errors are the reason
        "bootstrap_timeout": 0.85 * config.startup_timeout,
        "dial_timeout": min(15.0, 0.75 * config.startup_timeout),
        "dht_mode": config.dht_mode,
        "tls": config.tls,
        "conn_manager": config.conn_manager,
        "relay": config.use_relay,
        "auto_relay": config.use_auto_relay,
        "trusted_relays": [str(each) for each in config.trusted_relays or ()],
        "relay_service": config.relay_service,
        "relay_reservations": limits.max_reservations,
        "relay_circuits": limits.max_circuits,
        "relay_circuit_bytes": limits.circuit_bytes,
        "relay_circuit_time": limits.circuit_seconds,
        "relay_buffer": limits.buffer_bytes,
        "relay_allow": None if allowed is None else [str(each) for each in allowed],
        "force_reachability": config.force_reachability or "",
        "nat_port_map": config.nat_port_map and not config.only_loopback,
        "auto_nat": config.auto_nat,
        "max_unary": config.persistent_conn_max_msg_size,
        "ipfs": bool(config.use_ipfs),
        "ipfs_peers": [] if isinstance(config.use_ipfs, bool) else [str(each) for each in config.use_ipfs],
        "swarm_key": key.reveal() if isinstance(key, SwarmKey) else "",
        "peer_calls": config.max_peer_calls,
        "peer_streams": config.max_peer_streams,
        "peer_bytes": config.max_peer_bytes,
        "flood_limit": config.flood_limit,
        "flood_ban": config.flood_ban_seconds,
        "metrics_listen": config.metrics or "",
        "metrics_public": config.metrics_public,
        "pprof": config.pprof,
        "identity_path": "" if config.identity_path is None else str(Path(config.identity_path).absolute()),
        "log_level": "DEBUG" if verbose else "WARN",
    }
    if ephemeral:
        content |= {"no_listen": True, "listen": [], "announce": [], "dht_mode": "client", "identity_path": ""}
        content |= {"nat_port_map": False, "auto_nat": False, "auto_relay": False, "trusted_relays": []}
        content |= {"relay_service": False, "relay_allow": None, "force_reachability": ""}
        content |= {"metrics_listen": "", "metrics_public": False, "pprof": False}
    return content
