"""Fixtures of the compatibility tests: one swarm of hivemind 1.1.12 and this library, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.legacy import LegacyNursery
from tests.support.legacy_repeat import ATTEMPTS, LegacyPeers, repeated

HERE = Path(__file__).resolve().parent
ATTEMPT_SECONDS = 180


@pytest.fixture(scope="session")
def nursery() -> Iterator[LegacyNursery]:
    """hivemind 1.1.12, loaded once."""
    nursery = LegacyNursery()
    yield nursery
    nursery.close()


@pytest.fixture
def legacy(nursery: LegacyNursery) -> Iterator[LegacyPeers]:
    """Where a test gets processes of hivemind 1.1.12."""
    peers = LegacyPeers(nursery)
    yield peers
    peers.end_attempt()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every repetition, so that a green run hides none."""
    if repeated:
        terminalreporter.section("repeated: a peer of hivemind 1.1.12 misbehaved")
        for line in repeated:
            terminalreporter.write_line(f"repeated: {line}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test here may take three attempts, of which each may wait for a peer of 1.1.12 that hangs."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(ATTEMPTS * ATTEMPT_SECONDS))
