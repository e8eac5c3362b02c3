"""What every workload shares; the standard library only. Workloads run unchanged under either library's Python.

A workload is a script that measures one claim and prints one line, ``{"name": [value, unit], ...}``, last. It uses
only what both libraries document. ``benchmarks/run.py`` runs it under both in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

#: Loopback only: no port is mapped on a router, nobody is asked how this machine is seen from outside.
LOCAL: dict[str, Any] = {"host_maddrs": ["/ip4/127.0.0.1/tcp/0"], "nat_port_map": False, "auto_nat": False}

KIB = 1 << 10
MIB = 1 << 20

START_SECONDS = 180.0  # until a child process has imported its library and is ready


def parse_arguments(*extra: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """``--quick`` and what a workload adds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    for name, options in extra:
        parser.add_argument(name, **options)
    return parser.parse_args()


#: A value and its unit, one of those in `report.UNITS`: "s", "B", "error" and "" (a count) are better when smaller, the
#: others when greater.
Figure = tuple[float, str]


def emit(figures: dict[str, Any]) -> None:
    """Print one line of JSON, the only thing on standard output that the other side reads."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def median(seconds: list[float]) -> Figure:
    """The middle one, the upper of two."""
    return percentile(seconds, 0.5)


def percentile(seconds: list[float], fraction: float) -> Figure:
    """The one that ``fraction`` of them do not exceed."""
    return sorted(seconds)[min(len(seconds) - 1, int(fraction * len(seconds)))], "s"


async def seconds_of(action: Callable[[], Awaitable[object]], repeat: int) -> list[float]:
    """Seconds of each of ``repeat`` runs, one after another, after one that is not counted."""
    await action()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        await action()
        times.append(time.perf_counter() - started)
    return times


class Child:
    """A process spoken to in lines."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, line: str) -> None:
        """Write one line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """Its next line of JSON.

        :raises RuntimeError: it ended
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the workload ended with {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Close its input, on which it ends, and wait; kill it where it hangs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def child(script: str, *arguments: str) -> Iterator[Child]:
    """A :class:`Child` of the same Python that ends with the block."""
    with running([sys.executable, "-W", "ignore", script, *arguments]) as process:
        yield process


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[Child]:
    """A :class:`Child` that ends with the block."""
    process = Child(command)
    try:
        yield process
    finally:
        process.end()
