"""How many bytes a second go through streams, to a handler and from one; caller and callee are two processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, AsyncIterator  # noqa: UP035 (1.1.12 knows a stream by this one only)

import uvloop
from common import KIB, MIB, Figure, emit, parse_arguments
from service import connect, serve

from hivemind.proto.runtime_pb2 import Tensor
from hivemind.proto.test_pb2 import TestRequest


async def up(stub: Any, size: int, count: int) -> None:
    """Send ``count`` messages of ``size`` bytes; the handler says how much came."""
    message = Tensor(buffer=bytes(size))

    async def messages() -> AsyncIterator[Tensor]:
        for _ in range(count):
            yield message

    taken = (await stub.rpc_take(messages())).number
    if taken != size * count // MIB:
        raise RuntimeError(f"{taken} of {size * count // MIB} MiB arrived")


async def down(stub: Any, size: int, count: int) -> None:
    """Receive ``count`` messages of ``size`` bytes."""
    received = 0
    async for message in await stub.rpc_give(TestRequest(number=count << 16 | size // KIB)):
        received += len(message.buffer)
    if received != size * count:
        raise RuntimeError(f"{received} of {size * count} bytes arrived")


Transfer = Callable[[Any, int, int], Awaitable[None]]


async def rate_of(transfer: Transfer, stub: Any, size: int, total: int, streams: int = 1) -> Figure:
    """Bytes a second, after a tenth of the transfer that is not counted."""
    await transfer(stub, size, total // size // 10)
    started = time.perf_counter()
    await asyncio.gather(*(transfer(stub, size, total // size // streams) for _ in range(streams)))
    return total / (time.perf_counter() - started), "B/s"


async def main(quick: bool) -> None:
    """Both directions, messages of 256 KiB and of 1 MiB, one stream and four at once."""
    total = (64 if quick else 256) * MIB
    async with connect(__file__) as stub:
        emit(
            {
                "stream to a handler, 256 KiB messages": await rate_of(up, stub, 256 * KIB, total),
                "stream to a handler, 1 MiB messages": await rate_of(up, stub, MIB, total),
                "four streams to a handler, 256 KiB messages": await rate_of(up, stub, 256 * KIB, total, 4),
                "stream from a handler, 256 KiB messages": await rate_of(down, stub, 256 * KIB, total),
                "stream from a handler, 1 MiB messages": await rate_of(down, stub, MIB, total),
                "four streams from a handler, 256 KiB messages": await rate_of(down, stub, 256 * KIB, total, 4),
            }
        )


if __name__ == "__main__":
    options = parse_arguments(("--serve", {"action": "store_true"}))
    if options.serve:
        serve()
    else:
        uvloop.run(main(options.quick))
