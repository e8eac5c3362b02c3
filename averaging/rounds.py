"""The rounds that this peer is in, by group: from the group's first sight to the end of its exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.averaging.changes import Changes
from hivemind.averaging.group import GroupInfo
from hivemind.clock import Deadline

__all__ = ["Rounds"]


@dataclass
class _Round:
    deadline: Deadline
    runner: AllReduceRunner | None = None


class Rounds:
    """Brings parts that other members send to the round they belong to. Owned by the network loop.

    A member that got the group earlier may send before this peer knows of the group, or before it has been allowed to
    begin: its parts then wait, within bounds.

    :param is_looking: whether this peer may still learn of a group
    :param seconds: how long parts of an unknown group wait while it does
    """

    def __init__(self, is_looking: Callable[[], bool], *, seconds: float) -> None:
        self._is_looking = is_looking
        self._seconds = seconds
        self._rounds: dict[bytes, _Round] = {}
        #: notified with each round that begins, gets its runner, or ends
        self.changes = Changes()

    def __len__(self) -> int:
        return len(self._rounds)

    def begin(self, group: GroupInfo, deadline: Deadline) -> None:
        """This peer is in ``group``; its exchange begins and ends before ``deadline``."""
        # a step that is cancelled at this very moment never ends its round
        self._rounds = {key: known for key, known in self._rounds.items() if not known.deadline.expired}
        self._rounds[group.group_id] = _Round(deadline)
        self.changes.notify()

    def run(self, group_id: bytes, runner: AllReduceRunner) -> None:
        """The exchange of the group begins. Several runners may serve one group, one after the other, each under an id
        of its own (phases of PowerSGD)."""
        known = self._rounds.get(group_id)
        if known is not None:
            known.runner = runner
        self.changes.notify()

    def end(self, group_id: bytes) -> None:
        """The round is over; idempotent."""
        self._rounds.pop(group_id, None)
        self.changes.notify()

    async def runner_of(self, group_id: bytes) -> AllReduceRunner | None:
        """The exchange of the group; None if this peer is not in it.

        Waits while this peer may still learn of the group, and then until it has been allowed to begin.
        """
        unknown_until = Deadline.after(self._seconds)
        while True:
            known = self._rounds.get(group_id)
            if known is not None and known.runner is not None:
                return known.runner
            if known is None and not self._is_looking():
                return None
            until = unknown_until if known is None else known.deadline
            if until.expired:
                return None
            await self.changes.wait(until.timeout())
