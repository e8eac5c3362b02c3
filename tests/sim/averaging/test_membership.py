"""A closed DHT makes a closed run: strangers neither join groups, nor lead them, nor download the state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from hivemind.averaging import AveragerCore, AveragerOptions, Hooks
from hivemind.averaging.servicer import servicer_named
from hivemind.clock import get_dht_time
from hivemind.crypto import RSAPrivateKey
from hivemind.dht import DHTNode
from hivemind.errors import AllreduceException, HivemindError, P2PHandlerError
from hivemind.p2p import (
    P2P,
    AllowlistAuthorizer,
    AuthorizerBase,
    MemoryNetwork,
    P2PContext,
    PeerID,
    ServicerBase,
)
from hivemind.proto import averaging_pb2, dht_pb2
from hivemind.virtual_clock import run_virtual
from tests.support.authority import TokenAuthorizer

#: Made once: keys take their time.
KEYS = [RSAPrivateKey() for _ in range(3)]
OPTIONS: dict[str, Any] = {"min_matchmaking_time": 5.0, "request_timeout": 1.0}


@dataclass
class Member:
    core: AveragerCore
    node: DHTNode
    p2p: P2P


@dataclass
class Swarm:
    net: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(0))
    members: list[Member] = field(default_factory=list)

    async def join(self, authorizer: AuthorizerBase | None, value: float, *, client_mode: bool = False) -> Member:
        p2p = await self.net.create_p2p()
        addresses = await self.members[0].p2p.get_visible_maddrs() if self.members else None
        node = await DHTNode.create(p2p, initial_peers=addresses, authorizer=authorizer, client_mode=client_mode)
        core = AveragerCore(
            [torch.full((4,), value)],
            dht=node,
            p2p=p2p,
            prefix="run",
            options=AveragerOptions(**OPTIONS),
            client_mode=client_mode,
            hooks=Hooks(membership=node.membership),
        )
        self.members.append(Member(core, node, p2p))
        await core.start()
        return self.members[-1]


@asynccontextmanager
async def swarm() -> AsyncIterator[Swarm]:
    made = Swarm()
    with made.net.delay(0.01):
        try:
            yield made
        finally:
            for member in made.members:
                await member.core.close()
                await member.node.shutdown()
                await member.p2p.shutdown()


def stub_of(caller: P2P, callee: PeerID) -> Any:
    return servicer_named("DecentralizedAverager").get_stub(caller, callee, namespace="run")


async def join_request(caller: P2P, leader: Member) -> averaging_pb2.MessageFromLeader:
    request = averaging_pb2.JoinRequest(schema_hash=leader.core.schema_hash, group_key="run.0b", expiration=1e18)
    return await anext(await stub_of(caller, leader.p2p.peer_id).rpc_join_group(request))


async def download(caller: P2P, donor: Member) -> int:
    return len(
        [
            each
            async for each in await stub_of(caller, donor.p2p.peer_id).rpc_download_state(
                averaging_pb2.DownloadRequest()
            )
        ]
    )


async def average(members: list[Member]) -> list[Any]:
    return await asyncio.gather(*(each.core.step(timeout=30) for each in members), return_exceptions=True)


def tokens(number: int) -> TokenAuthorizer:
    return TokenAuthorizer(f"peer {number}", lifetime=1e6, key=KEYS[number])


def test_an_allowlist_guards_averaging() -> None:
    async def scenario() -> None:
        allowed = AllowlistAuthorizer([])
        async with swarm() as made:
            first = await made.join(allowed, 0.0)
            allowed.allow(first.p2p.peer_id)
            stranger = await made.net.create_p2p(await first.p2p.get_visible_maddrs())
            for attempt in (join_request, download):
                with pytest.raises(P2PHandlerError, match=f"{stranger.peer_id} is not on the allowlist"):
                    await attempt(stranger, first)
            allowed.allow(stranger.peer_id)
            assert (await join_request(stranger, first)).code == averaging_pb2.NOT_LOOKING_FOR_GROUP
            assert await download(stranger, first) > 0
            await stranger.shutdown()

    run_virtual(scenario)


@pytest.mark.parametrize("make", [tokens, lambda number: None], ids=["tokens", "open"])
def test_members_average(make: Callable[[int], AuthorizerBase | None]) -> None:
    async def scenario() -> None:
        async with swarm() as made:
            members = [await made.join(make(number), float(number), client_mode=number == 2) for number in range(3)]
            results = await average(members)
            assert [len(result) for result in results] == [3, 3, 3], results
            assert [member.core.tensors[0][0].item() for member in members] == [1.0, 1.0, 1.0]
            state = await members[2].core.load_state(None)
            assert state is not None

    run_virtual(scenario)


def test_tokens_guard_averaging() -> None:
    async def scenario() -> None:
        async with swarm() as made:
            first = await made.join(tokens(0), 0.0)
            stranger = await made.net.create_p2p(await first.p2p.get_visible_maddrs())
            pings = 0

            async def has_no_token(request: Any, context: Any) -> Any:
                nonlocal pings
                pings += 1
                return dht_pb2.PingResponse()

            for attempt in (join_request, download):
                with pytest.raises(P2PHandlerError, match="has shown no valid authorization"):
                    await attempt(stranger, first)
            # one that answers pings, without a token, is asked seldom
            await asyncio.sleep(6)
            await stranger.add_protobuf_handler("DHTProtocol.rpc_ping", has_no_token, dht_pb2.PingRequest)
            for _ in range(20):
                with pytest.raises(P2PHandlerError, match="has shown no valid authorization"):
                    await download(stranger, first)
            assert pings == 1
            await stranger.shutdown()
            # what a member has shown counts for a while
            second = await made.join(tokens(1), 1.0)
            assert await download(second.p2p, first) > 0
            third = await made.join(tokens(2), 2.0, client_mode=True)
            await third.node.membership.meet(first.p2p.peer_id)
            assert await download(third.p2p, first) > 0
            await third.node.shutdown()  # else its DHT would show it again
            await asyncio.sleep(400)
            with pytest.raises(P2PHandlerError, match="has shown no valid authorization"):
                await download(third.p2p, first)

    run_virtual(scenario)


def test_strangers_neither_lead_nor_are_taken_into_a_group() -> None:
    async def scenario() -> None:
        async with swarm() as made:
            # the first two do not guard, as those of hivemind 1.1
            open_leader, stranger = await made.join(None, 0.0), await made.join(None, 1.0)
            wary = await made.join(AllowlistAuthorizer([open_leader.p2p.peer_id]), 2.0)
            results = await average(made.members)
            for result, own in zip(results, made.members, strict=True):
                together = () if isinstance(result, HivemindError) else tuple(result)
                strangers = {stranger.p2p.peer_id, wary.p2p.peer_id} <= {own.p2p.peer_id, *together}
                assert not strangers, result
            assert wary.core.tensors[0][0].item() in (1.0, 2.0), "of the average of two, or its own"
            with pytest.raises(HivemindError, match="is not on the allowlist"):
                await wary.node.membership.meet(stranger.p2p.peer_id)

    run_virtual(scenario)


class Careless(ServicerBase):
    """A leader, as one of hivemind 1.1, that takes a stranger into the group of a member."""

    def __init__(self, own: PeerID, stranger: PeerID) -> None:
        self.group = [own, stranger]
        self.asked = self.parts = 0

    async def rpc_join_group(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.MessageFromLeader]:
        self.asked += 1
        yield averaging_pb2.MessageFromLeader(code=averaging_pb2.ACCEPTED)
        group = [each.to_bytes() for each in (*self.group, context.remote_id)]
        blobs = [request.gather] * len(group)
        yield averaging_pb2.MessageFromLeader(
            code=averaging_pb2.BEGIN_ALLREDUCE, group_id=b"g" * 20, ordered_peer_ids=group, gathered=blobs
        )

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        self.parts += 1
        yield averaging_pb2.AveragingData(code=averaging_pb2.CANCELLED)


Careless.__name__ = "DecentralizedAverager"


def test_a_group_with_a_stranger_is_left() -> None:
    async def scenario() -> None:
        async with swarm() as made:
            host = await made.join(None, 0.0)
            await host.core.close()
            stranger = await made.net.create_p2p(await host.p2p.get_visible_maddrs())
            leader = Careless(host.p2p.peer_id, stranger.peer_id)
            await leader.add_p2p_handlers(host.p2p, namespace="run")
            wary = await made.join(AllowlistAuthorizer([host.p2p.peer_id]), 2.0)
            keys = host.core.keys
            await keys.declare_averager(keys.current_key, get_dht_time() + 4.0)
            (result,) = await average([wary])
            assert leader.asked >= 1
            assert leader.parts == 0
            assert isinstance(result, AllreduceException)
            assert "could not find a group" in str(result)
            assert wary.core.tensors[0][0].item() == 2.0
            await stranger.shutdown()

    run_virtual(scenario)
