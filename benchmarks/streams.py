"""How many bytes a second go through one stream, to a handler and from one; caller and callee are two processes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, AsyncIterator  # noqa: UP035 (1.1.12 knows a stream by this one only)

import uvloop
from common import KIB, MIB, emit, parse_arguments
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


async def rate_of(transfer: Callable[[Any, int, int], Awaitable[None]], stub: Any, size: int, total: int) -> float:
    """Bytes a second, after a tenth of the transfer that is not counted."""
    await transfer(stub, size, total // size // 10)
    started = time.perf_counter()
    await transfer(stub, size, total // size)
    return total / (time.perf_counter() - started)


async def main(quick: bool) -> None:
    """Both directions, messages of 256 KiB and of 1 MiB."""
    total = (64 if quick else 256) * MIB
    async with connect(__file__) as stub:
        emit(
            {
                "stream to a handler, 256 KiB messages": await rate_of(up, stub, 256 * KIB, total),
                "stream to a handler, 1 MiB messages": await rate_of(up, stub, MIB, total),
                "stream from a handler, 256 KiB messages": await rate_of(down, stub, 256 * KIB, total),
                "stream from a handler, 1 MiB messages": await rate_of(down, stub, MIB, total),
            }
        )


if __name__ == "__main__":
    options = parse_arguments(("--serve", {"action": "store_true"}))
    if options.serve:
        serve()
    else:
        uvloop.run(main(options.quick))
