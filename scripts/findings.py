"""What ``hivemind doctor`` concludes from what it sees. Pure: no network, no clock."""

from __future__ import annotations

import enum
import ipaddress
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from hivemind.clock import MAX_DHT_TIME_DISCREPANCY_SECONDS
from hivemind.dht import PeerReport
from hivemind.networking import ip_of, is_relayed
from hivemind.p2p import PeerID, Reachability, RelayInUse

__all__ = [
    "Finding",
    "Verdict",
    "as_json",
    "judge_addresses",
    "judge_call_through",
    "judge_descriptors",
    "judge_nat",
    "judge_peer",
    "judge_reachability",
    "judge_relays",
    "summary",
]

#: Descriptors that a peer with some hundred connections needs, with room for the program's own files.
_ENOUGH_DESCRIPTORS: Final = 4096


class Verdict(enum.Enum):
    """How good a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    :param subject: what was looked at
    :param text: what was seen
    :param remedy: what to do; empty if nothing need be done
    """

    verdict: Verdict
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict.value:<9}{self.subject}: {self.text}"
        return f"{line}\n         what to do: {self.remedy}" if self.remedy else line


def judge_descriptors(hard_limit: int) -> Finding:
    """By how many files a process may have open.

    :param hard_limit: up to which the daemon raises its own limit by itself; negative = none
    """
    if not 0 <= hard_limit < _ENOUGH_DESCRIPTORS:
        return Finding(Verdict.OK, "open files", f"up to {hard_limit if hard_limit >= 0 else 'any number'} a process")
    return Finding(
        Verdict.WARNING,
        "open files",
        f"only up to {hard_limit} a process: each connection to a peer takes one",
        f"have the hard limit raised to {_ENOUGH_DESCRIPTORS} (ulimit -Hn; LimitNOFILE of systemd; --ulimit of Docker)",
    )


def judge_addresses(addresses: Sequence[Multiaddr]) -> Finding:
    """By the addresses that other peers are told."""
    shown = ", ".join(map(str, addresses))
    kinds = {_kind(each) for each in addresses}
    if not addresses:
        remedy = "let this peer listen: --host_maddrs /ip4/0.0.0.0/tcp/0"
        return Finding(Verdict.WARNING, "addresses", "none: nobody can call this peer", remedy)
    if "global" in kinds:
        return Finding(Verdict.OK, "addresses", f"{shown}: among them one of the internet")
    if "relayed" in kinds:
        return Finding(Verdict.OK, "addresses", f"{shown}: reached through a relay")
    if kinds == {"loopback"}:
        return Finding(
            Verdict.WARNING,
            "addresses",
            f"{shown}: only programs on this machine can call this peer",
            "listen on all interfaces: --host_maddrs /ip4/0.0.0.0/tcp/0",
        )
    return Finding(
        Verdict.WARNING,
        "addresses",
        f"{shown}: machines of the same network can call this peer; others only if the router lets them",
        "forward a port of the router to this machine and say so by --announce_maddrs, or be reached through a relay"
        " (--use_auto_relay), or only call others (client_mode=True)",
    )


def _kind(address: Multiaddr) -> str:
    ip = ip_of(address)
    if is_relayed(address):
        return "relayed"
    if ip is None:
        return "global"  # a name: whoever gave it had a reason
    parsed = ipaddress.ip_address(ip)
    return "loopback" if parsed.is_loopback else "global" if parsed.is_global else "private"


def judge_reachability(found: Reachability) -> Finding:
    """By what connected peers found when they dialled this one."""
    subject = "reachable"
    if found.verdict == "public":
        by = f", by ports that the router forwards ({found.port_mapping})" if found.port_mapping else ""
        return Finding(Verdict.OK, subject, f"others connect to this machine directly{by}")
    if found.verdict == "private":
        text = "others cannot connect to this machine directly"
        remedy = "be reached through a relay (use_auto_relay=True), or forward a port of the router"
        return Finding(Verdict.WARNING, subject, text, remedy)
    return Finding(
        Verdict.OK,
        subject,
        "not found out within the time: it takes peers that can try, and an address of the internet",
    )


def judge_nat(found: Reachability) -> Finding:
    """By what peers of the internet saw of connections made to them (RFC 4787)."""
    subject = "NAT"
    kinds = {"TCP": found.nat_of_tcp, "UDP": found.nat_of_udp}
    known = {name: kind for name, kind in kinds.items() if kind != "unknown"}
    if not known:
        text = "its type is not known: it takes two peers of the internet, at different addresses"
        return Finding(Verdict.OK, subject, text)
    text = ", ".join(f"{name} {kind}" for name, kind in known.items())
    if found.observed:
        text += f"; peers see this machine at {', '.join(map(str, list(found.observed)[:4]))}"
    if "symmetric" in known.values():
        return Finding(
            Verdict.WARNING,
            subject,
            f"{text}: each peer sees another port, so that a direct way to peers behind other routers is seldom found",
            "be reached through a relay (use_auto_relay=True), or forward a port of the router",
        )
    if "cone" in known.values():
        return Finding(Verdict.OK, subject, f"{text}: a direct way through the router can be made")
    return Finding(Verdict.OK, subject, f"{text}: this machine has an address of the internet")


def judge_relays(found: Reachability, given: Iterable[PeerID]) -> Finding | None:
    """By whether the given peers relay for this machine; None where that does not matter.

    :param given: the peers to join through
    """
    subject = "relays"
    taking = [each for each in found.relays if each.peer_id in set(given)] or list(found.relays)
    if taking:
        shown = ", ".join(f"{each.peer_id} ({_limits(each)})" for each in taking)
        return Finding(Verdict.OK, subject, f"this machine can be reached through {shown}: use_auto_relay=True")
    if found.verdict == "private":
        text = "none of the peers relays for this machine, which nobody can connect to"
        remedy = (
            "join through a relay (hivemind-relay on a machine that others can reach), or forward a port of the router"
        )
        return Finding(Verdict.PROBLEM, subject, text, remedy)
    return None


def judge_call_through(relay: str, outcome: float | str) -> Finding:
    """By whether somebody who knows only the way through a relay has reached this machine.

    :param outcome: the seconds that it took, or why it failed
    """
    if isinstance(outcome, float):
        return Finding(Verdict.OK, "relays", f"through {relay} this machine was reached in {1000 * outcome:.0f} ms")
    remedy = "join through another relay, or ask whoever runs this one: its limits or its allowlist may be in the way"
    return Finding(Verdict.PROBLEM, "relays", f"through {relay} this machine was not reached: {outcome}", remedy)


def _limits(relay: RelayInUse) -> str:
    size = f"{relay.bytes / 2**30:.3g} GiB" if relay.bytes else "no limit of bytes"
    time = f"{relay.seconds / 60:.3g} min" if relay.seconds else "no limit of time"
    return f"{size}, {time} a connection"


def judge_peer(peer: str, report: PeerReport, connections: Iterable[Multiaddr], seconds: float) -> list[Finding]:
    """By what was seen of a peer.

    :param connections: addresses of the connections to it
    :param seconds: that the first connection took
    """
    subject = f"peer {peer}"
    ways = {"through a relay" if is_relayed(each) else "directly" for each in connections}
    way = " and ".join(sorted(ways)) or "directly"
    findings = [
        Finding(
            Verdict.OK,
            subject,
            f"connected {way} in {1000 * seconds:.0f} ms, answers in {1000 * report.round_trip:.1f} ms",
        )
    ]
    if report.in_client_mode:
        text = "is in client mode: it keeps no records, and nobody can join through it"
        findings.append(Finding(Verdict.WARNING, subject, text, "name another initial peer"))
    if report.clock_offset is not None:
        findings.append(_judge_clock(subject, report.clock_offset, report.round_trip))
    if not report.calls_back:
        findings.append(
            Finding(
                Verdict.PROBLEM,
                subject,
                "cannot call this machine back",
                "open the port that this peer listens on, or only call others (client_mode=True)",
            )
        )
    return findings


def _judge_clock(subject: str, offset: float, round_trip: float) -> Finding:
    doubt = round_trip / 2
    text = f"its clock is {abs(offset):.2f} s {'ahead of' if offset >= 0 else 'behind'} this one, ± {doubt:.2f} s"
    allowed = MAX_DHT_TIME_DISCREPANCY_SECONDS
    if abs(offset) - doubt > allowed:
        remedy = f"set both clocks by NTP (timedatectl set-ntp true): peers over {allowed:g} s apart do not meet"
        return Finding(Verdict.PROBLEM, subject, text, remedy)
    if abs(offset) - doubt > allowed / 3:
        return Finding(Verdict.WARNING, subject, text, f"set both clocks by NTP; at most {allowed:g} s are allowed")
    return Finding(Verdict.OK, subject, text)


def summary(findings: Iterable[Finding]) -> str:
    """The last line of the report."""
    verdicts = [finding.verdict for finding in findings]
    problems, warnings = verdicts.count(Verdict.PROBLEM), verdicts.count(Verdict.WARNING)
    if not problems and not warnings:
        return "All is well."
    return f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}."


def as_json(findings: Iterable[Finding]) -> str:
    """The report for programs: one object with the counts and each finding."""
    every = list(findings)
    verdicts = [finding.verdict for finding in every]
    content = {
        "problems": verdicts.count(Verdict.PROBLEM),
        "warnings": verdicts.count(Verdict.WARNING),
        "findings": [
            {
                "verdict": finding.verdict.name.lower(),
                "subject": finding.subject,
                "text": finding.text,
                "remedy": finding.remedy,
            }
            for finding in every
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)
