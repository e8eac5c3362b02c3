"""What the doctor concludes."""

from __future__ import annotations

import json

import pytest
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
from hivemind.dht import PeerReport
from hivemind.identity import PeerID
from hivemind.p2p import Reachability, RelayInUse

PEER = "12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"
DIRECT = Multiaddr("/ip4/10.0.0.5/tcp/4001")
RELAYED = Multiaddr(f"/ip4/10.0.0.9/tcp/4001/p2p/{PEER}/p2p-circuit")


def verdicts(findings: list[Finding]) -> list[Verdict]:
    return [finding.verdict for finding in findings]


@pytest.mark.parametrize(
    ("addresses", "verdict", "words"),
    [
        ([], Verdict.WARNING, "--host_maddrs"),
        (["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"], Verdict.WARNING, "only programs on this machine"),
        (["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/tcp/1"], Verdict.WARNING, "forward a port"),
        (["/ip4/192.168.1.2/tcp/1", "/ip4/93.184.216.34/tcp/1"], Verdict.OK, "of the internet"),
        (["/dns4/example.org/tcp/1"], Verdict.OK, "of the internet"),
        (["/ip4/192.168.1.2/tcp/1", str(RELAYED)], Verdict.OK, "relay"),
    ],
)
def test_addresses(addresses: list[str], verdict: Verdict, words: str) -> None:
    finding = judge_addresses([Multiaddr(each) for each in addresses])
    assert finding.verdict is verdict
    assert words in str(finding)
    assert ("what to do" in str(finding)) == (verdict is not Verdict.OK)


def seen(verdict: str = "unknown", *, relays: bool = False, tcp: str = "unknown", udp: str = "unknown") -> Reachability:
    taking = (RelayInUse(PeerID.from_base58(PEER), 1800, 1 << 34),) if relays else ()
    observed = {Multiaddr("/ip4/93.184.216.34/tcp/7"): 2}
    return Reachability(verdict, False, taking, {}, 1, 0, 0, tcp, udp, observed)


@pytest.mark.parametrize(
    ("verdict", "expected", "words"),
    [
        ("public", Verdict.OK, "directly"),
        ("private", Verdict.WARNING, "use_auto_relay"),
        ("unknown", Verdict.OK, "not found out"),
    ],
)
def test_reachability(verdict: str, expected: Verdict, words: str) -> None:
    found = judge_reachability(seen(verdict))
    assert found.verdict is expected
    assert words in str(found)


@pytest.mark.parametrize(
    ("tcp", "udp", "expected", "words"),
    [
        ("unknown", "unknown", Verdict.OK, "two peers of the internet"),
        ("none", "unknown", Verdict.OK, "has an address of the internet"),
        (
            "cone",
            "none",
            Verdict.OK,
            "TCP cone, UDP none; peers see this machine at /ip4/93.184.216.34/tcp/7: ",
        ),
        ("cone", "symmetric", Verdict.WARNING, "use_auto_relay"),
        ("symmetric", "unknown", Verdict.WARNING, "each peer sees another port"),
    ],
)
def test_nat_types(tcp: str, udp: str, expected: Verdict, words: str) -> None:
    found = judge_nat(seen(tcp=tcp, udp=udp))
    assert found.verdict is expected
    assert words in str(found)


@pytest.mark.parametrize(
    ("verdict", "relays", "expected", "words"),
    [
        ("unknown", True, Verdict.OK, f"through {PEER} (16 GiB, 30 min a connection)"),
        ("private", True, Verdict.OK, "use_auto_relay=True"),
        ("private", False, Verdict.PROBLEM, "hivemind-relay"),
    ],
)
def test_relays(verdict: str, relays: bool, expected: Verdict, words: str) -> None:
    found = judge_relays(seen(verdict, relays=relays), [PeerID.from_base58(PEER)])
    assert found is not None
    assert found.verdict is expected
    assert words in str(found)


def test_calls_through_a_relay() -> None:
    reached, failed = judge_call_through(PEER, 0.0123), judge_call_through(PEER, "refused")
    assert verdicts([reached, failed]) == [Verdict.OK, Verdict.PROBLEM]
    assert f"through {PEER} this machine was reached in 12 ms" in str(reached)
    assert "refused" in failed.text
    assert "allowlist" in failed.remedy


@pytest.mark.parametrize("verdict", ["public", "unknown"])
def test_no_relay_is_needed(verdict: str) -> None:
    assert judge_relays(seen(verdict), []) is None


def test_the_report_for_programs() -> None:
    findings = [judge_reachability(seen("private")), judge_nat(seen())]
    content = json.loads(as_json(findings))
    assert (content["problems"], content["warnings"]) == (0, 1)
    assert [each["verdict"] for each in content["findings"]] == ["warning", "ok"]
    assert content["findings"][0]["remedy"] == findings[0].remedy


def test_descriptors() -> None:
    assert judge_descriptors(1 << 20).verdict is Verdict.OK
    assert judge_descriptors(-1).verdict is Verdict.OK
    assert "ulimit -Hn" in judge_descriptors(256).remedy


def test_a_peer_that_is_well() -> None:
    report = PeerReport(in_client_mode=False, round_trip=0.02, clock_offset=0.5, calls_back=True)
    first, clock = judge_peer(PEER, report, [DIRECT], 0.1)
    assert verdicts([first, clock]) == [Verdict.OK, Verdict.OK]
    assert "connected directly in 100 ms, answers in 20.0 ms" in first.text
    assert "0.50 s ahead of this one, ± 0.01 s" in clock.text


@pytest.mark.parametrize(
    ("offset", "round_trip", "verdict"),
    [
        (-3.2, 0.1, Verdict.PROBLEM),
        (3.2, 0.1, Verdict.PROBLEM),
        (3.2, 1.0, Verdict.WARNING),
        (-2.0, 0.1, Verdict.WARNING),
        (-0.9, 0.0, Verdict.OK),
    ],
)
def test_clocks(offset: float, round_trip: float, verdict: Verdict) -> None:
    report = PeerReport(in_client_mode=False, round_trip=round_trip, clock_offset=offset, calls_back=True)
    clock = judge_peer(PEER, report, [], 0.1)[1]
    assert clock.verdict is verdict
    assert ("behind" in clock.text) == (offset < 0)
    assert ("NTP" in clock.remedy) == (verdict is not Verdict.OK)


def test_a_peer_with_every_fault() -> None:
    report = PeerReport(in_client_mode=True, round_trip=0.02, clock_offset=None, calls_back=False)
    findings = judge_peer(PEER, report, [DIRECT, RELAYED], 0.1)
    assert verdicts(findings) == [Verdict.OK, Verdict.WARNING, Verdict.PROBLEM]
    assert "directly and through a relay" in findings[0].text
    assert all(PEER in str(finding) for finding in findings)


def test_summary() -> None:
    ok, warning, problem = (Finding(verdict, "x", "y") for verdict in Verdict)
    assert summary([ok, ok]) == "All is well."
    assert summary([ok, warning]) == "0 problems, 1 warning."
    assert summary([problem, warning, warning]) == "1 problem, 2 warnings."
