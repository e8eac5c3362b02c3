"""How long one unary call takes, and how many a second go through with 32 in flight, between two processes."""

from __future__ import annotations

import asyncio
import time

import uvloop
from common import KIB, MIB, emit, median, parse_arguments, seconds_of
from service import connect, serve

from hivemind.proto.runtime_pb2 import Tensor

IN_FLIGHT = 32


async def main(quick: bool) -> None:
    """Echo 1 KiB and 1 MiB, then 1 KiB from many callers at once."""
    async with connect(__file__) as stub:
        small, large = Tensor(buffer=bytes(KIB)), Tensor(buffer=bytes(MIB))
        of_small = await seconds_of(lambda: stub.rpc_echo(small), 200 if quick else 1000)
        of_large = await seconds_of(lambda: stub.rpc_echo(large), 30 if quick else 100)

        async def call_in_turn(count: int) -> None:
            for _ in range(count):
                await stub.rpc_echo(small)

        each = 30 if quick else 150
        await asyncio.gather(*(call_in_turn(3) for _ in range(IN_FLIGHT)))
        started = time.perf_counter()
        await asyncio.gather(*(call_in_turn(each) for _ in range(IN_FLIGHT)))
        rate = IN_FLIGHT * each / (time.perf_counter() - started)
    emit(
        {"unary call, 1 KiB": median(of_small), "unary call, 1 MiB": median(of_large), "calls with 32 in flight": rate}
    )


if __name__ == "__main__":
    options = parse_arguments(("--serve", {"action": "store_true"}))
    if options.serve:
        serve()
    else:
        uvloop.run(main(options.quick))
