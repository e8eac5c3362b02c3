"""Calls of all kinds, again and again: each checks its answer, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hivemind.aio import TaskScope, as_aiter
from hivemind.errors import DeadlineExceeded, HivemindError
from hivemind.proto.runtime_pb2 import Tensor
from hivemind.proto.test_pb2 import TestRequest
from tests.soak.service import content

__all__ = ["KINDS", "Load"]

#: Kinds of calls, and how many of each are in flight: 200 together.
KINDS = {"small": 90, "large": 30, "sum": 15, "count": 15, "turns": 15, "cancel": 15, "drop": 10, "deadline": 10}
LARGE = 256 * 1024
#: Seconds of a handler that nobody waits for.
ENDLESS = 3600
#: Seconds within which any call must have come back, on a machine under load.
PATIENCE = 60.0


class WrongAnswer(AssertionError):
    """What should never happen."""


def expect(right: bool, what: str) -> None:
    if not right:
        raise WrongAnswer(what)


class Load:
    """Calls to one peer until it is told to stop.

    :param stub: of `service.Soaked`
    """

    def __init__(self, stub: Any, counts: Counter[str]) -> None:
        self.counts = counts
        self._stub = stub
        self._numbers = itertools.count(1)
        self._scope = TaskScope("load")
        self._stopping = False

    def start(self, share: float = 1.0, *, fragile: bool = False) -> None:
        """Begin.

        :param share: of the calls of `KINDS` in flight
        :param fragile: the peer may go at any time, and this load with it
        """
        for kind, count in KINDS.items():
            for _ in range(max(1, round(count * share))):
                self._scope.start(self._repeat(getattr(self, f"_{kind}"), kind, fragile))

    async def stop(self) -> None:
        """Let what is in flight come to its end."""
        self._stopping = True
        if tasks := tuple(self._scope.tasks):
            await asyncio.wait(tasks, timeout=PATIENCE)
        await self._scope.close()

    async def _repeat(self, call: Callable[[int], Awaitable[None]], kind: str, fragile: bool) -> None:
        while not self._stopping:
            try:
                async with asyncio.timeout(PATIENCE):
                    await call(next(self._numbers))
            except WrongAnswer as error:
                self.counts[f"WRONG {kind}: {error}"] += 1
            except (HivemindError, TimeoutError) as error:
                if fragile:
                    self.counts["calls to peers that died"] += 1
                    return
                self.counts[f"FAILED {kind}: {type(error).__name__}: {str(error)[:200]}"] += 1
            else:
                self.counts[kind] += 1

    async def _echo(self, number: int, size: int) -> None:
        sent = content(number, size)
        answer = await self._stub.rpc_echo(Tensor(buffer=sent))
        expect(answer.buffer == sent[::-1], f"echo of {size} bytes")

    async def _small(self, number: int) -> None:
        await self._echo(number, number % 2000)

    async def _large(self, number: int) -> None:
        await self._echo(number, LARGE)

    async def _sum(self, number: int) -> None:
        values = [TestRequest(number=number % 1000 + each) for each in range(10)]
        answer = await self._stub.rpc_sum(as_aiter(*values))
        expect(answer.number == sum(value.number for value in values), "sum")

    async def _count(self, number: int) -> None:
        got = 0
        async for answer in await self._stub.rpc_count(TestRequest(number=number % 8)):
            expect(answer.buffer == content(got, 30_000), "count")
            got += 1
        expect(got == number % 8, f"{got} answers, not {number % 8}")

    async def _turns(self, number: int) -> None:
        sent = [content(number + each, 40_000 * each) for each in range(5)]
        got = [answer.buffer async for answer in await self._stub.rpc_turns(as_aiter(*map(_tensor, sent)))]
        expect(got == [each[::-1] for each in sent], "turns")

    async def _cancel(self, number: int) -> None:
        """A call that is given up while its handler works."""
        try:
            async with asyncio.timeout(random.uniform(0, 0.3)):
                await self._stub.rpc_sleep(TestRequest(number=ENDLESS))
        except TimeoutError as error:
            expect(not isinstance(error, HivemindError), "cancelled, but told of a deadline")
        else:
            raise WrongAnswer("an answer of a handler that does not end")

    async def _drop(self, number: int) -> None:
        """A stream that is left in the middle."""
        answers: AsyncIterator[Tensor] = await self._stub.rpc_count(TestRequest(number=500))
        async for answer in answers:
            expect(len(answer.buffer) == 30_000, "count")
            if random.random() < 0.3:
                break
        with contextlib.suppress(HivemindError):
            await answers.aclose()  # type: ignore[attr-defined]

    async def _deadline(self, number: int) -> None:
        try:
            await self._stub.rpc_sleep(TestRequest(number=ENDLESS), timeout=random.uniform(0.01, 0.5))
        except DeadlineExceeded:
            return
        raise WrongAnswer("an answer of a handler that does not end")


def _tensor(data: bytes) -> Tensor:
    return Tensor(buffer=data)
