"""How fast a peer is."""

from __future__ import annotations

import pytest

from hivemind.errors import ConfigError
from hivemind.optim.performance import PerformanceEMA


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_first_measurement_counts_fully():
    clock = Clock()
    speed = PerformanceEMA(0.1, clock=clock)
    assert speed.samples_per_second == 1e-20
    clock.now += 2
    assert speed.update(10) == pytest.approx(5.0)


def test_average_is_over_seconds_per_sample():
    speed = PerformanceEMA(0.5, clock=Clock())
    speed.update(1, interval=1.0)
    speed.update(1, interval=2.0)
    # weights 1/3 and 2/3 after the correction
    assert speed.samples_per_second == pytest.approx(1 / (1 / 3 * 1 + 2 / 3 * 2))


def test_pauses_do_not_count():
    clock = Clock()
    speed = PerformanceEMA(1.0, clock=clock)
    clock.now += 1
    with speed.pause():
        clock.now += 50
        speed.update(1000)
    clock.now += 1
    assert speed.update(10) == pytest.approx(5.0)


def test_reset_forgets_the_time_up_to_now():
    clock = Clock()
    speed = PerformanceEMA(1.0, clock=clock)
    clock.now += 50
    speed.reset_timer()
    clock.now += 1
    assert speed.update(3) == pytest.approx(3.0)


def test_standing_clock_gives_a_finite_speed():
    assert PerformanceEMA(clock=Clock()).update(1) <= 1e9 * 1.01


@pytest.mark.parametrize("alpha", [0, -1, 2, True, "a"])
def test_wrong_alpha(alpha: object):
    with pytest.raises(ConfigError, match="alpha"):
        PerformanceEMA(alpha)  # type: ignore[arg-type]
