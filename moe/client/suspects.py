"""Experts that have just failed or are busy are passed over for a while: a dead server costs one wait, and not one a
batch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from hivemind.clock import monotonic
from hivemind.errors import (
    DeadlineExceeded,
    HivemindError,
    PeerBusy,
    PeerUnreachable,
    ProtocolNotSupported,
    UnknownExpert,
)
from hivemind.identity import PeerID
from hivemind.moe.uid import ExpertInfo

__all__ = ["Suspects"]

#: Seconds after a first failure; doubled with each further one in a row.
_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 60.0
#: Seconds for which one that is busy is passed over at most, whatever its server says: it can only guess.
_LONGEST_BUSY_SECONDS = 10.0
#: How many are remembered.
_MOST = 10_000


class Suspects:
    """Servers that do not answer, and experts that their servers do not know (any more). Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock: failures in a row, and until when it is passed over
        self._known: dict[PeerID | ExpertInfo, tuple[int, float]] = {}

    def note(self, answered: Iterable[ExpertInfo], failures: Mapping[ExpertInfo, HivemindError]) -> None:
        """Some have answered, others failed. Of one server, an answer counts more than a failure."""
        suspects = {_suspect(expert, error) for expert, error in failures.items()} - {None}
        busy = {expert: error for expert, error in failures.items() if isinstance(error, PeerBusy)}
        with self._lock:
            for expert in answered:
                for alive in (expert, expert.peer_id):
                    self._known.pop(alive, None)
                    suspects.discard(alive)
            for suspect in suspects:
                assert suspect is not None
                self._suspect(suspect)
            for expert, error in busy.items():
                pause = min(error.retry_after or 0.0, _LONGEST_BUSY_SECONDS)
                self._remember(expert, (0, monotonic() + pause))

    def _suspect(self, suspect: PeerID | ExpertInfo) -> None:
        count, until = self._known.pop(suspect, (0, 0.0))
        now = monotonic()
        if now >= until:  # what fails meanwhile was asked before
            count, until = count + 1, now + min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0**count)
        self._remember(suspect, (count, until))

    def _remember(self, suspect: PeerID | ExpertInfo, known: tuple[int, float]) -> None:
        self._known[suspect] = known
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]

    def usable(self, expert: ExpertInfo) -> bool:
        """Whether it may be asked now."""
        now = monotonic()
        return all(now >= self._known.get(key, (0, 0.0))[1] for key in (expert, expert.peer_id))


def _suspect(expert: ExpertInfo, error: HivemindError) -> PeerID | ExpertInfo | None:
    """Who is to be passed over; nobody where the server is alive: it has refused, or only a stream broke."""
    if isinstance(error, UnknownExpert):
        return expert
    is_silent = isinstance(error, DeadlineExceeded | PeerUnreachable | ProtocolNotSupported)
    return expert.peer_id if is_silent else None
