"""The DMoE experiment in a short form: eight trainers learn through experts that are slow and often fail."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXPERIMENT = Path(__file__).resolve().parents[3] / "examples" / "dmoe" / "experiment.py"


@pytest.mark.timeout(300)  # seconds of computing, more on a loaded machine
def test_a_mixture_on_unreliable_servers_learns() -> None:
    spec = importlib.util.spec_from_file_location("experiment", EXPERIMENT)
    assert spec is not None
    assert spec.loader is not None
    experiment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)
    result = experiment.run(steps=150, latency=0.01, failures=0.1)
    # it begins at log(10) = 2.3; 1.1 to 1.8 is usual
    assert result["loss, mean of the last tenth"] < 2.1
    assert result["failed steps"] <= 15
