"""Logging touches nobody else's loggers."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from hivemind.log import RateLimit, get_logger, use_hivemind_log_handler
from tests.support.waiting import PATIENCE


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "/usr/bin:/bin", **environment},
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=True,
    )


def test_names_are_kept() -> None:
    assert get_logger("hivemind.dht").name == "hivemind.dht"
    assert get_logger("mine").name == "mine"
    assert get_logger().name == "hivemind"


def test_messages_go_to_standard_error_once_and_the_root_is_left_alone() -> None:
    done = run(
        "import logging\n"
        "from hivemind.log import get_logger\n"
        "get_logger('hivemind.x').info('hello')\n"
        "get_logger('hivemind.x').debug('too fine')\n"
        "assert not logging.getLogger().handlers\n"
        "logging.getLogger('mine').info('not shown')\n"
    )
    assert done.stderr.count("hello") == 1
    assert "[INFO] [hivemind.x]" in done.stderr
    assert "too fine" not in done.stderr
    assert "not shown" not in done.stderr


def test_the_level_comes_from_the_environment() -> None:
    program = (
        "from hivemind.log import get_logger; get_logger('hivemind').debug('fine'); get_logger('hivemind').info('x')"
    )
    assert "fine" in run(program, HIVEMIND_LOGLEVEL="debug").stderr
    assert run(program, HIVEMIND_LOGLEVEL="ERROR").stderr == ""
    assert "x" in run(program, HIVEMIND_LOGLEVEL="NONSENSE").stderr


def test_where_the_handler_stands() -> None:
    program = (
        "import logging\n"
        "from hivemind.log import get_logger, use_hivemind_log_handler\n"
        "use_hivemind_log_handler({!r})\n"
        "get_logger('hivemind').warning('ours')\n"
        "logging.getLogger('mine').warning('theirs')\n"
        "logging.getLogger('hivemind').warning('again')\n"
    )
    in_root = run(program.format("in_root_logger")).stderr
    assert in_root.count("[WARNING]") == 3
    assert in_root.count("ours") == 1
    assert run(program.format("in_hivemind")).stderr.count("[WARNING]") == 2
    assert run(program.format("nowhere")).stderr.count("[WARNING]") == 0
    with pytest.raises(ValueError, match="allowed"):
        use_hivemind_log_handler("elsewhere")
    assert logging.getLogger("hivemind").handlers


def test_a_rate_limit_lets_one_through_per_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("hivemind.log.time.monotonic", lambda: now)
    limit = RateLimit(period=10)
    assert [limit.allow() for _ in range(3)] == [True, False, False]
    assert limit.suppressed == 2
    now = 110.0
    assert limit.allow()
    assert limit.suppressed == 0
