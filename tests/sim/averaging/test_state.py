"""State from peer to peer: newcomers, donors that refuse, lie, freeze or die, and timeouts that are honoured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch

from hivemind.averaging import Hooks
from hivemind.clock import monotonic
from hivemind.compression import Float16Compression, serialize_torch_tensor
from hivemind.errors import ConfigError, ValidationError
from hivemind.p2p import P2PContext, ServicerBase
from hivemind.proto import averaging_pb2
from hivemind.serializer import MSGPackSerializer
from hivemind.virtual_clock import run_virtual
from tests.support.averagers import Member, Swarm, averagers, exactly_when

Messages = AsyncIterator[averaging_pb2.DownloadData]


def test_a_newcomer_gets_the_state_of_the_highest_priority() -> None:
    async def main() -> None:
        async with averagers(4) as swarm:
            for member in swarm.members:
                member.core.set_state_sharing_priority(10.0 - abs(2 - member.value))
            await asyncio.sleep(1)
            newcomer = await swarm.join()
            state = await newcomer.core.load_state()
            assert state is not None
            metadata, tensors = state
            assert metadata == {"group_key": ""}
            assert [tensor.tolist() for tensor in tensors] == [[2.0] * 5, [2.0] * 3]
            assert newcomer.values == {4.0}  # what to do with it is the caller's

            swarm.members[2].core.set_state_sharing(False)
            await asyncio.sleep(1)
            state = await newcomer.core.load_state()
            assert state is not None
            assert state[1][0].tolist() in ([1.0] * 5, [3.0] * 5)

    run_virtual(main)


def test_equal_donors_share_the_load() -> None:
    async def main() -> None:
        async with averagers(3) as swarm:
            newcomer = await swarm.join(allow_state_sharing=False)
            seen = set()
            for _ in range(30):
                state = await newcomer.core.load_state()
                assert state is not None
                seen.add(state[1][0][0].item())
            assert seen == {0.0, 1.0, 2.0}

    run_virtual(main)


def test_large_and_compressed_states() -> None:
    async def main() -> None:
        big = torch.randn(300_000)

        def state() -> tuple[Any, Sequence[torch.Tensor], None]:
            return {"epoch": 7}, [big, torch.tensor(3), torch.tensor(5.0), torch.empty(0)], None

        async with averagers(0) as swarm:
            for compression, tolerance in ((None, 0.0), (Float16Compression(), 0.01)):
                options = {} if compression is None else {"state_compression": compression}
                hooks = Hooks(current_state=state)
                if compression is not None:  # it cannot carry whole numbers
                    hooks = Hooks(current_state=lambda: ({"epoch": 7}, [big], None))
                donor = await swarm.join(hooks=hooks, **options)
                newcomer = await swarm.join(hooks=hooks, allow_state_sharing=False)
                found = await newcomer.core.load_state()
                assert found is not None
                metadata, tensors = found
                assert metadata == {"epoch": 7}
                assert torch.allclose(tensors[0], big, atol=tolerance)
                if compression is None:
                    assert tensors[1].dtype == torch.int64
                    assert [tensor.tolist() for tensor in tensors[1:]] == [3, 5.0, []]
                await swarm.leave(donor)
                await swarm.leave(newcomer)

    run_virtual(main)


def test_newcomers_that_come_together_share_a_copy() -> None:
    async def main() -> None:
        copies = 0

        def state() -> tuple[Any, Sequence[torch.Tensor], None]:
            nonlocal copies
            copies += 1
            return {"epoch": copies}, [torch.ones(1000)], None

        async with averagers(0) as swarm:
            donor = await swarm.join(hooks=Hooks(current_state=state))
            newcomers = [
                await swarm.join(allow_state_sharing=False, hooks=Hooks(check_state=lambda *_: None)) for _ in range(4)
            ]
            states = await asyncio.gather(*(newcomer.core.load_state() for newcomer in newcomers))
            assert [found and found[0] for found in states] == [{"epoch": 1}] * 4
            # the next one gets what holds then
            found = await newcomers[0].core.load_state()
            assert found is not None
            assert found[0] == {"epoch": 2}
            assert donor.core._servicer._donor._shared is None

    run_virtual(main)


def test_the_lock_is_held_for_the_copy_only() -> None:
    async def main() -> None:
        async with averagers(0) as swarm:
            large = (2**20, 2**20)  # more than may be under way, so that the download lasts
            donor = await swarm.join(sizes=large)
            newcomer = await swarm.join(sizes=large, allow_state_sharing=False)
            with swarm.net.bandwidth(1e6, between=(donor.peer_id, newcomer.peer_id)):
                download = asyncio.ensure_future(newcomer.core.load_state())
                await exactly_when(lambda: donor.core._servicer._donor._active, "the download has begun")
                async with asyncio.timeout(0.5):
                    await donor.core.lock.acquire_async()
                for tensor in donor.core.tensors:
                    tensor.fill_(99.0)
                donor.core.lock.release()
                assert not download.done()
                state = await download
            assert state is not None
            assert [len(set(tensor.tolist())) for tensor in state[1]] == [1, 1]
            assert not any(99.0 in tensor for tensor in state[1]), "it was copied when the download began"

    run_virtual(main)


class HostileDonor(ServicerBase):
    """Answers downloads as told."""

    def __init__(self, messages: list[averaging_pb2.DownloadData], *, then: str) -> None:
        self.messages, self.then, self.asked = messages, then, 0

    async def rpc_download_state(self, request: averaging_pb2.DownloadRequest, context: P2PContext) -> Messages:
        self.asked += 1
        for message in self.messages:
            yield message
        if self.then == "silence":
            await asyncio.sleep(1e6)
        elif self.then == "error":
            raise RuntimeError("no")


HostileDonor.__name__ = "DecentralizedAverager"
GOOD = MSGPackSerializer.dumps({"group_key": ""})
WHOLE = serialize_torch_tensor(torch.ones(5))


def data(metadata: bytes = b"", **fields: Any) -> averaging_pb2.DownloadData:
    message = averaging_pb2.DownloadData(metadata=metadata)
    if fields:
        message.tensor_part.CopyFrom(WHOLE)
        for name, value in fields.items():
            if name == "size":
                del message.tensor_part.size[:]
                message.tensor_part.size.extend(value)
            else:
                setattr(message.tensor_part, name, value)
    return message


async def with_hostile_donor(swarm: Swarm, donor: HostileDonor) -> Member:
    """A peer of the highest priority that answers downloads as ``donor``; returns a newcomer."""
    member = await swarm.join(start=False)
    member.core._loops.start(member.core.directory.keep_declaring())
    member.core.set_state_sharing_priority(1e9)
    await donor.add_p2p_handlers(member.core._p2p, namespace="pre")
    await asyncio.sleep(1)
    return await swarm.join(allow_state_sharing=False)


@pytest.mark.parametrize(
    ("messages", "then"),
    [
        ([], "end"),
        ([], "error"),
        ([], "silence"),
        ([data(GOOD, chunks=1)], "end"),  # one tensor of two
        ([data(GOOD, chunks=1)], "silence"),
        ([data(b"", chunks=1), data(b"", chunks=1)], "end"),  # no metadata
        ([data(b"\xc1", chunks=1), data(chunks=1)], "end"),  # metadata that are no msgpack
        ([data(MSGPackSerializer.dumps({}), chunks=1), data(chunks=1)], "end"),
        ([data(GOOD, size=[2**31, 2**31]), data(chunks=1)], "end"),
        ([data(GOOD, buffer=b"\0"), data(chunks=1)], "end"),
        ([data(GOOD, dtype="float1024"), data(chunks=1)], "end"),
        ([data(GOOD, dtype=""), data(chunks=1)], "end"),
        ([data(GOOD, chunks=1)] + [data(dtype="", buffer=b"\0" * 60000)] * 400, "end"),
        ([data(GOOD, chunks=1)] + [data(dtype="", buffer=b"")] * 30000, "end"),
    ],
)
def test_the_next_donor_is_asked(messages: list[averaging_pb2.DownloadData], then: str) -> None:
    async def main() -> None:
        async with averagers(1, next_chunk_timeout=2.0, max_state_bytes=2**24) as swarm:
            donor = HostileDonor(messages, then=then)
            newcomer = await with_hostile_donor(swarm, donor)
            began = monotonic()
            state = await newcomer.core.load_state()
            assert donor.asked == 1
            assert state is not None
            assert state[1][0].tolist() == [0.0] * 5
            assert monotonic() - began < 40
            assert newcomer.values == {2.0}

    run_virtual(main)


def test_a_given_timeout_is_honoured() -> None:
    async def main() -> None:
        async with averagers(0, next_chunk_timeout=100.0) as swarm:
            newcomer = await with_hostile_donor(swarm, HostileDonor([data(GOOD, chunks=1)], then="silence"))
            for timeout in (0.5, 7.0):
                began = monotonic()
                assert await newcomer.core.load_state(timeout=timeout) is None
                assert timeout - 0.01 < monotonic() - began < timeout + 0.2
            with pytest.raises(ConfigError, match="timeout"):
                await newcomer.core.load_state(timeout=-1)

    run_virtual(main)


def test_donors_that_die_or_freeze() -> None:
    async def main() -> None:
        async with averagers(4, next_chunk_timeout=2.0) as swarm:
            for member in swarm.members:
                member.core.set_state_sharing_priority(10 - member.value)
            await asyncio.sleep(1)
            newcomer = await swarm.join(allow_state_sharing=False)
            swarm.net.freeze(swarm.members[0].peer_id)
            swarm.net.kill(swarm.members[1].peer_id)
            began = monotonic()
            state = await newcomer.core.load_state()
            assert state is not None
            assert state[1][0].tolist() == [2.0] * 5
            assert monotonic() - began < 60

    run_virtual(main)


def test_nobody_there_is_no_error() -> None:
    async def main() -> None:
        async with averagers(1) as swarm:
            began = monotonic()
            assert await swarm.members[0].core.load_state(timeout=20) is None
            assert monotonic() - began < 5

    run_virtual(main)


def test_a_subclass_checks_what_it_gets() -> None:
    async def main() -> None:
        seen: list[int] = []

        def check(metadata: Any, tensors: Sequence[torch.Tensor], expected: int) -> None:
            seen.append(expected)
            if tensors[0][0] < 2:
                raise ValidationError("too old")

        async with averagers(3) as swarm:
            newcomer = await swarm.join(hooks=Hooks(check_state=check), allow_state_sharing=False)
            for _ in range(5):
                state = await newcomer.core.load_state()
                assert state is not None
                assert state[1][0].tolist() == [2.0] * 5
            assert set(seen) == {2}

    run_virtual(main)


def test_clients_and_auxiliary_peers_share_nothing_but_may_download() -> None:
    async def main() -> None:
        async with averagers(1) as swarm:
            client = await swarm.join(client_mode=True)
            helper = await swarm.join(auxiliary=True)
            assert not client.core.allow_state_sharing
            assert not helper.core.allow_state_sharing
            roll = await swarm.members[0].core.directory.fetch()
            assert roll.priorities == {}
            assert await client.core.load_state() is not None
            assert await swarm.members[0].core.load_state(timeout=10) is None
            with pytest.raises(ConfigError, match="client mode"):
                client.core.set_state_sharing(True)

    run_virtual(main)
