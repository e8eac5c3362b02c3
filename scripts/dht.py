"""``hivemind-dht``: a node of the DHT that others can join through. Options and output as in hivemind 1.1."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from hivemind.cli.running import guarded, run_until_stopped
from hivemind.cli.serving import add_peer_options, count, peer_options, serve
from hivemind.config import check_seconds

__all__ = ["add_options", "main", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_peer_options(parser, ["/ip4/0.0.0.0/tcp/0"])
    parser.add_argument(
        "--use_ipfs",
        action="store_true",
        help="find the initial peers through the IPFS network: of their addresses the part /p2p/<peer id> is enough",
    )
    parser.add_argument(
        "--no_relay", action="store_false", dest="use_relay", help="do not reach other peers through relays"
    )
    parser.add_argument(
        "--use_auto_relay",
        action="store_true",
        help="be reached through relays if this machine is behind a NAT or a firewall",
    )


def run(options: argparse.Namespace) -> int:
    """Run the node until the process is told to stop.

    :raises ConfigError: if an option is wrong
    :raises P2PDaemonError: if it does not start, or no initial peer answers
    """
    check_seconds("--refresh_period", options.refresh_period)
    return run_until_stopped(
        partial(
            serve,
            options.refresh_period,
            count,
            only_p2p=options.use_ipfs,
            use_ipfs=options.use_ipfs,
            use_relay=options.use_relay,
            use_auto_relay=options.use_auto_relay,
            **peer_options(options),
        )
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console command."""
    parser = argparse.ArgumentParser(
        prog="hivemind-dht", description="Run a DHT peer that other peers can join through, and log how it is doing."
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    raise SystemExit(guarded(parser.prog, partial(run, options)))
