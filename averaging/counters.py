"""What the averagers of this process have counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Final

from hivemind.averaging.control import RoundReport
from hivemind.p2p import register_metrics
from hivemind.prometheus_text import escaped, head

__all__ = ["Counters"]


class Counters:
    """Counts of one averager since it was made. Written on the network thread only; reading is safe anywhere.

    :param prefix: the label of its counts; averagers of the same prefix are added up
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        #: steps that have ended: with an average, without one, and given up by the program
        self.averaged = 0
        self.failed = 0
        self.cancelled = 0
        #: of the rounds that ended well: groups tried, members whose tensors went in, and those that broke off
        self.attempts = 0
        self.contributors = 0
        self.lost = 0
        #: and seconds of looking for the group, and of exchanging
        self.matchmaking_seconds = 0.0
        self.allreduce_seconds = 0.0
        _living.add(self)

    def take(self, report: RoundReport) -> None:
        """A step has ended with an average."""
        self.averaged += 1
        self.attempts += report.attempts
        self.contributors += len(report.contributors)
        self.lost += len(report.failed)
        self.matchmaking_seconds += report.matchmaking_seconds
        self.allreduce_seconds += report.allreduce_seconds


_living: weakref.WeakSet[Counters] = weakref.WeakSet()

_HELP: Final = {
    "averaged": ("steps_averaged_total", "Steps that ended with an average."),
    "failed": ("steps_failed_total", "Steps that ended without one."),
    "cancelled": ("steps_cancelled_total", "Steps that the program has given up."),
    "attempts": ("groups_tried_total", "Groups that were tried in the steps that ended with an average."),
    "contributors": ("contributors_total", "Peers whose tensors went into an average, summed over all averages."),
    "lost": ("lost_total", "Members of a group that sent nothing or broke off, while the others averaged."),
    "matchmaking_seconds": ("matchmaking_seconds_total", "Looking for groups that have averaged."),
    "allreduce_seconds": ("allreduce_seconds_total", "Exchanging tensors in groups that have averaged."),
}


def _metrics() -> Iterator[str]:
    """All averagers of this process by prefix, as Prometheus text."""
    averagers = sorted(_living, key=lambda each: each.prefix)
    prefixes = dict.fromkeys(each.prefix for each in averagers)
    for name, (suffix, text) in _HELP.items() if averagers else ():
        family = f"hivemind_averaging_{suffix}"
        yield from head(family, "counter", text)
        for prefix in prefixes:
            total = sum(getattr(each, name) for each in averagers if each.prefix == prefix)
            yield f'{family}{{prefix="{escaped(prefix)}"}} {total:.10g}'


register_metrics(_metrics)
