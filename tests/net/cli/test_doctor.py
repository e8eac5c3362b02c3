"""``hivemind doctor`` with real daemons."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hivemind.dht import DHT
from hivemind.p2p import RelayLimits, SwarmKey
from tests.support.waiting import PATIENCE

LOCAL = {"auto_nat": False, "nat_port_map": False}
DOCTOR = [sys.executable, "-c", "from hivemind.cli.main import main; main()", "doctor"]
HOST = ["--host_maddrs", "/ip4/127.0.0.1/tcp/0"]
STRANGER = "12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"


def doctor(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and report."""
    done = subprocess.run(
        [*DOCTOR, *arguments],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        env=environment or None,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_machine_and_a_peer_that_are_well() -> None:
    with DHT(start=True, **LOCAL) as dht:
        code, report = doctor(*HOST, "--peer", *map(str, dht.get_visible_maddrs()))
    assert code == 0
    assert "ok       versions: hivemind 2." in report
    assert re.search(r"ok       daemon: .*\(p2pd/2\.0, go1\.\d+.*, libp2p v0\.\d+.*\) starts in", report)
    assert f"ok       peer {dht.peer_id}: connected directly" in report
    assert "ok       reachable: not found out" in report, "nobody dials back a private address"
    assert "s ahead of this one" in report or "s behind this one" in report
    assert "only programs on this machine can call this peer" in report, "it is told to listen on loopback"
    assert "ok       NAT: its type is not known" in report
    assert " relays: " not in report
    assert report.splitlines()[-1].startswith("0 problems, ")


def test_a_relay_and_the_report_for_programs() -> None:
    with DHT(start=True, relay_service=True, **LOCAL) as dht:
        code, report = doctor(*HOST, "--json", "--initial_peers", *map(str, dht.get_visible_maddrs()))
    assert code == 0
    content = json.loads(report)
    assert set(content) == {"problems", "warnings", "findings"}
    assert content["problems"] == 0
    relays, reached = [each for each in content["findings"] if each["subject"] == "relays"]
    assert relays["verdict"] == reached["verdict"] == "ok"
    assert re.fullmatch(rf"through {dht.peer_id} this machine was reached in \d+ ms", reached["text"])
    assert f"{dht.peer_id} (16 GiB, 30 min a connection): use_auto_relay=True" in relays["text"]
    counted = [each["verdict"] for each in content["findings"]].count("warning")
    assert content["warnings"] == counted > 0
    assert all(bool(each["remedy"]) == (each["verdict"] != "ok") for each in content["findings"])


def test_a_relay_that_does_not_let_others_call() -> None:
    """It takes this machine's peer, but its connections end at once."""
    with DHT(start=True, relay_service=True, relay_limits=RelayLimits(circuit_bytes=1), **LOCAL) as dht:
        code, report = doctor(*HOST, "--timeout", "3", "--peer", *map(str, dht.get_visible_maddrs()))
    assert code == 1
    assert f"PROBLEM  relays: through {dht.peer_id} this machine was not reached" in report


def test_a_private_swarm(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    SwarmKey.generate().write(path)
    with DHT(start=True, swarm_key_path=path, **LOCAL) as dht:
        peer = ["--peer", *map(str, dht.get_visible_maddrs())]
        code, report = doctor(*HOST, *peer, "--swarm_key_path", str(path))
        assert (code, f"ok       peer {dht.peer_id}: connected directly" in report) == (0, True)
        code, report = doctor(*HOST, *peer, "--timeout", "5")
        assert code == 1
        assert "may be in a private swarm" in report


def test_peers_with_faults() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        DHT(start=True, **LOCAL) as first,
        DHT(first.get_visible_maddrs(), start=True, client_mode=True, **LOCAL) as dht,
    ):
        client = [str(each) for each in dht.get_visible_maddrs()]
        code, report = doctor(*HOST, "--peer", f"/ip4/127.0.0.1/tcp/{port}/p2p/{STRANGER}", *client)
    assert code == 1
    assert f"PROBLEM  peer {STRANGER}: cannot be connected to" in report
    assert "refused" in report
    assert f"PROBLEM  peer {dht.peer_id}: can be connected to, but does not answer as a node of the DHT" in report
    assert report.count("what to do: ") >= 2


def test_no_peer_is_named() -> None:
    code, report = doctor(*HOST)
    assert code == 0
    assert "hivemind doctor --peer" in report


def test_no_daemon(tmp_path: Path) -> None:
    code, report = doctor(HIVEMIND_P2PD=str(tmp_path / "missing"))
    assert code == 1
    assert "PROBLEM  daemon: HIVEMIND_P2PD names no p2p daemon" in report
    assert "make buildgo" in report


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, report = doctor("--host_maddrs", f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")
    assert code == 1
    assert "PROBLEM  listening: " in report
    assert "address already in use" in report


@pytest.mark.parametrize("arguments", [["--peer", "nonsense"], ["--timeout", "-1"]])
def test_wrong_options(arguments: list[str]) -> None:
    done = subprocess.run([*DOCTOR, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.startswith("hivemind doctor: error: ")
