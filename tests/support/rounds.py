"""Groups of peers on the in-memory network that run one round of averaging."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import torch

from hivemind.averaging.allreduce import AllReduceResult, AllReduceRunner
from hivemind.averaging.messages import PartMessage
from hivemind.clock import Deadline
from hivemind.errors import ProtocolViolation
from hivemind.p2p import P2P, MemoryNetwork, P2PContext, PeerID, ServicerBase

GROUP = b"group-of-twenty-byte"
PREFIX = "tests"


class RoundServicer(ServicerBase):
    """Hands calls to the one round of this peer."""

    def __init__(self) -> None:
        self.runner: AllReduceRunner | None = None

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[PartMessage], context: P2PContext
    ) -> AsyncIterator[PartMessage]:
        if self.runner is None:
            raise ProtocolViolation("no round here")
        async with aclosing(self.runner.rpc_aggregate_part(stream, context)) as answers:
            async for answer in answers:
                yield answer


class Member:
    """One peer, its tensors and its round."""

    def __init__(self, p2p: P2P, tensors: list[torch.Tensor]) -> None:
        self.p2p = p2p
        self.tensors = tensors
        self.before = [tensor.clone() for tensor in tensors]
        self.servicer = RoundServicer()

    @property
    def peer_id(self) -> PeerID:
        return self.p2p.peer_id

    @property
    def runner(self) -> AllReduceRunner:
        assert self.servicer.runner is not None
        return self.servicer.runner

    def join(self, peers: Sequence[PeerID], counts: Sequence[int], **options: Any) -> AllReduceRunner:
        """Construct the round of this member."""
        options = {"sender_timeout": 5.0, "reducer_timeout": 10.0, "part_size_bytes": 64, **options}
        options.setdefault("deadline", Deadline.after(60))
        self.servicer.runner = AllReduceRunner(
            p2p=self.p2p,
            servicer_type=RoundServicer,
            prefix=PREFIX,
            group_id=GROUP,
            tensors=self.tensors,
            ordered_peer_ids=peers,
            peer_counts=counts,
            **options,
        )
        return self.servicer.runner

    def unchanged(self) -> bool:
        """Whether the tensors are what they were at first."""
        return all(torch.equal(now, then) for now, then in zip(self.tensors, self.before, strict=True))


@asynccontextmanager
async def members(net: MemoryNetwork, count: int, shapes: Sequence[tuple[int, ...]]) -> AsyncIterator[list[Member]]:
    """``count`` peers with random tensors (normal, seeded) of ``shapes``, their servicers in place."""
    generator = torch.Generator().manual_seed(count)
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            p2p = await stack.enter_async_context(await net.create_p2p())
            member = Member(p2p, [torch.randn(shape, generator=generator) for shape in shapes])
            await member.servicer.add_p2p_handlers(p2p, namespace=PREFIX)
            made.append(member)
        yield made


async def run_all(runners: Sequence[AllReduceRunner]) -> list[AllReduceResult | BaseException]:
    """Run all at once; what each gave or raised."""
    return await asyncio.gather(*(runner.run() for runner in runners), return_exceptions=True)
