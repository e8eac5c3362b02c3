"""The daemon's log lines and last words."""

from __future__ import annotations

import json
import logging

import pytest

from hivemind.p2p.daemon_log import DaemonLog


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("hivemind"), "propagate", True)
    caplog.set_level(logging.INFO, logger="hivemind.p2pd")
    return caplog


def test_lines_become_records_of_their_level(records: pytest.LogCaptureFixture) -> None:
    logs = DaemonLog()
    logs.take(json.dumps({"time": "now", "level": "ERROR", "logger": "swarm", "msg": "no luck", "peer": "Qm"}))
    logs.take(json.dumps({"level": "DEBUG", "msg": "too fine"}))
    logs.take("panic: no JSON")
    logs.take("[1, 2]")
    assert [(record.levelname, record.getMessage()) for record in records.records] == [
        ("ERROR", "swarm: no luck (peer=Qm)"),
        ("WARNING", "panic: no JSON"),
        ("WARNING", "[1, 2]"),
    ]
    assert logs.last_words.splitlines()[2] == "panic: no JSON"


def test_a_peer_cannot_flood_the_log(records: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    time = 0.0
    monkeypatch.setattr("hivemind.p2p.daemon_log.monotonic", lambda: time)
    logs = DaemonLog()
    for number in range(1000):
        logs.take(json.dumps({"level": "INFO", "msg": f"line {number}"}))
    logs.take(json.dumps({"level": "ERROR", "msg": "of another level"}))
    assert len(records.records) == 21
    assert len(logs.last_words.splitlines()) == 20
    time = 60.0
    logs.take(json.dumps({"level": "INFO", "msg": "later"}))
    assert [record.getMessage() for record in records.records[-2:]] == [
        "980 more lines of the daemon were left out",
        "later",
    ]


def test_long_lines_are_cut(records: pytest.LogCaptureFixture) -> None:
    logs = DaemonLog()
    logs.take(json.dumps({"level": "INFO", "msg": "x" * 100_000}))
    assert len(records.records[0].getMessage()) < 5000
    assert len(logs.last_words) < 5000


def test_the_cause_of_a_crash_stands_before_its_stacks() -> None:
    logs = DaemonLog()
    logs.take(json.dumps({"level": "DEBUG", "msg": "the last thing before"}))
    logs.take("panic: assignment to entry in nil map")
    for number in range(500):
        logs.take(f"goroutine {number} [running]:")
    words = logs.last_words.splitlines()
    assert "the last thing before" in words[0]
    assert words[1] == "panic: assignment to entry in nil map"
    assert len(words) == 21
    logs.begin()
    assert logs.last_words == ""
