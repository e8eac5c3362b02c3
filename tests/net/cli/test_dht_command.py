"""``hivemind-dht`` as a process: what it prints, who can join, how it ends."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from hivemind.clock import get_dht_time
from hivemind.dht import DHT
from tests.support.commands import STARTED, command
from tests.support.processes import is_alive
from tests.support.waiting import PATIENCE, eventually_sync

HOST = ["--host_maddrs", "/ip4/127.0.0.1/tcp/0"]
LOCAL = {"auto_nat": False, "nat_port_map": False}


def test_two_commands_meet_and_their_output_is_that_of_hivemind_1() -> None:
    with command("dht", *HOST, "--refresh_period", "0.5") as first:
        started = STARTED.search(first.line())
        assert started
        option, *addresses = started.group(1).split(" ")
        assert option == "--initial_peers"
        assert len(addresses) == 1
        assert f"Full list of visible multiaddresses: {addresses[0]}" in first.line()
        assert "1 DHT nodes (including this one) are in the local routing table" in first.line()
        assert "Local storage contains 0 keys" in first.line()
        with command("main", "dht", *HOST, option, *addresses) as second:
            assert STARTED.search(second.line())
            second.line()
            assert "2 DHT nodes (including this one) are in the local routing table" in second.line()
            first.until("2 DHT nodes (including this one) are in the local routing table")
            with DHT(addresses, start=True, **LOCAL) as dht:
                assert dht.store("key", 1, get_dht_time() + 600)
                first.until("3 DHT nodes (including this one)")
                first.until("Local storage contains 1 keys")
                second.until("Local storage contains 1 keys")
            assert second.end(signal.SIGINT) == 0
        assert first.end(signal.SIGTERM) == 0


def test_an_identity_stays(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with command("dht", *HOST, "--identity_path", str(tmp_path / "peer.key")) as running:
            started = STARTED.search(running.line())
            assert started
            seen.append(started.group(1).rpartition("/p2p/")[2])
            assert running.end(signal.SIGTERM) == 0
    assert seen[0] == seen[1]


def test_nobody_to_join() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"
    with command("dht", *HOST, "--initial_peers", address) as running:
        told = running.until("hivemind-dht: error:")
        assert "failed to connect to bootstrap peers" in told
        assert address.split("/")[4] in told
        assert running.process.wait(PATIENCE) == 1


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        host = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        with command("dht", "--host_maddrs", host) as running:
            assert "address already in use" in running.until("hivemind-dht: error:")
            assert running.process.wait(PATIENCE) == 1


def test_stopped_while_it_starts() -> None:
    """An initial peer that accepts and says nothing: the start takes its whole time, and a signal ends it at once."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        peer = "12D3KooWDLXAnf92spivnVheW2jr1DtRKfd5AGGgDT3XTG3BRnqi"
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{peer}"
        with command("dht", *HOST, "--initial_peers", address) as running:
            connection, _ = silent.accept()
            with connection:
                assert running.end(signal.SIGTERM) == 0


def test_killed() -> None:
    with command("dht", *HOST) as running:
        running.until("Full list")
        children = running.children()
        assert len(children) == 1
        os.kill(running.process.pid, signal.SIGKILL)
        eventually_sync(lambda: not any(map(is_alive, children)), "the daemon ends with its parent")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    """The daemon is stopped (SIGSTOP), so that the end in order takes a while."""
    with command("dht", *HOST) as running:
        running.until("Full list")
        (daemon,) = running.children()
        os.kill(daemon, signal.SIGSTOP)
        try:
            running.process.send_signal(number)
            eventually_sync(lambda: _is_default(running.process.pid, number), "the first signal is seen")
            running.process.send_signal(number)
            assert running.process.wait(PATIENCE) in (-number, 0)
        finally:
            os.kill(daemon, signal.SIGCONT)
        eventually_sync(lambda: not is_alive(daemon), "the daemon has ended")


def _is_default(pid: int, number: signal.Signals) -> bool:
    """Whether a process neither catches nor ignores a signal, or is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")), 0)
    return not caught >> (number - 1) & 1
