"""How long one unary call takes, and how many a second go through with several in flight, between two processes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvloop
from common import KIB, MIB, Figure, emit, median, parse_arguments, percentile, seconds_of
from service import connect, serve

from hivemind.proto.runtime_pb2 import Tensor

#: Name, bytes, calls one after another, calls at once.
SIZES = (("1 KiB", KIB, 2000, 32), ("1 MiB", MIB, 200, 4), ("3 MiB", 3 * MIB, 60, 0))


async def rate_of(stub: Any, message: Tensor, in_flight: int, total: int) -> Figure:
    """Calls a second with ``in_flight`` of them at once."""

    async def call_in_turn(count: int) -> None:
        for _ in range(count):
            await stub.rpc_echo(message)

    await asyncio.gather(*(call_in_turn(1) for _ in range(in_flight)))
    each = total // in_flight
    started = time.perf_counter()
    await asyncio.gather(*(call_in_turn(each) for _ in range(in_flight)))
    return in_flight * each / (time.perf_counter() - started), "/s"


async def main(quick: bool) -> None:
    """Echo messages of three sizes."""
    figures: dict[str, Figure] = {}
    async with connect(__file__) as stub:
        for name, size, repeat, in_flight in SIZES:
            count = repeat // 4 if quick else repeat
            message = Tensor(buffer=bytes(size))
            seconds = await seconds_of(lambda message=message: stub.rpc_echo(message), count)
            figures[f"unary {name}, median"] = median(seconds)
            if in_flight:
                figures[f"unary {name}, p99"] = percentile(seconds, 0.99)
                figures[f"unary {name}, {in_flight} in flight"] = await rate_of(stub, message, in_flight, 2 * count)
    emit(figures)


if __name__ == "__main__":
    options = parse_arguments(("--serve", {"action": "store_true"}))
    if options.serve:
        serve()
    else:
        uvloop.run(main(options.quick))
