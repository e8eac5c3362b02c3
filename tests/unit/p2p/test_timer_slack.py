"""Timers of a process that is started within `coarse_timers`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hivemind.p2p.timer_slack import SLACK_SECONDS, coarse_timers

_TELL = "import ctypes; print(ctypes.CDLL(None).prctl(30, 0))"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="timers have a slack on Linux")


def _slack_of_child() -> int:
    return int(subprocess.run([sys.executable, "-c", _TELL], capture_output=True, check=True, timeout=30).stdout)


def test_only_what_is_started_within_has_coarse_timers() -> None:
    before = _slack_of_child()
    with coarse_timers():
        within = _slack_of_child()
    assert (before < within, within, _slack_of_child()) == (True, SLACK_SECONDS * 1e9, before)


def test_an_error_within_ends_it_too() -> None:
    before = _slack_of_child()
    with pytest.raises(OSError, match="no such program"), coarse_timers():
        raise OSError("no such program")
    assert _slack_of_child() == before
