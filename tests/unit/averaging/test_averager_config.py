"""Options: each wrong value names itself; every wait has a finite default."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from hivemind.averaging.config import AveragerKeywords, AveragerOptions, Timeouts, allreduce_seconds, step_seconds
from hivemind.config import make_options
from hivemind.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"target_group_size": 1}, "target_group_size"),
        ({"target_group_size": 2, "min_group_size": 3}, "target_group_size"),
        ({"min_group_size": 1}, "min_group_size"),
        ({"initial_group_bits": "012"}, "group bits"),
        ({"min_matchmaking_time": 0.0}, "min_matchmaking_time"),
        ({"request_timeout": 5.0}, "request_timeout"),
        ({"averaging_alpha": -1.0}, "averaging_alpha"),
        ({"bandwidth": -1.0}, "bandwidth"),
        ({"bandwidth": math.inf}, "bandwidth"),
        ({"part_size_bytes": 0}, "part_size_bytes"),
        ({"allreduce_timeout": math.inf}, "allreduce_timeout"),
        ({"sender_timeout": 5.0, "reducer_timeout": 5.0}, "reducer_timeout"),
        ({"client_mode": True, "auxiliary": True}, "auxiliary"),
        ({"client_mode": True, "allow_state_sharing": True}, "allow_state_sharing"),
        ({"min_vector_size": -1}, "min_vector_size"),
    ],
)
def test_wrong_values(options: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make_options(AveragerOptions, options, where="DecentralizedAverager")


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="target_group_size"):
        make_options(AveragerOptions, {"target_groupsize": 4}, where="DecentralizedAverager")


def test_the_keywords_are_the_options() -> None:
    assert list(AveragerKeywords.__annotations__) == [field.name for field in fields(AveragerOptions)]


def test_defaults_are_those_of_hivemind_1_1_where_it_has_any() -> None:
    options = AveragerOptions()
    assert options.target_group_size is None
    assert options.min_group_size == 2
    assert (options.min_matchmaking_time, options.request_timeout) == (5.0, 3.0)
    assert options.part_size_bytes == 524288
    assert options.averaging_alpha == 1.0
    assert options.declare_state_period == 30


@pytest.mark.parametrize("size", [1, 2, 16, 256])
@pytest.mark.parametrize("total_bytes", [0, 4, 10**9])
def test_every_wait_is_finite(size: int, total_bytes: int) -> None:
    options = AveragerOptions()
    waits = Timeouts.of_round(options, group_size=size, total_bytes=total_bytes)
    assert 0 < waits.sender < waits.reducer < math.inf
    assert allreduce_seconds(options, total_bytes) < step_seconds(options, total_bytes) < math.inf


def test_given_timeouts_are_honoured() -> None:
    options = AveragerOptions(allreduce_timeout=7.0, next_chunk_timeout=2.0)
    assert Timeouts.of_round(options, group_size=4, total_bytes=10**9) == Timeouts(2.0, 4.0, 7.0)
    options = AveragerOptions(sender_timeout=1.0, reducer_timeout=5.0, next_chunk_timeout=2.0, step_timeout=9.0)
    assert Timeouts.of_round(options, group_size=4, total_bytes=0) == Timeouts(1.0, 5.0, 60.0)
    assert step_seconds(options, 10**9) == 9.0
