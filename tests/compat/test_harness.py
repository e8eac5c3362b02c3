"""The harness itself: a fault of a 1.1.12 peer is told from ours and leaves nothing behind."""

from __future__ import annotations

import os
import signal

import pytest

from tests.compat import linejson
from tests.support import legacy_repeat
from tests.support.legacy import LegacyFault, session_members
from tests.support.legacy_repeat import LegacyPeers, repeat_on_legacy_fault


@pytest.mark.parametrize(
    "value", [None, True, 1, -1.5, "x", b"\x00\xff", (1, (b"a", [2])), {1: (2,), b"k": {"a": None}, ("t",): []}]
)
def test_a_value_survives_the_line(value: object) -> None:
    """Types that a DHT tells apart arrive as they left."""
    received = linejson.loads(linejson.dumps(value))
    assert received == value
    assert type(received) is type(value)


def test_close_ends_all_that_a_peer_forked(legacy: LegacyPeers) -> None:
    """A DHT of 1.1.12 is a process and a daemon; both end with their peer."""
    peer = legacy.spawn()
    peer.call("dht_start", name="d", initial_peers=[])
    assert len(session_members(peer.pid)) >= 3
    peer.close()
    assert session_members(peer.pid) == []


def test_end_of_input_ends_all_that_a_peer_forked(legacy: LegacyPeers) -> None:
    """What happens when a test run is killed: nobody is left to call close()."""
    peer = legacy.spawn()
    peer.call("dht_start", name="d", initial_peers=[])
    peer.close_input()
    assert peer.wait_until_dead(timeout=30)
    assert session_members(peer.pid) == []


def test_death_is_a_fault(legacy: LegacyPeers) -> None:
    """A waiting command ends when its process does, without waiting for its timeout."""
    peer = legacy.spawn()
    os.kill(peer.pid, signal.SIGSTOP)
    pending = peer.submit("version")
    os.kill(peer.pid, signal.SIGKILL)
    with pytest.raises(LegacyFault, match="died"):
        peer.result(pending, within=60)
    with pytest.raises(LegacyFault, match="died"):
        peer.call("version")


def test_a_command_that_raises_is_a_fault(legacy: LegacyPeers) -> None:
    """The error and the end of the log are in the fault."""
    with pytest.raises(LegacyFault, match=r"KeyError.*(\n.*)*Traceback"):
        legacy.spawn().call("dht_store", name="missing", key="k", value=1, lifetime=1.0)


def test_a_command_that_hangs_is_a_fault(legacy: LegacyPeers) -> None:
    """A stopped process answers nothing; the fault says how long that was waited for."""
    peer = legacy.spawn()
    os.kill(peer.pid, signal.SIGSTOP)
    with pytest.raises(LegacyFault, match=r"version took over 0\.5 s"):
        peer.call("version", within=0.5)


def test_only_a_legacy_fault_is_repeated(legacy: LegacyPeers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault leads to another attempt with other processes, and is listed; any other failure is final."""
    monkeypatch.setattr(legacy_repeat, "repeated", [])
    pids: list[int] = []

    @repeat_on_legacy_fault
    def fails_once(legacy: LegacyPeers) -> None:
        pids.append(legacy.spawn().pid)
        if len(pids) == 1:
            raise LegacyFault("it hung\nlog line")
        raise AssertionError("a wrong result")

    with pytest.raises(AssertionError, match="a wrong result"):
        fails_once(legacy=legacy)
    assert len(set(pids)) == 2
    assert legacy_repeat.repeated == ["test_harness::fails_once: it hung"]
    assert not any(session_members(pid) for pid in pids)


def test_a_lasting_fault_fails(legacy: LegacyPeers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts, no more."""
    monkeypatch.setattr(legacy_repeat, "repeated", [])
    attempts: list[None] = []

    @repeat_on_legacy_fault
    def always_fails(legacy: LegacyPeers) -> None:
        attempts.append(None)
        raise LegacyFault("it hung")

    with pytest.raises(LegacyFault):
        always_fails(legacy=legacy)
    assert len(attempts) == legacy_repeat.ATTEMPTS
