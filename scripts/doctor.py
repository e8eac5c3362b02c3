"""``hivemind doctor``: looks at this machine and at its way to given peers, and says in plain words what to do."""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from multiaddr import Multiaddr

from hivemind.cli.findings import (
    Finding,
    Verdict,
    as_json,
    judge_addresses,
    judge_call_through,
    judge_descriptors,
    judge_nat,
    judge_peer,
    judge_reachability,
    judge_relays,
    summary,
)
from hivemind.cli.running import EXIT_FAILED, EXIT_OK, run_until_stopped
from hivemind.cli.versions import describe_versions, version_of
from hivemind.clock import Deadline, monotonic
from hivemind.config import check_seconds
from hivemind.dht import DHTNode, examine_peer, parse_initial_peers
from hivemind.errors import DaemonStartError, HivemindError, P2PDaemonError
from hivemind.networking import is_relayed, peer_of
from hivemind.p2p import P2P, PeerID, Reachability, daemon_versions, find_binary
from hivemind.runtime import in_pool

__all__ = ["add_options", "run"]

Say = Callable[[Finding], None]

#: Seconds in which other peers have tried to connect to this machine, if they can.
_VERDICT_SECONDS: Final = 10.0
#: Seconds in which one of the peers has taken calls for this machine, if it relays.
_RELAY_SECONDS: Final = 2.0
#: Nothing beyond this machine is asked, and no router.
_QUIET: dict[str, Any] = {"auto_nat": False, "nat_port_map": False}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--peer",
        "--initial_peers",
        nargs="+",
        default=[],
        dest="peers",
        metavar="MADDR",
        help="addresses of peers to look at, each /…/p2p/<peer id>: what you would give as initial_peers",
    )
    parser.add_argument(
        "--host_maddrs",
        nargs="+",
        default=["/ip4/0.0.0.0/tcp/0"],
        metavar="MADDR",
        help="addresses that a peer on this machine will listen on; default: /ip4/0.0.0.0/tcp/0",
    )
    parser.add_argument(
        "--announce_maddrs", nargs="+", default=None, metavar="MADDR", help="addresses that other peers will be told"
    )
    parser.add_argument(
        "--swarm_key_path", metavar="FILE", help="file with the secret of a private swarm, if those peers are in one"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object, at the end")
    parser.add_argument(
        "--timeout", type=float, default=15, metavar="SECONDS", help="how long a peer may take; default: 15"
    )


def run(options: argparse.Namespace) -> int:
    """Print the report.

    :returns: `EXIT_FAILED` if there is a problem
    """
    check_seconds("--timeout", options.timeout)
    options.peers = parse_initial_peers(options.peers)
    return run_until_stopped(partial(_report, options))


async def _report(options: argparse.Namespace) -> int:
    findings: list[Finding] = []

    def say(finding: Finding) -> None:
        if not options.json:
            print(finding, flush=True)
        findings.append(finding)

    # what is seen is in the report
    library = logging.getLogger("hivemind")
    level = library.level
    library.setLevel(logging.CRITICAL)
    try:
        await _examine(options, say)
    finally:
        library.setLevel(level)
    print(as_json(findings) if options.json else summary(findings))
    return EXIT_FAILED if any(each.verdict is Verdict.PROBLEM for each in findings) else EXIT_OK


async def _examine(options: argparse.Namespace, say: Say) -> None:
    say(_versions())
    say(judge_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    daemon = await _daemon()
    say(daemon)
    if daemon.verdict is Verdict.PROBLEM:
        return
    try:
        p2p = await P2P.create(
            host_maddrs=options.host_maddrs,
            announce_maddrs=options.announce_maddrs,
            swarm_key_path=options.swarm_key_path,
            use_auto_relay=True,
            # The daemon gives a dial a part of that. One that hangs then ends before the peer's time is over, with its
            # reason: a handshake with a peer of another private swarm waits for what never comes.
            startup_timeout=options.timeout,
        )
    except P2PDaemonError as error:
        say(Finding(Verdict.PROBLEM, "listening", str(error), _remedy(error, "choose other --host_maddrs")))
        return
    async with p2p:
        say(Finding(Verdict.OK, "listening", "on " + ", ".join(map(str, options.host_maddrs))))
        say(judge_addresses(await p2p.get_visible_maddrs()))
        if options.peers:
            await _peers(p2p, options, say)
            return
        text = "none was named, so clock and way to the swarm were not looked at"
        say(Finding(Verdict.WARNING, "peers", text, "hivemind doctor --peer /ip4/…/tcp/…/p2p/…"))


async def _peers(p2p: P2P, options: argparse.Namespace, say: Say) -> None:
    node = await DHTNode.create(p2p)
    try:
        for address in options.peers:
            for finding in await _peer(node, address, options.timeout):
                say(finding)
        found = await _reachability(p2p, min(options.timeout, _VERDICT_SECONDS))
        say(judge_reachability(found))
        say(judge_nat(found))
        if (relays := judge_relays(found, map(peer_of, options.peers))) is not None:
            say(relays)
        for relay in found.relays:
            say(await _through(relay.peer_id, p2p, options))
    finally:
        await node.shutdown()


async def _reachability(p2p: P2P, seconds: float) -> Reachability:
    """What peers have found out about the ways to this machine; waits for a verdict where one can come, and a moment
    for a relay."""
    deadline, relays = Deadline.after(seconds), Deadline.after(min(seconds, _RELAY_SECONDS))
    while True:
        found = await p2p.reachability()
        local = all(state in ("local", "relayed") for state in found.addresses.values())
        decided = local or found.verdict != "unknown" or deadline.expired
        reached = found.relays or found.verdict == "public" or relays.expired
        if decided and reached:
            return found
        await asyncio.sleep(0.05)


async def _through(relay: PeerID, p2p: P2P, options: argparse.Namespace) -> Finding:
    """Connect to this peer as a stranger does who knows only the way through that relay."""
    ways = [
        each for each in await p2p.get_visible_maddrs(latest=True) if is_relayed(each) and f"/{relay}/" in str(each)
    ]
    stranger: dict[str, Any] = {"no_listen": True, "dht_mode": "client", "swarm_key_path": options.swarm_key_path}
    try:
        async with await P2P.create(**stranger, **_QUIET) as caller:
            began = monotonic()
            await caller.connect(p2p.peer_id, ways, timeout=options.timeout)
            return judge_call_through(str(relay), monotonic() - began)
    except HivemindError as error:
        return judge_call_through(str(relay), str(error))


def _versions() -> Finding:
    if version_of("torch") is None:
        return Finding(
            Verdict.PROBLEM, "versions", describe_versions(), "pip install torch: nothing is trained without"
        )
    return Finding(Verdict.OK, "versions", describe_versions())


async def _daemon() -> Finding:
    """Whether the daemon is there and starts."""
    try:
        path = find_binary()
        versions = await in_pool(daemon_versions, path)
        began = monotonic()
        async with await P2P.create(dht_mode="client", **_QUIET):
            seconds = monotonic() - began
    except P2PDaemonError as error:
        return Finding(Verdict.PROBLEM, "daemon", str(error), _remedy(error, "see the lines above"))
    made_of = f"{versions['agent']}, {versions['go']}, libp2p {versions['libp2p']}"
    return Finding(Verdict.OK, "daemon", f"{path} ({made_of}) starts in {seconds:.2f} s")


def _remedy(error: HivemindError, otherwise: str) -> str:
    return error.hint if isinstance(error, DaemonStartError) and error.hint else otherwise


async def _peer(node: DHTNode, address: Multiaddr, timeout: float) -> list[Finding]:
    """Connect to a peer and look at it."""
    peer = peer_of(address)
    subject = f"peer {peer}"
    began = monotonic()
    try:
        await node.p2p.connect(peer, [address], timeout=timeout)
    except HivemindError as error:
        text = f"cannot be connected to: {error}"
        remedy = "check that it runs, that it has this address and id now, and that no firewall is in the way"
        return [Finding(Verdict.PROBLEM, subject, text, remedy)]
    seconds = monotonic() - began
    try:
        report = await examine_peer(node, peer)
    except HivemindError as error:
        text = f"can be connected to, but does not answer as a node of the DHT: {error}"
        return [Finding(Verdict.PROBLEM, subject, text, "start a DHT there (hivemind-dht), or name another peer")]
    connections = [each for info in await node.p2p.list_peers() if info.peer_id == peer for each in info.addrs]
    return judge_peer(str(peer), report, connections, seconds)
