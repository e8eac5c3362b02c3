"""The laboratory of each file, with two relays on public hosts; skipped where there can be none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.nat_lab import PUBLIC, NatLab, why_not
from tests.support.nat_peer import NatPeer, Place, start_relays

HERE = Path(__file__).resolve().parent
SECONDS = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    reason = why_not() if ours else None
    for item in ours:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def lab() -> Iterator[NatLab]:
    with NatLab() as lab:
        yield lab


@pytest.fixture(scope="module")
def cleanup() -> Iterator[ExitStack]:
    """Ends what the tests of the file have started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def inside(lab: NatLab, cleanup: ExitStack) -> Callable[[str], Place]:
    """A thread in a namespace."""
    return lambda name: cleanup.enter_context(Place(lab, name))


@pytest.fixture(scope="module")
def relays(lab: NatLab, inside: Callable[[str], Place], cleanup: ExitStack) -> list[NatPeer]:
    """Two relays."""
    return start_relays(cleanup, lab, inside(PUBLIC), 2)


@pytest.fixture(scope="module")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a measurement, also where pytest keeps what tests print to itself."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="")

    return say
