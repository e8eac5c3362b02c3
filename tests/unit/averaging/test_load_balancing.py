"""Load balancing: vectors of hivemind 1.1, and what holds for all inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.averaging.load_balancing import hagenbach_bishoff, load_balance_peers, optimize_parts_lp
from hivemind.errors import ConfigError


@pytest.mark.parametrize(
    ("size", "bandwidths", "least", "expected"),
    [
        (1000, [1, 2, 3], 0, (0, 448, 552)),
        (1000, [0.5, 0.5, 1, 2], 0, (0, 0, 310, 690)),
        (1000, [5, 4, 3, 2, 1], 0, (344, 295, 231, 130, 0)),
        (1000, [1, 10, 0], 0, (0, 1000, 0)),
        (1000, [1, 2], 0, (500, 500)),
        (1000000, [4.0, 3.0], 0, (500000, 500000)),
        (1000, [3.0, 4.0, 3.0], 50, (200, 600, 200)),
        (1000, [1.0, 1.0, 10.0, 0.0, 10.0], 50, (0, 0, 500, 0, 500)),
        (1000000, [4.0, 1.0, 1.0, 0.0, 4.0], 0, (500000, 0, 0, 0, 500000)),
        (1000000, [3.0, 3.0, 5.0, 4.0], 50000, (100000, 100000, 500000, 300000)),
        (100000000, [5.0, 5.0, 3.0, 0.0], 0, (46153847, 46153846, 7692307, 0)),
        (100000000, [2.0, 0.0, 4.0, 2.0], 0, (12500000, 0, 75000000, 12500000)),
        (
            100000000,
            [37.44860580677572, 66.94545937441198, 46.122407363003184, 54.58590475559782],
            5000000,
            (0, 50323241, 18338255, 31338504),
        ),
        (1000, [None, 1.0, 1.0201274193210774, 2.0187324242112914], 0, (250, 57, 68, 625)),
        (1000, [0.0, None, 0.4216520062241691, None], 0, (0, 334, 333, 333)),
        (5, [None, None, 0, None], 0, (2, 2, 0, 1)),
        (1000, [None, None], 0, (500, 500)),
        (0, [None, None], 0, (0, 0)),
    ],
)
def test_golden(size: int, bandwidths: list[float | None], least: int, expected: tuple[int, ...]) -> None:
    assert load_balance_peers(size, bandwidths, least) == expected


def test_two_peers_get_equal_shares_whatever_their_bandwidths() -> None:
    np.testing.assert_allclose(optimize_parts_lp(1000, [1.0, 2.0]), [0.65228443, 0.65228443], atol=5e-9, rtol=0)


def test_hagenbach_bishoff() -> None:
    assert hagenbach_bishoff(10, [1, 0, 1, 1]) == (4, 0, 3, 3)


@given(st.integers(0, 10**9), st.lists(st.floats(0, 1e6), min_size=1, max_size=20).filter(lambda s: sum(s) > 0))
def test_allocations_add_up(size: int, scores: list[float]) -> None:
    allocated = hagenbach_bishoff(size, scores)
    assert sum(allocated) == size
    for count, score in zip(allocated, scores, strict=True):
        assert count >= 0
        assert score > 0 or count == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | st.floats(0, 1e4), min_size=1, max_size=8).filter(lambda b: any(x is None or x for x in b)))
def test_any_bandwidths_give_a_partition(bandwidths: list[float | None]) -> None:
    counts = load_balance_peers(12345, bandwidths)
    assert len(counts) == len(bandwidths)
    assert sum(counts) == 12345
    assert min(counts) >= 0


@pytest.mark.parametrize("bandwidths", [[1e308, 1e308, 1.0], [1e-320, 1.0], [1e-300, 1e300, None]])
def test_extreme_bandwidths_do_not_break_the_group(bandwidths: list[float | None]) -> None:
    assert sum(load_balance_peers(1000, bandwidths)) == 1000


@pytest.mark.parametrize("bandwidths", [[], [0.0], [0, 0]])
def test_somebody_must_reduce(bandwidths: list[float]) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        load_balance_peers(10, bandwidths)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_wrong_bandwidths(wrong: float) -> None:
    with pytest.raises(ConfigError, match="bandwidth"):
        load_balance_peers(10, [1.0, wrong])


@pytest.mark.parametrize("scores", [[], [0.0], [1.0, -0.5], [float("nan")]])
def test_wrong_scores(scores: list[float]) -> None:
    with pytest.raises(ConfigError, match="scores"):
        hagenbach_bishoff(10, scores)
