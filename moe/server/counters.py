"""What the experts of this process have done, as Prometheus text."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.server.task_pool import TaskPool
from hivemind.moe.uid import ExpertUID
from hivemind.p2p import LATENCY_BOUNDS, register_metrics
from hivemind.prometheus_text import escaped, head, histogram

__all__ = ["Serving", "conceal", "expose"]


class Serving(Protocol):
    """A server that runs."""

    @property
    def experts(self) -> Mapping[ExpertUID, ModuleBackend]: ...


_serving: weakref.WeakSet[Serving] = weakref.WeakSet()

#: attribute of `PoolStats` → what its family is called, and means
_COUNTERS: Final = {
    "requests": ("requests_total", "Requests that were run, those that failed included."),
    "batches": ("batches_total", "Batches that were run."),
    "samples": ("samples_total", "Samples in these batches."),
    "seconds": ("busy_seconds_total", "Seconds that batches ran."),
    "waited": ("waited_seconds_total", "Seconds that requests waited for their turn, all together."),
    "refused": ("refused_total", "Requests for which there was no room."),
    "cancelled": ("cancelled_total", "Requests whose clients gave up while they waited."),
    "failed": ("errors_total", "Requests that ended in an error of the expert."),
}


def expose(server: Serving) -> None:
    """Count its experts in, until `conceal` or its end. Thread-safe."""
    _serving.add(server)


def conceal(server: Serving) -> None:
    """The end of `expose`. Idempotent."""
    _serving.discard(server)


def _metrics() -> Iterator[str]:
    """All experts of this process by name and call. Durations have no names: an expert more would be 40 lines more."""
    pools = [
        (uid, call, pool)
        for server in list(_serving)
        for uid, expert in sorted(server.experts.items())
        for call, pool in (("forward", expert.forward_pool), ("backward", expert.backward_pool))
    ]
    if not pools:
        return
    for name, (suffix, text) in _COUNTERS.items():
        yield from head(f"hivemind_expert_{suffix}", "counter", text)
        for uid, call, pool in pools:
            yield f'hivemind_expert_{suffix}{{expert="{escaped(uid)}",call="{call}"}} {getattr(pool.stats, name):.10g}'
    yield from head("hivemind_expert_queue", "gauge", "Requests that wait now.")
    for uid, call, pool in pools:
        yield f'hivemind_expert_queue{{expert="{escaped(uid)}",call="{call}"}} {len(pool.queue)}'
    yield from head("hivemind_expert_request_seconds", "histogram", "From the arrival of a request to its outcome.")
    for kind in ("forward", "backward"):
        yield from _durations(kind, [pool for _, call, pool in pools if call == kind])


def _durations(call: str, pools: list[TaskPool]) -> Iterator[str]:
    counts = map(sum, zip(*(pool.latencies for pool in pools), strict=True))
    answered = sum(pool.stats.answered for pool in pools)
    return histogram("hivemind_expert_request_seconds", f'call="{call}"', LATENCY_BOUNDS, counts, answered)


register_metrics(_metrics)
