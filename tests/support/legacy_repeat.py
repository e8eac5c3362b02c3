"""Repeat a test when, and only when, a peer of hivemind 1.1.12 misbehaved; the terminal summary names every repetition.

1.1.12 alone, with no peer of ours, hangs in 2 of 480 averaging rounds of three, and ends 2 of 150 rounds of four with
a part that was never averaged and no error. A test that has such a peer can therefore not ask for more than a right
outcome in a few attempts. What peers of ours do is never excused: only :class:`LegacyFault` leads to another attempt.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from tests.support.legacy import LegacyFault, LegacyNursery, LegacyPeer

ATTEMPTS = 3

Test = TypeVar("Test", bound=Callable[..., Any])

repeated: list[str] = []
"""``test: reason`` of every repetition in this run."""


class LegacyPeers:
    """The processes of 1.1.12 that one attempt of a test uses, and what else it has to close."""

    def __init__(self, nursery: LegacyNursery) -> None:
        self._nursery = nursery
        self._peers: list[LegacyPeer] = []
        self._cleanups: list[Callable[[], object]] = []

    def spawn(self) -> LegacyPeer:
        """A fresh process, closed when the attempt ends."""
        peer = self._nursery.spawn()
        self._peers.append(peer)
        return peer

    def on_end(self, cleanup: Callable[[], object]) -> None:
        """Call ``cleanup`` when the attempt ends, last registered first, before the processes of 1.1.12 are ended."""
        self._cleanups.append(cleanup)

    def end_attempt(self) -> None:
        """Clean up; also when one cleanup raises, the others run."""
        try:
            while self._cleanups:
                self._cleanups.pop()()
        finally:
            if self._cleanups:
                self.end_attempt()
            while self._peers:
                self._peers.pop().close()


def repeat_on_legacy_fault(test: Test) -> Test:
    """Decorate a test, plain or ``async``, that has the fixture ``legacy``: 3 attempts, each with fresh processes."""
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def run_async(*args: Any, legacy: LegacyPeers, **fixtures: Any) -> None:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    await test(*args, legacy=legacy, **fixtures)
                    return
                except LegacyFault as fault:
                    _note(test, attempt, fault)
                finally:
                    legacy.end_attempt()

        return run_async  # type: ignore[return-value]

    @functools.wraps(test)
    def run(*args: Any, legacy: LegacyPeers, **fixtures: Any) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                test(*args, legacy=legacy, **fixtures)
                return
            except LegacyFault as fault:
                _note(test, attempt, fault)
            finally:
                legacy.end_attempt()

    return run  # type: ignore[return-value]


def _note(test: Callable[..., Any], attempt: int, fault: LegacyFault) -> None:
    """Record a repetition; the last attempt's fault is the test's."""
    if attempt == ATTEMPTS:
        raise fault
    reason = str(fault).partition("\n")[0]
    repeated.append(f"{test.__module__.rpartition('.')[2]}::{test.__name__}: {reason}")
