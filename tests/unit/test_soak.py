"""The verdict of the soak: what it calls growth, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soak.sample import MIB, Sample, growth, leftovers

STEADY = Sample(
    python_memory=80 * MIB,
    python_files=20,
    tasks=200,
    threads=5,
    daemon_memory=200 * MIB,
    daemon_files=20,
    goroutines=400,
)


def test_what_varies_does_not_grow() -> None:
    samples = [
        replace(STEADY, tasks=200 + 37 * (number % 5), python_memory=(80 + number % 7) * MIB) for number in range(20)
    ]
    assert growth(samples) == []


@pytest.mark.parametrize(
    ("name", "step"),
    [("python_memory", 3 * MIB), ("daemon_memory", 12 * MIB), ("python_files", 40), ("tasks", 40), ("goroutines", 50)],
)
def test_what_grows_is_named(name: str, step: int) -> None:
    samples = [replace(STEADY, **{name: getattr(STEADY, name) + step * number}) for number in range(20)]
    (found,) = growth(samples)
    assert name in found


def test_too_few_samples_prove_nothing() -> None:
    assert growth([STEADY] * 3) != []


@pytest.mark.parametrize("name", ["python_files", "tasks", "threads", "daemon_files", "goroutines"])
def test_leftovers_are_named(name: str) -> None:
    (found,) = leftovers(STEADY, replace(STEADY, **{name: getattr(STEADY, name) + 100}))
    assert name in found
    assert leftovers(STEADY, replace(STEADY, python_memory=400 * MIB)) == []
