"""When a daemon that has died is started again."""

from __future__ import annotations

import pytest

from hivemind.p2p.restarts import Restarts


def test_pauses_double_up_to_a_bound() -> None:
    restarts = Restarts(first_pause=0.1, longest_pause=1.0, most=6, window=600)
    assert [restarts.died(now) for now in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert restarts.recent == 6


def test_it_is_given_up() -> None:
    restarts = Restarts(most=3, window=100)
    assert [restarts.died(now) is None for now in (0, 1, 2, 3, 4)] == [False, False, False, True, True]


def test_deaths_are_forgotten_after_the_window() -> None:
    restarts = Restarts(first_pause=0.1, most=2, window=100)
    assert restarts.died(0) == pytest.approx(0.1)
    assert restarts.died(99) == pytest.approx(0.2)
    assert restarts.died(100) == pytest.approx(0.2), "the first is out of the window"
    assert restarts.died(150) is None
    assert restarts.died(500) == pytest.approx(0.1)


def test_any_number_of_restarts() -> None:
    restarts = Restarts(most=10_000)
    assert [restarts.died(0) for _ in range(5000)][-1] == restarts.longest_pause
