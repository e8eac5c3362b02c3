"""The service that the call benchmarks use, and the process that serves it."""

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator  # noqa: UP035 (1.1.12 knows a stream by this one only)

import uvloop
from common import LOCAL, MIB, child, emit

from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.proto.runtime_pb2 import Tensor
from hivemind.proto.test_pb2 import TestRequest, TestResponse


class Bytes(ServicerBase):
    """Takes bytes, gives bytes."""

    async def rpc_echo(self, request: Tensor, context: P2PContext) -> Tensor:
        return request

    async def rpc_take(self, requests: AsyncIterator[Tensor], context: P2PContext) -> TestResponse:
        total = 0
        async for request in requests:
            total += len(request.buffer)
        return TestResponse(number=total // MIB)

    async def rpc_give(self, request: TestRequest, context: P2PContext) -> AsyncIterator[Tensor]:
        """``number`` messages of a size in KiB that is packed into its lower 16 bits."""
        message = Tensor(buffer=bytes((request.number & 0xFFFF) * 1024))
        for _ in range(request.number >> 16):
            yield message


async def _serve() -> None:
    p2p = await P2P.create(**LOCAL)
    await Bytes().add_p2p_handlers(p2p)
    maddrs = [str(maddr) for maddr in await p2p.get_visible_maddrs()]
    emit({"peer_id": p2p.peer_id.to_base58(), "maddrs": maddrs})
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await p2p.shutdown()


@asynccontextmanager
async def connect(script: str) -> AsyncIterator[Any]:
    """A stub to ``Bytes`` in another process of ``script --serve``."""
    with child(script, "--serve") as other:
        started = await asyncio.get_running_loop().run_in_executor(None, other.receive)
        p2p = await P2P.create(initial_peers=started["maddrs"], **LOCAL)
        yield Bytes.get_stub(p2p, PeerID.from_base58(started["peer_id"]))
        await p2p.shutdown()


def serve() -> None:
    """Serve until standard input ends, on the loop that users of either library get."""
    uvloop.run(_serve())
