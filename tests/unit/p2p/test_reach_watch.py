"""What users are told of the ways to their peer: when, how often, and what to do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hivemind.p2p import P2PConfig
from hivemind.p2p.reach_watch import Advice, ReachabilityWatch, advise, describe
from hivemind.p2p.reachability import parse_reachability
from hivemind.virtual_clock import run_virtual

RELAY = "12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"
OTHER = "12D3KooWPci6KpjAHoo6UrZgu2mxg5JudqfLwifUXsnC2D8isJL6"
LOOPBACK = {"/ip4/127.0.0.1/tcp/1": "local", "/ip6/::1/tcp/1": "local"}
NETWORK = {"/ip4/127.0.0.1/tcp/1": "local", "/ip4/192.168.0.7/tcp/1": "local"}


def told(
    verdict: str = "unknown",
    addresses: dict[str, str] | None = None,
    *,
    farthest: str = "internet",
    relays: tuple[str, ...] = (),
    tcp: str = "unknown",
    udp: str = "unknown",
) -> dict[str, Any]:
    """What the daemon sends."""
    return {
        "verdict": verdict,
        "forced": False,
        "relays": [{"id": each, "seconds": 1800.0, "bytes": 1 << 34} for each in relays],
        "addrs": [{"addr": each, "state": state} for each, state in (addresses or NETWORK).items()],
        "peers": {"direct": 1, "punched": 0, "relayed": 0},
        "nat": {"tcp": tcp, "udp": udp},
        "observed": [{"addr": "/ip4/8.8.8.8/tcp/5", "peers": 2}],
        "widest": farthest,
        "mapped_by": "",
    }


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        # alone, or among programs of this machine: nothing is missing
        (told(addresses=LOOPBACK, farthest=""), {}, None),
        (told(addresses=LOOPBACK, farthest="machine"), {}, None),
        (told(addresses=LOOPBACK, farthest="network"), {}, Advice.ONLY_THIS_MACHINE),
        (told(addresses=LOOPBACK), {}, Advice.ONLY_THIS_MACHINE),
        (told("public", LOOPBACK), {"force_reachability": "public"}, Advice.ONLY_THIS_MACHINE),
        (told(addresses=LOOPBACK), {"use_auto_relay": True}, Advice.ONLY_THIS_MACHINE),
        (told(farthest="network"), {}, None),
        (told(), {}, Advice.ONLY_THIS_NETWORK),
        (told(), {"use_auto_relay": True}, Advice.NO_RELAY),
        (told("private", {"/ip4/8.8.8.8/tcp/1": "private"}), {}, Advice.NOBODY),
        (told("private", {"/ip4/8.8.8.8/tcp/1": "private"}), {"use_auto_relay": True}, Advice.NO_RELAY),
        (told("unknown", {"/ip4/8.8.8.8/tcp/1": "unknown"}), {}, None),
        (told("public", {"/ip4/8.8.8.8/tcp/1": "public"}), {}, None),
        (told("private", {**LOOPBACK, f"/ip4/8.8.8.8/tcp/1/p2p/{RELAY}/p2p-circuit": "relayed"}), {}, None),
        # peers that only call
        (told(addresses=LOOPBACK), {"no_listen": True}, None),
        (told(addresses=LOOPBACK), {"dht_mode": "client"}, None),
    ],
)
def test_advice(content: dict[str, Any], options: dict[str, Any], expected: Advice | None) -> None:
    assert advise(parse_reachability(content), P2PConfig(**options)) is expected


def test_advice_names_addresses_and_options() -> None:
    known = parse_reachability(told(addresses=LOOPBACK))
    options = {
        Advice.ONLY_THIS_MACHINE: "host_maddrs",
        Advice.ONLY_THIS_NETWORK: "announce_maddrs",
        Advice.NOBODY: "use_auto_relay",
        Advice.NO_RELAY: "trusted_relays",
    }
    assert set(options) == set(Advice)
    for advice, option in options.items():
        assert option in advice.text(known)
        assert "/ip4/127.0.0.1/tcp/1, /ip6/::1/tcp/1" in advice.text(known)


def test_what_was_observed() -> None:
    known = parse_reachability(told(tcp="cone"))
    assert (known.nat_of_tcp, known.nat_of_udp, known.farthest_peer) == ("cone", "unknown", "internet")
    assert {str(address): count for address, count in known.observed.items()} == {"/ip4/8.8.8.8/tcp/5": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (told("public", tcp="none"), "other peers connect to this one directly"),
        (
            told("private", relays=(RELAY,), tcp="cone", udp="symmetric"),
            f"not connect to this one directly; it is reached through 1 relay ({RELAY}); NAT: TCP cone, UDP symmetric",
        ),
        (told("private"), "no relay takes their calls"),
        (told(relays=(RELAY, OTHER)), "reached through 2 relays"),
        (told(), "not found out yet"),
    ],
)
def test_the_line(content: dict[str, Any], words: str) -> None:
    assert words.removeprefix("not ") in describe(parse_reachability(content))


def test_a_line_when_it_changes_and_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        watch = ReachabilityWatch(P2PConfig(use_auto_relay=True))
        fine = {"/ip4/8.8.8.8/tcp/1": "unknown"}
        watch.take(told(addresses=fine))
        await asyncio.sleep(5)
        assert lines() == []
        watch.take(told("public", fine))
        await asyncio.sleep(1)
        assert [line.split(";")[0] for line in lines()] == ["other peers connect to this one directly"]
        for _ in range(1000):
            watch.take(told("private", fine))
            watch.take(told("public", fine))
        watch.take(told("private", fine, relays=(RELAY,)))
        await asyncio.sleep(60)
        # one for all of that, and it tells the last state
        assert len(lines()) == 2
        assert RELAY in lines()[1]
        watch.take(told("public", fine))
        watch.close()
        await asyncio.sleep(60)
        assert len(lines()) == 2

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "INFO"]

    with caplog.at_level("INFO"):
        run_virtual(scenario)


def test_a_warning_once_and_only_if_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        watch = ReachabilityWatch(P2PConfig())
        seen = {**NETWORK, "/ip4/8.8.8.8/tcp/1": "unknown"}
        watch.take(told())
        await asyncio.sleep(5)
        # its public address was observed meanwhile
        watch.take(told(addresses=seen))
        await asyncio.sleep(60)
        assert warnings() == []
        watch.take(told())
        await asyncio.sleep(60)
        assert len(warnings()) == 1
        assert "only machines of the same network" in warnings()[0]
        watch.take(told(addresses=seen))
        watch.take(told())
        await asyncio.sleep(60)
        assert len(warnings()) == 1
        watch.take(told(addresses=LOOPBACK))
        await asyncio.sleep(0.001)
        assert "only programs on this machine" in warnings()[1]

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    with caplog.at_level("INFO"):
        run_virtual(scenario)
