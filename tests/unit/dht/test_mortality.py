"""The rate at which nodes die, estimated from what one node notices."""

from __future__ import annotations

import math
import random

import pytest

from hivemind.dht.mortality import Mortality


@pytest.mark.parametrize("rate", [0.0003, 0.002, 0.01])
def test_the_rate_is_found(rate: float) -> None:
    """Fifty nodes, one of which is looked at each second; who has died is replaced."""
    chance, mortality = random.Random(0), Mortality()
    heard, dies = [0.0] * 50, [chance.expovariate(rate) for _ in range(50)]
    for second in range(1, 5000):
        number = second % 50
        now = float(second)
        dead = dies[number] <= now
        mortality.note(now - heard[number], now, died=dead)
        heard[number] = now
        if dead:
            dies[number] = now + chance.expovariate(rate)
    assert mortality.rate(5000.0) == pytest.approx(rate, rel=0.4)
    assert mortality.patience(5000.0) == pytest.approx(0.3 / rate, rel=0.6)


def test_nobody_is_doubted_where_nobody_dies() -> None:
    mortality = Mortality()
    assert mortality.patience(0.0) == math.inf
    for second in range(100):
        mortality.note(10.0, float(second), died=False)
    assert mortality.patience(100.0) == math.inf


def test_one_death_is_not_many_and_is_forgotten() -> None:
    mortality = Mortality()
    mortality.note(0.0, 1.0, died=True)
    first = mortality.patience(1.0)
    assert first > 30
    for second in range(60):
        mortality.note(60.0, 2.0 + second, died=False)
    assert mortality.patience(62.0) > 10 * first
    assert mortality.patience(4000.0) > 1000 * first
