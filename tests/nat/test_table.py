"""Peers behind two routers reach each other: through a relay, or directly where a hole was punched."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.nat_lab import PUBLIC_IP, NatLab, why_not
from tests.support.waiting import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 90.0
PAIRS = [("cone", "cone"), ("cone", "symmetric"), ("symmetric", "cone"), ("symmetric", "symmetric")]

_reason = why_not()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(_reason is not None, reason=_reason or "")]


class Peer:
    """A process with a peer inside a namespace; a context manager that ends it."""

    def __init__(self, lab: NatLab, place: str, **options: Any) -> None:
        self._process = subprocess.Popen(
            [*lab.inside(place), sys.executable, "-m", "tests.support.nat_peer", json.dumps(options)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> Peer:
        """Wait until it is; it then has an id and addresses."""
        line = self._read()
        self.id: str = line["id"]
        self.addresses: list[str] = line["addresses"]
        return self

    def ask(self, **request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the peer has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[NatLab]:
    with NatLab() as lab:
        yield lab


@pytest.fixture(scope="module")
def relay(lab: NatLab) -> Iterator[Peer]:
    hosts = [f"/ip4/{PUBLIC_IP}/tcp/4001", f"/ip4/{PUBLIC_IP}/udp/4001/quic-v1"]
    options: dict[str, Any] = {"host_maddrs": hosts, "relay_service": True, "force_reachability": "public"}
    with Peer(lab, "pub", **options, nat_port_map=False, startup_timeout=PATIENCE) as peer:
        yield peer.ready()


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines that are printed when all pairs are done."""
    lines = [f"{'A':<10} {'B':<10} {'first A->B':>10} {'first B->A':>10}  then"]
    yield lines
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + "\n".join(lines))


def has_relay(peer: Peer, relay: Peer) -> bool:
    state = peer.ask(state=relay.id)
    return relay.id in state["relays"] and "relayed" in state["addresses"].values()


def first_call(caller: Peer, callee: Peer) -> float:
    """Seconds until a call has been answered. The relay has to hear of a fresh peer's addresses first."""
    begun = time.monotonic()
    eventually_sync(lambda: "seconds" in caller.ask(call=callee.id), "an answer", seconds=PATIENCE)
    return time.monotonic() - begun


@pytest.mark.parametrize("nats", PAIRS, ids="-".join)
def test_peers_behind_two_routers_reach_each_other(
    lab: NatLab, relay: Peer, table: list[str], nats: tuple[str, str]
) -> None:
    lab.set_nats(*nats)
    options: dict[str, Any] = {
        "initial_peers": relay.addresses,
        "host_maddrs": ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"],
        "use_auto_relay": True,
        "nat_port_map": False,
        "startup_timeout": PATIENCE,
    }
    with ExitStack() as stack:
        a, b = (stack.enter_context(Peer(lab, place, **options)) for place in ("peerA", "peerB"))
        for peer in (a.ready(), b.ready()):
            eventually_sync(partial(has_relay, peer, relay), "a relay", seconds=PATIENCE)
        there, back = first_call(a, b), first_call(b, a)
        state = a.ask(state=b.id)
        assert state["connections"], "the connection did not last"
        again = a.ask(call=b.id)
        assert "error" not in again, again
        way = f"direct {state['direct'][0]}" if state["direct"] else "relayed"
        table.append(f"{nats[0]:<10} {nats[1]:<10} {there:9.2f}s {back:9.2f}s  {way}")
