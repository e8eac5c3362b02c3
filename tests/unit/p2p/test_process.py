"""The daemon's log lines, and where its binary is looked for."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from hivemind.errors import DaemonStartError
from hivemind.p2p.process import _Logs, find_binary


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("hivemind"), "propagate", True)
    caplog.set_level(logging.INFO, logger="hivemind.p2pd")
    return caplog


def test_lines_become_records_of_their_level(records: pytest.LogCaptureFixture) -> None:
    logs = _Logs()
    logs.take(json.dumps({"time": "now", "level": "ERROR", "logger": "swarm", "msg": "no luck", "peer": "Qm"}))
    logs.take(json.dumps({"level": "DEBUG", "msg": "too fine"}))
    logs.take("panic: no JSON")
    logs.take("[1, 2]")
    assert [(record.levelname, record.getMessage()) for record in records.records] == [
        ("ERROR", "swarm: no luck (peer=Qm)"),
        ("WARNING", "panic: no JSON"),
        ("WARNING", "[1, 2]"),
    ]
    assert logs.tail[2] == "panic: no JSON"


def test_a_peer_cannot_flood_the_log(records: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    time = 0.0
    monkeypatch.setattr("hivemind.p2p.process.monotonic", lambda: time)
    logs = _Logs()
    for number in range(1000):
        logs.take(json.dumps({"level": "INFO", "msg": f"line {number}"}))
    logs.take(json.dumps({"level": "ERROR", "msg": "of another level"}))
    assert len(records.records) == 21
    assert len(logs.tail) == 20
    time = 60.0
    logs.take(json.dumps({"level": "INFO", "msg": "later"}))
    assert [record.getMessage() for record in records.records[-2:]] == [
        "980 more lines of the daemon were left out",
        "later",
    ]


def test_long_lines_are_cut(records: pytest.LogCaptureFixture) -> None:
    logs = _Logs()
    logs.take(json.dumps({"level": "INFO", "msg": "x" * 100_000}))
    assert len(records.records[0].getMessage()) < 5000
    assert len(logs.tail[0]) < 5000


def test_the_binary_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "p2pd"
    binary.write_text("")
    monkeypatch.setenv("HIVEMIND_P2PD", str(binary))
    with pytest.raises(DaemonStartError, match="HIVEMIND_P2PD"):
        find_binary()
    binary.chmod(0o755)
    assert find_binary() == binary
    monkeypatch.setenv("HIVEMIND_P2PD", str(tmp_path))
    with pytest.raises(DaemonStartError, match="HIVEMIND_P2PD"):
        find_binary()
