"""``hivemind-relay``: a public peer through which peers behind NATs and firewalls are reached, and join."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Final, NoReturn

from hivemind.cli.allowlist import AllowlistFile
from hivemind.cli.running import guarded, run_until_stopped
from hivemind.cli.serving import add_peer_options, count, peer_options, serve
from hivemind.cli.sizes import parse_bytes
from hivemind.config import check_seconds
from hivemind.dht import DHT, DHTNode
from hivemind.p2p import RelayLimits

__all__ = ["add_options", "main", "run"]

#: What each field of `RelayLimits` says in the help.
_LIMITS: Final[dict[str, tuple[Callable[[str], Any], str, str]]] = {
    "max_reservations": (int, "N", "peers that may be reached through this relay at a time"),
    "max_circuits": (int, "N", "connections to and from one such peer at a time"),
    "circuit_bytes": (parse_bytes, "BYTES", "after which a connection ends, each way; also as 500MB or 16GiB"),
    "circuit_seconds": (float, "SECONDS", "after which a connection ends; its peers make another with the next call"),
    "buffer_bytes": (parse_bytes, "BYTES", "of each of the two buffers of a connection"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_peer_options(parser, ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"])
    for field in fields(RelayLimits):
        kind, metavar, text = _LIMITS[field.name]
        parser.add_argument(
            f"--{field.name}",
            type=kind,
            default=field.default,
            metavar=metavar,
            help=f"{text}; default: {field.default}",
        )
    parser.add_argument(
        "--allowlist",
        metavar="FILE",
        help="file with the ids of the only peers that may use this relay, one a line; read again when it changes",
    )


def run(options: argparse.Namespace) -> int:
    """Run the relay until the process is told to stop.

    :raises ConfigError: if an option is wrong
    :raises OSError: if a file cannot be read
    :raises P2PDaemonError: if it does not start, or no initial peer answers
    """
    check_seconds("--refresh_period", options.refresh_period)
    allowlist = AllowlistFile(options.allowlist) if options.allowlist else None
    # others must be able to reach it, so it does not ask them whether they do
    relay: dict[str, Any] = {
        "relay_service": True,
        "force_reachability": "public",
        "relay_limits": RelayLimits(**{field.name: getattr(options, field.name) for field in fields(RelayLimits)}),
        "relay_allowlist": None if allowlist is None else allowlist.read(),
    }
    report = partial(_report, allowlist)
    return run_until_stopped(partial(serve, options.refresh_period, report, **relay, **peer_options(options)))


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


async def _report(allowlist: AllowlistFile | None, dht: DHT, node: DHTNode) -> list[str]:
    lines = await count(dht, node)
    if allowlist is not None and (allowed := allowlist.read_if_changed()) is not None:
        await node.p2p.set_relay_allowlist(allowed)
        lines.append(f"{len(allowed)} peers may use this relay from now on")
    stats, peers = await node.p2p.stats(), await node.p2p.list_peers()
    traffic = f"{stats['bytes_in'] / 1e6:.1f} MB received and {stats['bytes_out'] / 1e6:.1f} MB sent since the start"
    lines.append(f"{len(peers)} peers are connected; {traffic}")
    refused = f", {stats['relay_refused']} requests refused" if stats["relay_refused"] else ""
    lines.append(
        f"{stats['relay_reservations']} peers are reached through this relay, {stats['relay_circuits']} connections go"
        f" through it; {stats['relay_bytes'] / 1e6:.1f} MB relayed since the start{refused}"
    )
    return lines
