"""What peers of the soak call of each other: every answer can be told from a wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hivemind.p2p import P2PContext, ServicerBase
from hivemind.proto.runtime_pb2 import Tensor
from hivemind.proto.test_pb2 import TestRequest, TestResponse

__all__ = ["Soaked", "content"]


def content(seed: int, size: int) -> bytes:
    """Bytes that differ with ``seed`` and from place to place."""
    unit = seed.to_bytes(8, "big") + bytes(range(seed % 64, 64))
    return (unit * (size // len(unit) + 1))[:size]


class Soaked(ServicerBase):
    """A handler of each shape."""

    def __init__(self) -> None:
        #: handlers that run now
        self.running = 0

    async def rpc_echo(self, request: Tensor, context: P2PContext) -> Tensor:
        return Tensor(buffer=request.buffer[::-1])

    async def rpc_sum(self, requests: AsyncIterator[TestRequest], context: P2PContext) -> TestResponse:
        return TestResponse(number=sum([request.number async for request in requests]))

    async def rpc_count(self, request: TestRequest, context: P2PContext) -> AsyncIterator[Tensor]:
        for number in range(request.number):
            yield Tensor(buffer=content(number, 30_000))

    async def rpc_turns(self, requests: AsyncIterator[Tensor], context: P2PContext) -> AsyncIterator[Tensor]:
        async for request in requests:
            yield Tensor(buffer=request.buffer[::-1])

    async def rpc_sleep(self, request: TestRequest, context: P2PContext) -> TestResponse:
        """Wait for as long as nobody would; ends by being cancelled."""
        self.running += 1
        try:
            await asyncio.sleep(request.number)
        finally:
            self.running -= 1
        return TestResponse(number=request.number)
