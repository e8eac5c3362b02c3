"""Options: complete, checked, and honest about what is not built."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
import torch

from hivemind.config import make_options, option_names
from hivemind.errors import ConfigError
from hivemind.optim.config import OptimizerKeywords, OptimizerOptions, TrackerOptions

#: The keywords of hivemind 1.1 that are not arguments of their own.
KEYWORDS = [
    "matchmaking_time",
    "averaging_timeout",
    "allreduce_timeout",
    "next_chunk_timeout",
    "load_state_timeout",
    "reuse_grad_buffers",
    "offload_optimizer",
    "delay_optimizer_step",
    "delay_grad_averaging",
    "delay_state_averaging",
    "average_state_every",
    "use_local_updates",
    "client_mode",
    "auxiliary",
    "grad_compression",
    "grad_averager_factory",
    "state_averaging_compression",
    "load_state_compression",
    "average_opt_statistics",
    "extra_tensors",
    "averager_opts",
    "tracker_opts",
    "performance_ema_alpha",
    "shutdown_timeout",
    "verbose",
]


def test_all_keywords_are_there():
    assert sorted(option_names(OptimizerOptions)) == sorted(KEYWORDS)
    assert sorted(get_type_hints(OptimizerKeywords, localns={"GradientAverager": Any})) == sorted(KEYWORDS)


def test_defaults():
    options = OptimizerOptions()
    assert (options.matchmaking_time, options.averaging_timeout, options.load_state_timeout) == (15.0, 60.0, 600.0)
    assert (options.round_timeout, options.chunk_timeout) == (60.0, 15.0)
    tracker = TrackerOptions()
    assert (tracker.min_refresh_period, tracker.max_refresh_period, tracker.default_refresh_period) == (0.5, 10, 3)
    assert (tracker.expected_drift_peers, tracker.expected_drift_rate, tracker.metadata_expiration) == (3, 0.2, 60)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matchmaking_time", 0),
        ("averaging_timeout", -1.0),
        ("allreduce_timeout", 0),
        ("load_state_timeout", None),
        ("shutdown_timeout", float("inf")),
        ("average_state_every", 0),
        ("average_state_every", 1.5),
        ("performance_ema_alpha", 2),
        ("average_opt_statistics", "exp_avg"),
        ("grad_compression", "fp16"),
        ("load_state_compression", None),
        ("offload_optimizer", True),
        ("delay_optimizer_step", True),
        ("delay_grad_averaging", True),
        ("use_local_updates", True),
    ],
)
def test_wrong_or_unbuilt_values_are_named(name: str, value: object):
    with pytest.raises(ConfigError, match=name):
        OptimizerOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["offload_optimizer", "delay_optimizer_step", "delay_state_averaging"])
@pytest.mark.parametrize("value", [None, False])
def test_what_is_built_may_be_said(name: str, value: object):
    OptimizerOptions(**{name: value})  # type: ignore[arg-type]
    OptimizerOptions(delay_state_averaging=True)


def test_auxiliary_clients_make_no_sense():
    with pytest.raises(ConfigError, match="auxiliary"):
        OptimizerOptions(auxiliary=True, client_mode=True)


def test_misspelt_option_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'matchmaking_time'"):
        make_options(OptimizerOptions, {"match_making_time": 3}, where="Optimizer")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_refresh_period", 0),
        ("max_refresh_period", 0.1),
        ("default_refresh_period", None),
        ("expected_drift_peers", -1),
        ("expected_drift_rate", float("nan")),
        ("performance_ema_alpha", "a"),
        ("metadata_expiration", -60),
    ],
)
def test_wrong_tracker_options_are_named(name: str, value: object):
    with pytest.raises(ConfigError, match=name):
        TrackerOptions(**{name: value})  # type: ignore[arg-type]


def test_options_hold_users_tensors():
    extra = torch.zeros(1)
    assert OptimizerOptions(extra_tensors=[extra]).extra_tensors[0] is extra
