"""What this process has counted, as Prometheus text. The daemon serves its own, see the option ``metrics``."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from hivemind.clock import monotonic
from hivemind.errors import RuntimeClosedError
from hivemind.p2p.metrics import LATENCY_BOUNDS
from hivemind.p2p.watch import HandlerStats, HandlerWatch
from hivemind.prometheus_text import escaped, head, histogram
from hivemind.runtime import get_runtime, pool_backlog

__all__ = ["Counted", "metrics_text", "register_metrics", "track"]

#: Seconds to wait for the network thread, which answers at once unless something holds it.
_LAG_SECONDS: Final = 1.0


class Counted(Protocol):
    """A client of a daemon that counts what it does."""

    watch: HandlerWatch

    @property
    def open_streams(self) -> int:
        """Calls and streams under way, both ways."""


_clients: weakref.WeakSet[Counted] = weakref.WeakSet()


def track(client: Counted) -> None:
    """Count ``client`` in, as long as it lives."""
    _clients.add(client)


_sources: list[Callable[[], Iterable[str]]] = []


def register_metrics(source: Callable[[], Iterable[str]]) -> None:
    """Add the lines of ``source`` to `metrics_text`, for as long as the process lives.

    :param source: gives lines of Prometheus text; called from any thread, must not wait
    """
    _sources.append(source)


def metrics_text() -> str:
    """Counters of this process in the text format of Prometheus (version 0.0.4): its handlers by name, what is under
    way, and how long the network thread makes others wait. Thread-safe; waits 1 s at most.

    Counters begin anew with each peer that is made. Format: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    clients = list(_clients)
    lines = itertools.chain(_lines(_merged(clients), clients), *(source() for source in _sources))
    return "".join(f"{line}\n" for line in lines)


def _merged(clients: Iterable[Counted]) -> dict[str, HandlerStats]:
    """The handlers of all clients of this process, by name."""
    merged: dict[str, HandlerStats] = {}
    for watch in {client.watch for client in clients}:  # one that was connected anew goes on with its watch
        for name, stats in list(watch.stats.items()):
            total = merged.setdefault(name, HandlerStats())
            for count in ("calls", "errors", "busy", "running", "blocked", "seconds"):
                setattr(total, count, getattr(total, count) + getattr(stats, count))
            total.buckets = [ours + theirs for ours, theirs in zip(total.buckets, stats.buckets, strict=True)]
    return merged


def _lines(handlers: dict[str, HandlerStats], clients: Iterable[Counted]) -> Iterator[str]:
    for name, kind, help_text in (
        ("calls", "counter", "Runs of handlers begun."),
        ("errors", "counter", "Runs of handlers that raised, other than that they are busy."),
        ("busy", "counter", "Runs of handlers that were busy: they raised HandlerBusy."),
        ("blocked", "counter", "Times that a handler held the event loop for longer than 0.5 s."),
        ("running", "gauge", "Runs of handlers under way."),
    ):
        family = f"hivemind_handler_{name}" + ("_total" if kind == "counter" else "")
        yield from head(family, kind, help_text)
        for handler, stats in sorted(handlers.items()):
            yield f'{family}{{handler="{escaped(handler)}"}} {getattr(stats, name)}'
    yield from _durations(handlers)
    yield from _gauge(
        "hivemind_open_streams", "Calls and streams under way, both ways.", sum(c.open_streams for c in clients)
    )
    yield from _gauge("hivemind_pool_waiting", "Pieces of work that wait for the pool of threads.", pool_backlog())
    lag = _lag()
    if lag is not None:
        yield from _gauge("hivemind_loop_lag_seconds", "How long the network thread made this reading wait.", lag)


def _durations(handlers: dict[str, HandlerStats]) -> Iterator[str]:
    family = "hivemind_handler_seconds"
    yield from head(family, "histogram", "Duration of finished runs of handlers.")
    for handler, stats in sorted(handlers.items()):
        yield from histogram(family, f'handler="{escaped(handler)}"', LATENCY_BOUNDS, stats.buckets, stats.seconds)


def _gauge(family: str, help_text: str, value: float) -> Iterator[str]:
    yield from head(family, "gauge", help_text)
    yield f"{family} {value:g}"


def _lag() -> float | None:
    """How long the network thread takes to answer; None if it does not run, or is who asks."""
    runtime = get_runtime()
    if not runtime.running or runtime.in_network_thread():
        return None
    started = monotonic()

    async def answer() -> float:
        return monotonic() - started

    try:
        return runtime.submit(answer).result(_LAG_SECONDS)
    except TimeoutError:
        return monotonic() - started
    except RuntimeClosedError:
        return None
