"""Deadlines and the two clocks."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.clock import Deadline, get_dht_time, monotonic, simulated_time
from hivemind.errors import ConfigError, DeadlineExceeded


def test_network_time_is_unix_time() -> None:
    assert abs(get_dht_time() - time.time()) < 1.0


def test_simulated_time_replaces_both_clocks_and_gives_them_back() -> None:
    now = 10.0
    with simulated_time(lambda: now, epoch=1000.0):
        assert (get_dht_time(), monotonic()) == (1010.0, 10.0)
        deadline = Deadline.after(5)
        now = 14.0
        assert deadline.remaining() == 1.0
        now = 15.0
        assert deadline.expired
    assert get_dht_time() > 1_600_000_000


@given(st.floats(0, 1e9))
def test_a_deadline_comes_after_its_seconds(seconds: float) -> None:
    with simulated_time(lambda: 0.0):
        deadline = Deadline.after(seconds)
        assert deadline.remaining() == deadline.timeout() == seconds
        assert deadline.expired == (seconds == 0)
        assert deadline.earlier(Deadline.never()) == deadline == Deadline.never().earlier(deadline)


def test_never() -> None:
    for deadline in (Deadline.never(), Deadline.after(None)):
        assert not deadline.expired
        assert deadline.timeout() is None
        assert deadline.remaining() == math.inf
        deadline.check("waiting")


def test_a_passed_deadline_says_for_what() -> None:
    with pytest.raises(DeadlineExceeded, match="the moon"):
        Deadline.after(0).check("the moon")
    assert Deadline.after(0).remaining() == 0.0


def test_deadlines_on_the_network_clock() -> None:
    with simulated_time(lambda: 100.0, epoch=1000.0):
        assert Deadline.at_dht_time(1130.0).remaining() == 30.0
        assert Deadline.at_dht_time(1000.0).expired


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan")])
def test_wrong_timeouts(seconds: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        Deadline.after(seconds)
