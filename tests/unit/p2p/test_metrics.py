"""What is made of the daemon's counters, and the text of this process's."""

from __future__ import annotations

import asyncio
import math
import re

import pytest

from hivemind.errors import ConfigError, HandlerBusy
from hivemind.p2p import CallStats, metrics_text
from hivemind.p2p.control import ControlClient
from hivemind.p2p.metrics import LATENCY_BOUNDS, parse_peer, parse_protocol
from hivemind.p2p.transport import Mode
from tests.support.conformance import STRANGER, echo


def flow(**changed: object) -> dict[str, object]:
    usual: dict[str, object] = {
        "calls": 5,
        "in_flight": 1,
        "received": 10,
        "sent": 20,
        "seconds": 6.0,
        "longest": 4.0,
        "buckets": [0] * (len(LATENCY_BOUNDS) + 1),
    }
    return usual | changed


def stats(counts: dict[float, int], longest: float) -> CallStats:
    """With so many calls in the buckets of these upper bounds."""
    buckets = [counts.get(bound, 0) for bound in (*LATENCY_BOUNDS, math.inf)]
    return parse_protocol({"name": "x", "in": flow(buckets=buckets, longest=longest), "out": flow()}).incoming


def test_entries_of_the_daemon() -> None:
    entry = {
        "in": flow(errors={"busy": 2, "handler": 1}),
        "out": flow(),
        "connects": 3,
        "connection": "",
        "slowed": True,
    }
    peer = parse_peer({"id": str(STRANGER), **entry})
    assert (peer.peer_id, peer.connects, peer.connection, peer.slowed) == (STRANGER, 3, None, True)
    assert (peer.incoming.failed, peer.incoming.errors["busy"], peer.outgoing.errors) == (3, 2, {})
    assert (peer.incoming.bytes_received, peer.incoming.bytes_sent) == (10, 20)
    assert parse_peer({"id": "(other)", **entry}).peer_id is None


def test_quantiles() -> None:
    calls = stats({0.001: 90, 0.1: 9, math.inf: 1}, longest=70.0)
    assert calls.finished == 100
    assert 0.0005 <= calls.quantile(0.5) <= 0.001
    assert 0.05 <= calls.quantile(0.99) <= 0.1
    assert calls.quantile(1) == 70.0
    # never above the longest that was seen
    assert stats({0.1: 10}, longest=0.06).quantile(1) == 0.06
    assert math.isnan(stats({}, 0.0).quantile(0.5))
    assert math.isnan(stats({}, 0.0).mean_seconds)
    with pytest.raises(ConfigError, match="share"):
        calls.quantile(1.5)


@pytest.mark.asyncio
async def test_text_of_this_process() -> None:
    client = ControlClient(lambda: None)
    name = 'Odd."name"\n\\'

    async def fail(request: object, remote: object) -> bytes:
        raise ValueError

    async def refuse(request: object, remote: object) -> bytes:
        raise HandlerBusy("full", 1)

    good = client.watch.watch(name, Mode.UNARY, echo)
    busy = client.watch.watch("Busy.rpc", Mode.UNARY, refuse)
    bad = client.watch.watch("Bad.rpc", Mode.UNARY, fail)
    await good(b"", STRANGER)  # type: ignore[arg-type, call-arg]
    with pytest.raises(ValueError):
        await bad(b"", STRANGER)  # type: ignore[arg-type, call-arg]
    with pytest.raises(HandlerBusy):
        await busy(b"", STRANGER)  # type: ignore[arg-type, call-arg]
    text = metrics_text()
    client.watch.close()
    assert r'hivemind_handler_calls_total{handler="Odd.\"name\"\n\\"} 1' in text
    assert 'hivemind_handler_errors_total{handler="Bad.rpc"} 1' in text
    assert 'hivemind_handler_busy_total{handler="Bad.rpc"} 0' in text
    assert 'hivemind_handler_errors_total{handler="Busy.rpc"} 0' in text
    assert 'hivemind_handler_busy_total{handler="Busy.rpc"} 1' in text
    assert 'hivemind_handler_seconds_bucket{handler="Bad.rpc",le="+Inf"} 1' in text
    assert 'hivemind_handler_running{handler="Bad.rpc"} 0' in text
    assert "\nhivemind_pool_waiting " in text
    for line in text.splitlines():
        assert re.fullmatch(r'(# (HELP|TYPE) \w+ .+)|(\w+(\{(\w+="([^"\\]|\\.)*",?)+\})? -?[0-9.e+-]+)', line), line
    # each family is named once, before its lines
    families = re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
    assert len(families) == len(set(families))
    await asyncio.sleep(0)
