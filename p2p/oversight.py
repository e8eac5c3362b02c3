"""What the owner of a peer sees of other peers through the daemon, and does about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hivemind.clock import Deadline
from hivemind.config import check_seconds
from hivemind.errors import P2PDaemonError
from hivemind.identity import PeerID
from hivemind.p2p.daemon import ControlTransport
from hivemind.p2p.metrics import OTHER, P2PMetrics, parse_peer, parse_protocol
from hivemind.p2p.transport import Transport

__all__ = ["Oversight"]


class Oversight:
    """The part of `P2P` that only a peer with a daemon has; over other transports these raise `P2PDaemonError`."""

    _transport: Transport

    def _daemon(self) -> ControlTransport:
        if not isinstance(self._transport, ControlTransport):
            raise P2PDaemonError("this peer has no daemon that could know or do this")
        return self._transport

    @property
    def metrics_address(self) -> str | None:
        """Where the daemon serves Prometheus text: ``http://…/metrics`` or ``unix:/…``; None where the option
        ``metrics`` is not set.

        :raises P2PDaemonError: over a transport without a daemon
        """
        return self._daemon().metrics_address

    async def metrics(self) -> P2PMetrics:
        """Calls by protocol and by peer since the daemon's start, all clients of the daemon together.

        :raises P2PDaemonError: over a transport without a daemon
        """
        protocols = {entry["name"]: parse_protocol(entry) for entry in await self._pages("protocol_metrics", "name")}
        peers = [parse_peer(entry) for entry in await self._pages("peer_metrics", "id")]
        return P2PMetrics(
            other_protocols=protocols.pop(OTHER),
            protocols=protocols,
            peers={each.peer_id: each for each in peers if each.peer_id is not None},
            other_peers=next(each for each in peers if each.peer_id is None),
        )

    async def _pages(self, op: str, key: str) -> list[dict[str, Any]]:
        daemon, entries, after = self._daemon(), [], ""
        while True:
            page = await daemon.request(op, after=after)
            entries += page["entries"]
            if not page["more"]:
                return entries
            after = entries[-1][key]

    async def ping(self, peer_id: PeerID, *, timeout: float | None = 15.0) -> float:
        """The seconds of a round trip to ``peer_id``, which is found and connected to first where needed. Its
        daemon answers, without its Python.

        :param timeout: seconds
        :raises PeerUnreachable: names each address and why
        :raises DeadlineExceeded: the timeout passed
        """
        deadline = Deadline.after(timeout)
        seconds = min(max(deadline.remaining() * 0.95, 0.001), 3600.0)
        answer = await self._daemon().request("ping", deadline=deadline, peer=str(peer_id), timeout=seconds)
        return float(answer["seconds"])

    async def ban(self, peer_id: PeerID, seconds: float) -> None:
        """Close the connections to ``peer_id`` and refuse it from now on: no call reaches it or comes from it. Calls
        under way end with `StreamReset`. A daemon that is started again is told of it; banning anew replaces the time
        left.

        :param seconds: for how long
        :raises ConfigError: if ``seconds`` is not a number > 0
        """
        check_seconds("seconds", seconds)
        await self._daemon().ban(peer_id, seconds)

    async def unban(self, peer_id: PeerID) -> bool:
        """Let ``peer_id`` in again; whether it was banned."""
        return await self._daemon().unban(peer_id)

    async def bans(self) -> Mapping[PeerID, float]:
        """The peers that are refused now, by `ban` or as they flooded this one, with the seconds left."""
        answer = await self._daemon().request("bans")
        return {PeerID.from_base58(peer): float(left) for peer, left in answer["bans"].items()}
