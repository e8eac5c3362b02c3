"""What ``hivemind-dht`` and ``hivemind-relay`` have in common: a DHT peer that runs until it is stopped and says how it
is doing."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hivemind.dht import DHT, DHTNode
from hivemind.log import get_logger
from hivemind.networking import log_visible_maddrs

__all__ = ["Report", "add_peer_options", "count", "peer_options", "serve"]

logger = get_logger(__name__)

#: Lines on how the peer is doing, made on the network thread.
Report = Callable[[DHT, DHTNode], Awaitable[list[str]]]


def add_peer_options(parser: argparse.ArgumentParser, host_maddrs: list[str]) -> None:
    """Add the options that every peer has.

    :param host_maddrs: where it listens by default
    """
    parser.set_defaults(default_host_maddrs=host_maddrs)
    parser.add_argument(
        "--initial_peers",
        nargs="*",
        default=[],
        metavar="MADDR",
        help="addresses of peers of the DHT to join through, each /…/p2p/<peer id>; without any, begin a new DHT",
    )
    parser.add_argument(
        "--host_maddrs",
        nargs="*",
        default=host_maddrs,
        metavar="MADDR",
        help=f"addresses to listen on; default: any free port of all IPv4 interfaces, {' '.join(host_maddrs)}",
    )
    parser.add_argument(
        "--announce_maddrs",
        nargs="*",
        default=None,
        metavar="MADDR",
        help="addresses to tell other peers instead of those listened on, as for a forwarded port",
    )
    parser.add_argument(
        "--identity_path",
        metavar="FILE",
        help="file of this peer's private key, which keeps its peer id over restarts; made if it is missing",
    )
    parser.add_argument(
        "--swarm_key_path",
        metavar="FILE",
        help="file with the secret of a private swarm (hivemind swarm-key make): only peers that have it can connect;"
        " over TCP",
    )
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help="serve Prometheus text there, for instance at 127.0.0.1:9100 or unix:/run/peer.sock",
    )
    parser.add_argument(
        "--metrics_public", action="store_true", help="let --metrics be on an address that others can reach"
    )
    parser.add_argument(
        "--refresh_period",
        type=float,
        default=30,
        metavar="SECONDS",
        help="how often to log how the peer is doing; default: 30",
    )


def peer_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `DHT` for the options of `add_peer_options`."""
    hosts = options.host_maddrs
    if options.swarm_key_path and hosts is options.default_host_maddrs:
        # QUIC cannot be used in a private swarm; whoever names it is told so
        hosts = [each for each in hosts if "/tcp/" in each]
    return {
        "initial_peers": options.initial_peers,
        "host_maddrs": hosts,
        "announce_maddrs": options.announce_maddrs or None,
        "identity_path": options.identity_path,
        "swarm_key_path": options.swarm_key_path,
        "metrics": options.metrics,
        "metrics_public": options.metrics_public,
    }


async def serve(period: float, report: Report, *, only_p2p: bool = False, **options: Any) -> int:
    """Run a DHT until the task is cancelled.

    :param period: seconds between two reports
    :param only_p2p: of the addresses only the peer id is worth copying
    :param options: those of `DHT`
    """
    dht = DHT(start=True, await_ready=False, **options)
    try:
        lines = await dht.run_coroutine(report, return_future=True)
        # it has joined: this does not wait
        log_visible_maddrs(dht.get_visible_maddrs(), only_p2p=only_p2p)
        if metrics := await dht.run_coroutine(_metrics, return_future=True):
            logger.info("Prometheus text is served at %s", metrics)
        while True:
            for line in lines:
                logger.info("%s", line)
            await asyncio.sleep(period)
            lines = await dht.run_coroutine(report, return_future=True)
    finally:
        dht.shutdown()


async def _metrics(dht: DHT, node: DHTNode) -> str | None:
    return node.p2p.metrics_address


async def count(dht: DHT, node: DHTNode) -> list[str]:
    """Known nodes and stored keys, in the words of hivemind 1.1."""
    peers, keys = len(node.protocol.routing_table), len(node.protocol.storage)
    return [
        f"{peers + 1} DHT nodes (including this one) are in the local routing table",
        f"Local storage contains {keys} keys",
    ]
