"""``hivemind dht-view``: who is in a DHT, how fast they answer, what is stored under given keys; as a live table."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

from hivemind.cli.running import run_until_stopped
from hivemind.clock import get_dht_time, monotonic
from hivemind.config import check_count, check_seconds
from hivemind.dht import DHT, DHTID, DHTNode, ValueWithExpiration
from hivemind.errors import HivemindError
from hivemind.identity import PeerID

__all__ = ["Entry", "Member", "View", "add_options", "run"]

#: Places of the id space around which nodes are looked for, beside the own one.
_SPREAD: Final = 16
#: Pings under way at a time.
_PINGS: Final = 32
_CLEAR: Final = "\x1b[H\x1b[2J"


@dataclass(frozen=True)
class Member:
    """A node of the DHT."""

    node_id: str
    peer_id: str
    #: bits of its id that are those of this node's id: its place among the buckets
    shared_bits: int
    #: seconds from a ping to its answer; None if there was none
    round_trip: float | None


@dataclass(frozen=True)
class Entry:
    """A value, or one entry of a dictionary."""

    key: str
    subkey: str | None
    value: str
    #: seconds until it expires; None: never
    expires_in: float | None


@dataclass(frozen=True)
class View:
    """What one look has seen."""

    members: list[Member]
    entries: list[Entry]
    #: requests of the viewer, and how many of them failed
    requests: int
    failures: int
    #: keys that the viewer itself holds; 0 unless it joins
    held: list[Entry] = field(default_factory=list)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--initial_peers", nargs="+", required=True, metavar="MADDR", help="addresses of peers of the DHT to look at"
    )
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY", help="show what is stored under these keys")
    parser.add_argument(
        "--join",
        action="store_true",
        help="be a node of the DHT, and show the keys that it is given to hold; otherwise only ask",
    )
    parser.add_argument("--period", type=float, default=5.0, metavar="SECONDS", help="between two looks; default: 5")
    parser.add_argument("--once", action="store_true", help="look once")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each look")
    parser.add_argument("--most", type=int, default=30, metavar="N", help="rows of each table; default: 30")
    parser.add_argument("--swarm_key_path", metavar="FILE", help="file with the secret of a private swarm")


def run(options: argparse.Namespace) -> int:
    """Look until the process is told to stop.

    :raises ConfigError: if an option is wrong
    :raises P2PDaemonError: if no initial peer answers
    """
    check_seconds("--period", options.period)
    check_count("--most", options.most)
    return run_until_stopped(partial(_look, options))


async def _look(options: argparse.Namespace) -> int:
    dht = DHT(
        initial_peers=options.initial_peers,
        start=True,
        await_ready=False,
        client_mode=not options.join,
        swarm_key_path=options.swarm_key_path,
    )
    try:
        while True:
            view = await dht.run_coroutine(partial(_gather, options.keys), return_future=True)
            if options.json:
                text = json.dumps(asdict(view))
            else:
                live = sys.stdout.isatty() and not options.once
                text = (_CLEAR if live else "") + "\n".join(_table(view, options.most))
            print(text, flush=True)
            if options.once:
                return 0
            await asyncio.sleep(options.period)
    finally:
        dht.shutdown()


async def _gather(keys: Iterable[str], dht: DHT, node: DHTNode) -> View:
    """One look, on the network thread."""
    places = [node.node_id, *(DHTID(number * (DHTID.MAX // _SPREAD)) for number in range(_SPREAD))]
    near = await node.find_nearest_nodes(places, exclude_self=True)
    found = {node_id: peer for nodes in near.values() for node_id, peer in nodes.items()}
    slots = asyncio.Semaphore(_PINGS)

    async def member(node_id: DHTID, peer: PeerID) -> Member:
        async with slots:
            began = monotonic()
            answer = await _answers(node, peer)
            took = monotonic() - began
        shared = DHTID.HASH_NBYTES * 8 - (node_id ^ node.node_id).bit_length()
        return Member(node_id.to_bytes().hex(), str(peer), shared, round(took, 6) if answer else None)

    members = await asyncio.gather(*(member(node_id, peer) for node_id, peer in sorted(found.items())))
    values = await node.get_many(keys, float("inf"))
    now = get_dht_time()
    held = [
        Entry(key.to_bytes().hex(), None, f"{_size(value)} bytes", _left(expiration, now))
        for key, (value, expiration) in node.protocol.storage.items()
    ]
    stats = node.stats()
    entries = [entry for key, value in values.items() if value is not None for entry in _entries(key, value, now)]
    return View(list(members), entries, stats.requests, stats.failures, held)


async def _answers(node: DHTNode, peer: PeerID) -> bool:
    try:
        return await node.protocol.call_ping(peer) is not None
    except HivemindError:
        return False


def _size(value: Any) -> int:
    return value.nbytes if hasattr(value, "nbytes") else len(value)


def _entries(key: str, found: ValueWithExpiration[Any], now: float) -> Iterable[Entry]:
    value, expiration = found
    if isinstance(value, dict) and value and all(isinstance(each, ValueWithExpiration) for each in value.values()):
        for subkey, (entry, until) in value.items():
            yield Entry(key, _short(subkey), _short(entry), _left(until, now))
    else:
        yield Entry(key, None, _short(value), _left(expiration, now))


def _left(expiration: float, now: float) -> float | None:
    return round(expiration - now, 3) if math.isfinite(expiration) else None


def _short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _table(view: View, most: int) -> Iterable[str]:
    times = sorted(each.round_trip for each in view.members if each.round_trip is not None)
    median = f", median round trip {1000 * times[len(times) // 2]:.1f} ms" if times else ""
    yield (
        f"{len(view.members)} nodes, {len(times)} answer{median};"
        f" {view.requests} requests so far, {view.failures} failed"
    )
    yield f"{'node':<14}{'peer':<56}{'bits':>5}{'ms':>9}"
    for each in view.members[:most]:
        took = "-" if each.round_trip is None else f"{1000 * each.round_trip:.1f}"
        yield f"{each.node_id[:12]:<14}{each.peer_id:<56}{each.shared_bits:>5}{took:>9}"
    yield from _more(len(view.members), most)
    for title, entries in (("key", view.entries), ("held here", view.held)):
        if entries:
            yield ""
            yield f"{title:<24}{'subkey':<28}{'value':<64}{'expires in':>12}"
            for entry in entries[:most]:
                left = "never" if entry.expires_in is None else f"{entry.expires_in:.1f} s"
                key, subkey = _clipped(entry.key, 22), _clipped(entry.subkey or "", 26)
                yield f"{key:<24}{subkey:<28}{entry.value:<64}{left:>12}"
            yield from _more(len(entries), most)


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _more(count: int, most: int) -> Iterable[str]:
    if count > most:
        yield f"(and {count - most} more)"
