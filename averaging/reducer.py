"""The mean of the parts that one peer reduces: who has delivered what, and when a part is complete.

Reducers of hivemind 1.1 work in lock-step: no sender may be a part ahead of another. Here a sender may be ahead; a
part is reduced as soon as the last live sender has delivered it, in the order of the senders rather than of arrival, so
that the same inputs give the same bits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import torch

from hivemind.averaging.arithmetic import weighted_mean
from hivemind.averaging.partition import POOL_THRESHOLD_BYTES
from hivemind.errors import AllreduceException, BannedException, ProtocolViolation
from hivemind.runtime import in_pool

__all__ = ["PartLedger", "TensorPartReducer", "mean_of_tensors"]

V = TypeVar("V")
R = TypeVar("R")


class PartLedger:
    """Who has delivered which part. Pure.

    Each sender delivers parts 0, 1, 2, …; a part is complete once all live senders have delivered it. A sender that is
    banned has no share in parts it has not delivered, and keeps its share in those it has.

    :param num_parts: parts to come from each sender
    :param num_senders: senders, all of them live
    """

    def __init__(self, num_parts: int, num_senders: int) -> None:
        self.num_parts = num_parts
        #: parts that each sender has delivered
        self.delivered = [0] * num_senders
        self.banned: set[int] = set()

    def deliver(self, sender: int, part: int) -> None:
        """
        :raises BannedException: if the sender is banned
        :raises ProtocolViolation: if the part is not the next of this sender
        """
        if sender in self.banned:
            raise BannedException(f"sender {sender} is excluded from the round")
        if part != self.delivered[sender] or part >= self.num_parts:
            raise ProtocolViolation(f"part {part} of {self.num_parts} came after {self.delivered[sender]} parts")
        self.delivered[sender] += 1

    def ban(self, sender: int) -> bool:
        """Exclude a sender from what it has not delivered; False if it is banned or has delivered everything."""
        if sender in self.banned or self.delivered[sender] >= self.num_parts:
            return False
        self.banned.add(sender)
        return True

    @property
    def complete(self) -> int:
        """So many parts, from the first on, are complete."""
        live = (count for sender, count in enumerate(self.delivered) if sender not in self.banned)
        return min(live, default=self.num_parts)


def mean_of_tensors(part_index: int, inputs: Mapping[int, tuple[torch.Tensor, float]]) -> torch.Tensor:
    """The weighted mean of tensors by sender.

    :raises AllreduceException: if there are none, or all weights are 0
    """
    chosen = [inputs[sender] for sender in sorted(inputs)]
    if not any(weight > 0 for _, weight in chosen):
        raise AllreduceException(f"part {part_index}: nobody has contributed with a weight over 0")
    return weighted_mean([value for value, _ in chosen], [weight for _, weight in chosen])


class TensorPartReducer(Generic[V, R]):
    """Gathers parts by sender and reduces each one that is complete. Owned by one event loop.

    :param part_shapes: of the parts, in order
    :param num_senders: senders 0, 1, …, this peer among them if it contributes
    :param reduce: makes the result of a part from what its senders have delivered (value and weight by sender); called
        once for each part, for large ones in the pool, and may use up the values. By default the weighted mean
    """

    def __init__(
        self,
        part_shapes: Sequence[torch.Size],
        num_senders: int,
        reduce: Callable[[int, Mapping[int, tuple[V, float]]], R] | None = None,
    ) -> None:
        self.ledger = PartLedger(len(part_shapes), num_senders)
        self._sizes = [shape.numel() for shape in part_shapes]
        self._reduce = reduce if reduce is not None else cast("Callable[[int, Any], R]", mean_of_tensors)
        # values by sender are dropped once the part is reduced
        self._inputs: list[dict[int, tuple[V, float]]] = [{} for _ in part_shapes]
        self._results: dict[int, R] = {}
        self._locks = [asyncio.Lock() for _ in part_shapes]
        self._running = [threading.Lock() for _ in part_shapes]
        self._complete = [asyncio.Event() for _ in part_shapes]
        self._announced = 0
        self._over: str | None = None

    async def accumulate_part(self, sender_index: int, part_index: int, tensor_part: V, weight: float = 1.0) -> R:
        """Deliver one part and wait for its result; see `deliver` and `result`."""
        self.deliver(sender_index, part_index, tensor_part, weight)
        return await self.result(part_index)

    def deliver(self, sender_index: int, part_index: int, tensor_part: V, weight: float) -> None:
        """Take the next part of a sender.

        :param weight: a finite number >= 0
        :raises ProtocolViolation: if it is not the next part of this sender
        :raises BannedException: if the sender is banned
        """
        self.ledger.deliver(sender_index, part_index)
        self._inputs[part_index][sender_index] = (tensor_part, weight)
        self._announce()

    async def result(self, part_index: int) -> R:
        """The result of a part, once all live senders have delivered it. The wait is the caller's to bound.

        :raises AllreduceException: if the round is over before
        """
        await self._complete[part_index].wait()
        async with self._locks[part_index]:
            if part_index not in self._results:
                if self._over is not None:
                    raise AllreduceException(self._over)
                await self._run(part_index)
                self._inputs[part_index].clear()
        return self._results[part_index]

    async def _run(self, part_index: int) -> None:
        if 4 * self._sizes[part_index] < POOL_THRESHOLD_BYTES:
            self._reduce_once(part_index)
        else:
            await in_pool(self._reduce_once, part_index)

    def _reduce_once(self, part_index: int) -> None:
        # a waiter that is cancelled leaves its work running in the pool; the next one waits for it here
        with self._running[part_index]:
            if part_index not in self._results:
                self._results[part_index] = self._reduce(part_index, self._inputs[part_index])

    def on_sender_failed(self, sender_index: int) -> bool:
        """Go on without a sender; False if nothing more was expected of it."""
        banned = self.ledger.ban(sender_index)
        self._announce()
        return banned

    def finalize(self, reason: str = "the round is over") -> None:
        """End: waiters get `AllreduceException`, unless their part is reduced already. Idempotent."""
        if self._over is None:
            self._over = reason
            self._inputs = [{} for _ in self._inputs]
            for event in self._complete:
                event.set()

    def _announce(self) -> None:
        complete = self.ledger.complete
        for event in self._complete[self._announced : complete]:
            event.set()
        self._announced = max(self._announced, complete)
