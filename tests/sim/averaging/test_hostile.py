"""Peers that send what the protocol forbids: their calls fail, the others go on averaging."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from hivemind.clock import Deadline, get_dht_time, monotonic
from hivemind.errors import HivemindError
from hivemind.identity import PeerID
from hivemind.p2p import Mode, P2PContext, ServicerBase
from hivemind.proto import averaging_pb2
from hivemind.proto.averaging_pb2 import MessageCode
from hivemind.virtual_clock import run_virtual
from tests.support.averagers import Member, Swarm, averagers, group_sizes

GATHER = bytes.fromhex("93c000c401c0")
NAMES = [
    f"pre::DecentralizedAverager.{name}" for name in ("rpc_join_group", "rpc_aggregate_part", "rpc_download_state")
]


async def declare_first(swarm: Swarm) -> Member:
    """A peer without an averager that has declared itself before all others: everybody asks it to lead."""
    member = await swarm.join(start=False)
    keys = member.core.keys
    await keys.declare_averager(keys.current_key, get_dht_time() + 4.0)
    return member


def group_of(own: bytes, follower: bytes, fault: str) -> dict[str, Any]:
    """The group that a leader announces to ``follower``, with a fault."""
    many = [b"\x12\x20" + number.to_bytes(32, "big") for number in range(5000)]
    faults: dict[str, dict[str, Any]] = {
        "not me": {"ordered_peer_ids": [own, b"\x12\x20" + b"z" * 32]},
        "twice": {"ordered_peer_ids": [follower, follower]},
        "no id": {"ordered_peer_ids": [b"", follower]},
        "too few blobs": {"gathered": [GATHER]},
        "garbage blobs": {"gathered": [b"\xff\xff", GATHER]},
        "no group id": {"group_id": b""},
        "huge group": {"ordered_peer_ids": [follower, *many], "gathered": [GATHER] * 5001},
        "unreachable group": {"ordered_peer_ids": [own, follower, *many[:3]], "gathered": [GATHER] * 5},
    }
    good = {"group_id": b"g" * 20, "ordered_peer_ids": [own, follower], "gathered": [GATHER, GATHER]}
    return {**good, **faults.get(fault, {})}


class HostileLeader(ServicerBase):
    """Accepts everybody and sends what it is told to."""

    def __init__(self, member: Member, answer: str) -> None:
        self.member, self.answer, self.asked = member, answer, 0

    async def rpc_join_group(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.MessageFromLeader]:
        self.asked += 1
        follower = context.remote_id.to_bytes()
        fields = group_of(self.member.peer_id.to_bytes(), follower, self.answer)
        match self.answer:
            case "silence":
                await asyncio.sleep(1e6)
            case "circle":
                yield averaging_pb2.MessageFromLeader(code=MessageCode.NOT_A_LEADER, suggested_leader=follower)
                return
            case "strange leader":
                stranger = b"\x12\x20" + b"x" * 32
                yield averaging_pb2.MessageFromLeader(code=MessageCode.NOT_A_LEADER, suggested_leader=stranger)
                return
            case "garbage leader":
                yield averaging_pb2.MessageFromLeader(code=MessageCode.NOT_A_LEADER, suggested_leader=b"y" * 1000)
                return
            case "unasked begin":
                yield averaging_pb2.MessageFromLeader(code=MessageCode.BEGIN_ALLREDUCE, **fields)
                return
            case "error":
                raise RuntimeError("no")
        yield averaging_pb2.MessageFromLeader(code=MessageCode.ACCEPTED)
        if self.answer == "keeps waiting":
            await asyncio.sleep(1e6)
        yield averaging_pb2.MessageFromLeader(code=MessageCode.BEGIN_ALLREDUCE, **fields)


HostileLeader.__name__ = "DecentralizedAverager"


@pytest.mark.parametrize(
    "answer",
    [
        "silence",
        "keeps waiting",
        "not me",
        "twice",
        "no id",
        "too few blobs",
        "garbage blobs",
        "no group id",
        "huge group",
        "unreachable group",
        "circle",
        "strange leader",
        "garbage leader",
        "unasked begin",
        "error",
    ],
)
def test_a_hostile_leader(answer: str) -> None:
    async def main() -> None:
        async with averagers(3, sender_timeout=2.0, reducer_timeout=5.0) as swarm:
            hostile = await declare_first(swarm)
            leader = HostileLeader(hostile, answer)
            await leader.add_p2p_handlers(hostile.core._p2p, namespace="pre")
            began = monotonic()
            results = await swarm.step_all(swarm.members[:3], timeout=90)
            assert leader.asked >= 3
            assert monotonic() - began < 60
            assert group_sizes(results) == {3}, results
            assert all(member.values == {1.0} for member in swarm.members[:3])

    run_virtual(main)


def test_hostile_followers() -> None:
    async def main() -> None:
        async with averagers(2) as swarm:
            leader, other = swarm.members
            hostile = await swarm.join(start=False)
            waiting = asyncio.ensure_future(leader.core.step(timeout=60))
            await asyncio.sleep(1)
            stub = leader.core._servicer_type.get_stub(hostile.core._p2p, leader.peer_id, namespace="pre")
            good: dict[str, Any] = {
                "schema_hash": leader.core.schema_hash,
                "expiration": get_dht_time() + 30,
                "gather": GATHER,
                "group_key": "pre.0b",
            }
            for fault in (
                {"gather": b""},
                {"gather": b"\xc1" * 50},
                {"gather": b"\x93\xc0\x00\xc6" + b"\x7f\xff\xff\xff"},
                {"gather": bytes(300_000)},
                {"expiration": math.nan},
                {"expiration": -math.inf},
                {"expiration": -1.0},
                {"schema_hash": b""},
                {"schema_hash": bytes(100_000)},
                {"group_key": "pre.0b" + "1" * 100_000},
            ):
                async with aclosing(
                    await stub.rpc_join_group(averaging_pb2.JoinRequest(**{**good, **fault}))
                ) as answers:
                    codes = [answer.code async for answer in answers]
                assert len(codes) == 1
                assert codes[0] not in (MessageCode.ACCEPTED, MessageCode.NO_CODE), fault
            # one that joins and hangs up at once is not in the group
            async with aclosing(await stub.rpc_join_group(averaging_pb2.JoinRequest(**good))) as answers:
                assert (await anext(answers)).code == MessageCode.ACCEPTED
            result = await other.core.step(timeout=60)
            assert set(result) == {leader.peer_id, other.peer_id}
            assert await waiting == result

    run_virtual(main)


def test_garbage_on_every_handler() -> None:
    async def main() -> None:
        dice = random.Random(1)
        async with averagers(2) as swarm:
            hostile = await swarm.join(start=False)
            transport = hostile.core._p2p.transport
            for target in swarm.members[:2]:
                for name in NAMES:
                    for size in (0, 1, 10, 1000, 100_000):
                        stream = await transport.open(target.peer_id, name, Mode.MESSAGES, Deadline.after(10))
                        try:
                            for _ in range(3):
                                await stream.send(dice.randbytes(size))
                            await stream.finish()
                            async with asyncio.timeout(30):
                                while await stream.receive() is not None:
                                    pass
                        except HivemindError:
                            pass
                        finally:
                            stream.reset()
            began = monotonic()
            results = await swarm.step_all(swarm.members[:2], timeout=60)
            assert group_sizes(results) == {2}
            assert monotonic() - began < 10

    run_virtual(main)


def test_parts_of_groups_that_nobody_knows() -> None:
    async def main() -> None:
        async with averagers(1) as swarm:
            target = swarm.members[0]
            hostile = await swarm.join(start=False)
            stub = target.core._servicer_type.get_stub(hostile.core._p2p, target.peer_id, namespace="pre")

            async def parts() -> AsyncIterator[averaging_pb2.AveragingData]:
                yield averaging_pb2.AveragingData(code=MessageCode.PART_FOR_AVERAGING, group_id=b"unknown", weight=1.0)

            async def codes() -> list[int]:
                async with aclosing(await stub.rpc_aggregate_part(parts())) as answers:
                    return [answer.code async for answer in answers]

            began = monotonic()
            assert await codes() == [MessageCode.BAD_GROUP_ID]
            assert monotonic() - began < 1
            # while the peer looks for a group it may still learn of that one: the answer takes a while, not for ever
            step = asyncio.ensure_future(target.core.step(timeout=30))
            await asyncio.sleep(1)
            assert await codes() == [MessageCode.BAD_GROUP_ID]
            assert monotonic() - began < 15
            step.cancel()
            await asyncio.wait([step])

    run_virtual(main)


def test_entries_of_others_in_the_dht() -> None:
    """Anybody may write under the keys: what is no declaration is ignored, strangers cost one window."""

    async def main() -> None:
        async with averagers(3) as swarm:
            node = swarm.members[0].node
            later = get_dht_time() + 600
            stranger = PeerID(b"\x12\x20" + b"s" * 32)
            for key in ("pre.0b", "pre.all_averagers"):
                for number, value in enumerate([True, 1.0, math.nan, "text", [1], {"a": 1}, b"\xff", None, 10**18]):
                    await node.store(key, value, later, subkey=number)
                    await node.store(key, value, later, subkey=f"text {number}")
                    await node.store(key, value, later, subkey=bytes([number + 1]) * 70)
            await node.store("pre.0b", True, later, subkey=stranger.to_bytes())
            await node.store("pre.all_averagers", 1e300, later, subkey=stranger.to_bytes())
            for seconds in (12, 12, 12):
                began = monotonic()
                results = await swarm.step_all(timeout=60)
                assert group_sizes(results) == {3}, results
                assert monotonic() - began < seconds
            assert await swarm.members[0].core.load_state(timeout=60) is not None

    run_virtual(main)
