"""What averagers have counted, as Prometheus text."""

from __future__ import annotations

from hivemind.averaging.control import RoundReport
from hivemind.averaging.counters import Counters
from hivemind.identity import PeerID
from hivemind.p2p import metrics_text

PEERS = tuple(PeerID(bytes([0x12, 0x20]) + bytes([each]) * 32) for each in range(3))


def test_averagers_of_a_prefix_are_added_up() -> None:
    one, other, apart = Counters('counted "run"'), Counters('counted "run"'), Counters("counted apart")
    one.take(RoundReport(b"group", PEERS, PEERS[:2], PEERS[2:], 2, 0.5, 1.25))
    other.take(RoundReport(b"group", PEERS, PEERS, (), 1, 0.25, 1.0))
    apart.failed += 1
    text = metrics_text()
    for line in (
        '_steps_averaged_total{prefix="counted \\"run\\""} 2',
        '_groups_tried_total{prefix="counted \\"run\\""} 3',
        '_contributors_total{prefix="counted \\"run\\""} 5',
        '_lost_total{prefix="counted \\"run\\""} 1',
        '_matchmaking_seconds_total{prefix="counted \\"run\\""} 0.75',
        '_allreduce_seconds_total{prefix="counted \\"run\\""} 2.25',
        '_steps_failed_total{prefix="counted apart"} 1',
        '_steps_averaged_total{prefix="counted apart"} 0',
    ):
        assert f"hivemind_averaging{line}\n" in text
