"""``hivemind-dht``: a node of the DHT that others can join through. Options and output as in hivemind 1.1."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from hivemind.cli.running import guarded, run_until_stopped
from hivemind.config import check_seconds
from hivemind.dht import DHT, DHTNode
from hivemind.log import get_logger
from hivemind.networking import log_visible_maddrs

__all__ = ["add_options", "main", "run"]

logger = get_logger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
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
        default=["/ip4/0.0.0.0/tcp/0"],
        metavar="MADDR",
        help="addresses to listen on; default: any free TCP port of all IPv4 interfaces, /ip4/0.0.0.0/tcp/0",
    )
    parser.add_argument(
        "--announce_maddrs",
        nargs="*",
        default=None,
        metavar="MADDR",
        help="addresses to tell other peers instead of those listened on, as for a forwarded port",
    )
    parser.add_argument(
        "--use_ipfs",
        action="store_true",
        help="find the initial peers through the IPFS network: of their addresses the part /p2p/<peer id> is enough",
    )
    parser.add_argument(
        "--identity_path",
        metavar="FILE",
        help="file of this peer's private key, which keeps its peer id over restarts; made if it is missing",
    )
    parser.add_argument(
        "--no_relay", action="store_false", dest="use_relay", help="do not reach other peers through relays"
    )
    parser.add_argument(
        "--use_auto_relay",
        action="store_true",
        help="be reached through relays if this machine is behind a NAT or a firewall",
    )
    parser.add_argument(
        "--refresh_period",
        type=float,
        default=30,
        metavar="SECONDS",
        help="how often to log the number of known peers and of stored keys; default: 30",
    )


def run(options: argparse.Namespace) -> int:
    """Run the node until the process is told to stop.

    :raises ConfigError: if an option is wrong
    :raises P2PDaemonError: if it does not start, or no initial peer answers
    """
    check_seconds("--refresh_period", options.refresh_period)
    return run_until_stopped(partial(_serve, options))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console command."""
    parser = argparse.ArgumentParser(
        prog="hivemind-dht", description="Run a DHT peer that other peers can join through, and log how it is doing."
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    raise SystemExit(guarded(parser.prog, partial(run, options)))


async def _serve(options: argparse.Namespace) -> int:
    dht = DHT(
        options.initial_peers,
        start=True,
        await_ready=False,
        host_maddrs=options.host_maddrs,
        announce_maddrs=options.announce_maddrs or None,
        use_ipfs=options.use_ipfs,
        identity_path=options.identity_path,
        use_relay=options.use_relay,
        use_auto_relay=options.use_auto_relay,
    )
    try:
        peers, keys = await dht.run_coroutine(_count, return_future=True)
        # it has joined: this does not wait
        log_visible_maddrs(dht.get_visible_maddrs(), only_p2p=options.use_ipfs)
        while True:
            logger.info("%d DHT nodes (including this one) are in the local routing table", peers)
            logger.info("Local storage contains %d keys", keys)
            await asyncio.sleep(options.refresh_period)
            peers, keys = await dht.run_coroutine(_count, return_future=True)
    finally:
        dht.shutdown()


async def _count(dht: DHT, node: DHTNode) -> tuple[int, int]:
    """Known nodes with this one, and keys that are kept here."""
    return len(node.protocol.routing_table) + 1, len(node.protocol.storage)
