"""Fixtures of the compatibility tests: one swarm of hivemind 1.1.12 and this library, on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.legacy import LegacyNursery
from tests.support.legacy_repeat import LegacyPeers, repeated


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
