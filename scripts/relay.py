"""``hivemind-relay``: a public peer through which peers behind NATs and firewalls are reached, and join."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from hivemind.cli.running import guarded, run_until_stopped
from hivemind.cli.serving import add_peer_options, count, peer_options, serve
from hivemind.config import check_seconds
from hivemind.dht import DHT, DHTNode

__all__ = ["add_options", "main", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_peer_options(parser, ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"])


def run(options: argparse.Namespace) -> int:
    """Run the relay until the process is told to stop.

    :raises ConfigError: if an option is wrong
    :raises P2PDaemonError: if it does not start, or no initial peer answers
    """
    check_seconds("--refresh_period", options.refresh_period)
    # others must be able to reach it, so it does not ask them whether they do
    public: dict[str, Any] = {"relay_service": True, "force_reachability": "public"}
    return run_until_stopped(partial(serve, options.refresh_period, _report, **public, **peer_options(options)))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console command."""
    parser = argparse.ArgumentParser(
        prog="hivemind-relay",
        description="Run a relay for peers behind NATs and firewalls, on a machine that others can reach. It is a peer"
        " of the DHT as well: others join through it.",
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    raise SystemExit(guarded(parser.prog, partial(run, options)))


async def _report(dht: DHT, node: DHTNode) -> list[str]:
    stats, peers = await node.p2p.stats(), await node.p2p.list_peers()
    traffic = f"{stats['bytes_in'] / 1e6:.1f} MB received and {stats['bytes_out'] / 1e6:.1f} MB sent since the start"
    return [*await count(dht, node), f"{len(peers)} peers are connected; {traffic}"]
