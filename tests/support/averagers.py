"""A swarm of averagers on the in-memory network, for tests under the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from hivemind.averaging import AveragerCore, AveragerOptions
from hivemind.dht import DHTNode
from hivemind.p2p import MemoryNetwork, PeerID

SIZES = (5, 3)


async def exactly_when(condition: Callable[[], object], what: str, *, seconds: float = 30.0) -> None:
    """Wait until ``condition()`` is true, to the virtual millisecond."""
    for _ in range(int(seconds * 1000)):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{what}: not so after {seconds} s")


def group_sizes(results: Iterable[Mapping[PeerID, Any] | BaseException]) -> set[int]:
    """The sizes of the groups that steps were in; the first error is raised."""
    sizes = set()
    for result in results:
        if isinstance(result, BaseException):
            raise result
        sizes.add(len(result))
    return sizes


@dataclass
class Member:
    """One averager with its node."""

    core: AveragerCore
    node: DHTNode
    value: float
    addresses: list[Any]

    @property
    def peer_id(self) -> PeerID:
        return self.node.peer_id

    @property
    def values(self) -> set[float]:
        """All numbers in its tensors, rounded; a torn tensor has several."""
        return {round(value, 4) for tensor in self.core.tensors for value in tensor.flatten().tolist()}

    def reset(self) -> None:
        for tensor in self.core.tensors:
            tensor.fill_(self.value)


@dataclass
class Swarm:
    """Averagers, numbered; the tensors of each hold its number."""

    net: MemoryNetwork
    members: list[Member] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    name: str = "DecentralizedAverager"

    async def join(
        self,
        *,
        start: bool = True,
        client_mode: bool = False,
        hooks: Any = None,
        sizes: Sequence[int] = SIZES,
        **options: Any,
    ) -> Member:
        """One more member."""
        alive = [member for member in self.members if member.peer_id in self.net.peers and not member.core.client_mode]
        initial_peers = [address for member in alive[:3] for address in member.addresses]
        p2p = await self.net.create_p2p(initial_peers)
        node = await DHTNode.create(p2p, initial_peers=initial_peers or None, client_mode=client_mode)
        value = float(len(self.members))
        core = AveragerCore(
            [torch.full((size,), value) for size in sizes],
            dht=node,
            p2p=p2p,
            prefix="pre",
            options=AveragerOptions(**{**self.defaults, **options}),
            client_mode=client_mode,
            name=self.name,
            hooks=hooks,
        )
        member = Member(core, node, value, await p2p.get_visible_maddrs())
        self.members.append(member)
        if start:
            await core.start()
        return member

    async def step_all(
        self, members: Iterable[Member] | None = None, **arguments: Any
    ) -> list[Mapping[PeerID, Any] | BaseException]:
        """All step at the same time; results and errors in their order."""
        chosen = self.members if members is None else list(members)
        steps = (member.core.step(gather=int(member.value), **arguments) for member in chosen)
        return await asyncio.gather(*steps, return_exceptions=True)

    async def leave(self, member: Member) -> None:
        """A member closes in order."""
        await member.core.close()
        await member.node.shutdown()
        await member.node.p2p.shutdown()
        self.members.remove(member)


@asynccontextmanager
async def averagers(count: int, *, delay: float = 0.01, seed: int = 0, **options: Any) -> AsyncIterator[Swarm]:
    """A swarm of ``count`` averagers; ``options`` are those of each."""
    swarm = Swarm(MemoryNetwork(seed), defaults=options)
    with swarm.net.delay(delay):
        for _ in range(count):
            await swarm.join(start=False)
        await asyncio.gather(*(member.core.start() for member in swarm.members))
        try:
            yield swarm
        finally:
            members = list(swarm.members)
            await asyncio.gather(*(member.core.close() for member in members))
            await asyncio.gather(*(member.node.shutdown() for member in members))
            await asyncio.gather(*(member.node.p2p.shutdown() for member in members))
