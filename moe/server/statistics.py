"""What a server has done, in numbers and in a line for the log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from hivemind.moe.server.task_pool import PoolStats

__all__ = ["ExpertStats", "ServerStats", "line", "total"]


@dataclass(frozen=True)
class ExpertStats:
    """What an expert has done so far."""

    forward: PoolStats
    backward: PoolStats


@dataclass(frozen=True)
class ServerStats:
    """What a server has done so far.

    :param experts: by uid
    :param calls: that run now
    :param waiting_seconds: expected seconds of the work that waits now, of the device that has most
    """

    experts: dict[str, ExpertStats]
    calls: int
    waiting_seconds: float

    @property
    def forward(self) -> PoolStats:
        """Of all experts."""
        return total(expert.forward for expert in self.experts.values())

    @property
    def backward(self) -> PoolStats:
        """Of all experts."""
        return total(expert.backward for expert in self.experts.values())


def total(stats: Iterable[PoolStats]) -> PoolStats:
    """The sum."""
    each = list(stats)
    return PoolStats(**{field.name: sum(getattr(one, field.name) for one in each) for field in fields(PoolStats)})


def line(before: ServerStats, now: ServerStats, seconds: float) -> str:
    """What has been done in between, as a line for the log."""
    parts = [f"{len(now.experts)} experts, {now.calls} calls running, {now.waiting_seconds:.1f} s of work waiting"]
    for name in ("forward", "backward"):
        then: PoolStats = getattr(before, name)
        since: PoolStats = getattr(now, name)
        samples, batches = since.samples - then.samples, since.batches - then.batches
        requests = max(1, since.requests - then.requests)
        parts.append(
            f"{name}: {samples / seconds:.1f} samples/s in batches of {samples / max(1, batches):.1f}, "
            f"waited {1e3 * (since.waited - then.waited) / requests:.0f} ms, refused {since.refused - then.refused}, "
            f"cancelled {since.cancelled - then.cancelled}, failed {since.failed - then.failed}"
        )
    return "; ".join(parts)
