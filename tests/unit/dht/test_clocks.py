"""When this machine's clock is said to be wrong."""

from __future__ import annotations

import logging

import pytest

from hivemind.clock import simulated_time
from hivemind.dht.clocks import Clocks
from hivemind.identity import PeerID


def peer(number: int) -> PeerID:
    return PeerID(bytes([number]) * 20)


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([10.0, 10.0], None),  # too few
        ([10.0, 11.0, 9.0], "slow by 10.0 s, by those of 3 peers"),
        ([-7.5, -7.0, -8.0, 0.0], "fast by 7.5 s, by those of 3 peers"),
        ([0.1, 0.0, -0.1, 1e9, 1e9], None),  # liars are the fewer
        ([float("nan"), float("inf"), float("nan"), float("nan")], None),
        ([2.9, 2.9, 2.9], None),
    ],
)
def test_warns_of_a_wrong_clock(offsets: list[float], expected: str | None, caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    with caplog.at_level(logging.WARNING, logger="hivemind"):
        for _ in range(3):
            for number, offset in enumerate(offsets):
                clocks.note(peer(number), offset)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (expected is not None)
    assert expected is None or expected in said[0]


def test_what_was_seen_is_forgotten_and_bounded() -> None:
    seconds = 0.0
    with simulated_time(lambda: seconds):
        clocks = Clocks()
        assert clocks.offset is None
        for number in range(200):
            clocks.note(peer(number), 1.0)
        assert clocks.offset == 1.0
        assert len(clocks._offsets) <= 64
        clocks.note(peer(199), -1.0)
        seconds = 1000.0
        assert clocks.offset is None
