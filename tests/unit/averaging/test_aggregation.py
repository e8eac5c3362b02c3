"""The reducer's side of a round against streams that are driven message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import torch

from hivemind.averaging.aggregation import PartAggregator
from hivemind.averaging.messages import PartMessage
from hivemind.averaging.partition import TensorPartContainer
from hivemind.clock import Deadline, monotonic
from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.errors import ProtocolViolation
from hivemind.p2p import PeerID
from hivemind.proto.averaging_pb2 import AVERAGED_PART, INTERNAL_ERROR, PART_FOR_AVERAGING, AveragingData
from hivemind.virtual_clock import run_virtual

ME, NODE, CLIENT = (PeerID(bytes([k]) * 4) for k in (1, 2, 3))
PARTS = 40


class Call:
    """A call of another member: `send` gives it a part, `answers` are what it got."""

    def __init__(self, aggregator: PartAggregator, peer: PeerID) -> None:
        self._messages: asyncio.Queue[PartMessage] = asyncio.Queue()
        self._aggregator, self._peer = aggregator, peer
        self._sent = 0
        #: messages that the reducer has read
        self.taken = 0
        self.answers: list[AveragingData] = []
        #: answers are only read while this is set
        self.reading = asyncio.Event()
        self.reading.set()
        self.task = asyncio.ensure_future(self._run())

    def send(self, value: float, *, size: int = 2) -> None:
        part = serialize_torch_tensor(torch.full((size,), value))
        fields: dict[str, object] = {"tensor_part": part, "weight": 1.0}
        if not self._sent:
            fields |= {"code": PART_FOR_AVERAGING, "group_id": b"G"}
        self._sent += 1
        self._messages.put_nowait(PartMessage.FromString(AveragingData(**fields).SerializeToString()))  # type: ignore[arg-type]

    async def _stream(self) -> AsyncIterator[PartMessage]:
        for _ in range(PARTS):
            message = await self._messages.get()
            self.taken += 1
            yield message

    async def _run(self) -> None:
        async for answer in self._aggregator.serve(self._stream(), self._peer):
            self.answers.append(AveragingData.FromString(answer.SerializeToString()))
            await self.reading.wait()


def make(*, sender_timeout: float = 5.0) -> PartAggregator:
    # this member reduces everything; the two others only send
    container = TensorPartContainer([torch.zeros(2 * PARTS)], [1, 0, 0], part_size_bytes=8)
    return PartAggregator(
        container,
        group_id=b"G",
        peer_ids=[ME, NODE, CLIENT],
        local_index=0,
        clients=frozenset({2}),
        weight=1.0,
        sender_timeout=sender_timeout,
        deadline=Deadline.after(600),
    )


async def settle() -> None:
    """Let everything run that can run now."""
    for _ in range(20 * PARTS):
        await asyncio.sleep(0)


def test_a_node_gets_each_answer_at_once_and_a_client_all_of_them_at_the_end() -> None:
    """Clients of hivemind 1.1 do not read before they have sent everything."""

    async def main() -> None:
        aggregator = make()
        running = asyncio.ensure_future(aggregator.run())
        node, client = Call(aggregator, NODE), Call(aggregator, CLIENT)
        for index in range(PARTS):
            node.send(3.0)
            client.send(6.0)
            await settle()
            assert len(node.answers) == index + 1
            assert len(client.answers) == (PARTS if index + 1 == PARTS else 0)
        await asyncio.gather(running, node.task, client.task)
        for call, delta in ((node, 0.0), (client, -3.0)):
            assert [answer.code for answer in call.answers] == [AVERAGED_PART] * PARTS
            assert all(deserialize_torch_tensor(each.tensor_part).tolist() == [delta] * 2 for each in call.answers)
        await aggregator.close()

    run_virtual(main)


def test_a_fast_sender_is_only_a_bounded_number_of_parts_ahead() -> None:
    async def main() -> None:
        aggregator = make()
        running = asyncio.ensure_future(aggregator.run())
        fast, slow = Call(aggregator, NODE), Call(aggregator, CLIENT)
        for _ in range(PARTS):
            fast.send(1.0)
        await settle()
        assert 2 <= fast.taken <= 8
        for index in range(PARTS):
            slow.send(1.0)
            await settle()
            assert index + 1 <= fast.taken <= index + 1 + 8
        await asyncio.gather(running, fast.task, slow.task)
        await aggregator.close()

    run_virtual(main)


def test_a_sender_that_does_not_read_its_answers_is_not_read_from_either() -> None:
    async def main() -> None:
        aggregator = make()
        running = asyncio.ensure_future(aggregator.run())
        deaf, other = Call(aggregator, NODE), Call(aggregator, CLIENT)
        deaf.reading.clear()
        for _ in range(PARTS):
            deaf.send(1.0)
            other.send(1.0)
        await settle()
        assert deaf.taken <= 9 + 1
        deaf.reading.set()
        await asyncio.gather(running, deaf.task, other.task)
        assert not aggregator.failed_senders
        await aggregator.close()

    run_virtual(main)


@pytest.mark.parametrize(("read_after", "waited"), [(1.0, 1.0), (100.0, 4.0)])
def test_it_lingers_until_the_last_answer_is_taken_but_not_for_ever(read_after: float, waited: float) -> None:
    async def main() -> None:
        aggregator = make()
        running = asyncio.ensure_future(aggregator.run())
        calls = [Call(aggregator, NODE), Call(aggregator, CLIENT)]
        for _ in range(PARTS - 1):
            for call in calls:
                call.send(1.0)
        await settle()
        calls[0].reading.clear()
        for call in calls:
            call.send(1.0)
        await running
        asyncio.get_running_loop().call_later(read_after, calls[0].reading.set)
        started = monotonic()
        await aggregator.linger(4.0)
        assert monotonic() - started == pytest.approx(waited)
        await asyncio.gather(*(call.task for call in calls))
        await aggregator.close()

    run_virtual(main)


def test_silence_between_parts_is_measured_only_while_parts_are_waited_for() -> None:
    """A sender that is ahead of a slow one is silent because nobody reads from it."""

    async def main() -> None:
        aggregator = make(sender_timeout=5.0)
        running = asyncio.ensure_future(aggregator.run())
        fast, slow = Call(aggregator, NODE), Call(aggregator, CLIENT)
        for _ in range(PARTS):
            fast.send(1.0)
        for _ in range(PARTS):
            await asyncio.sleep(4.0)
            slow.send(1.0)
        await asyncio.gather(running, fast.task, slow.task)
        assert not aggregator.failed_senders
        assert monotonic() >= 4.0 * PARTS
        await aggregator.close()

    run_virtual(main)


def test_a_call_that_ends_is_a_sender_that_failed() -> None:
    async def main() -> None:
        aggregator = make()
        running = asyncio.ensure_future(aggregator.run())
        node, client = Call(aggregator, NODE), Call(aggregator, CLIENT)
        node.send(1.0)
        for _ in range(PARTS):
            client.send(1.0)
        await settle()
        node.task.cancel()
        await asyncio.gather(running, client.task)
        assert list(aggregator.failed_senders) == [NODE]
        assert aggregator.contributors == (ME, CLIENT)
        assert aggregator.awaited == ()
        await aggregator.close()

    run_virtual(main)


def test_after_the_end_calls_are_refused() -> None:
    async def main() -> None:
        aggregator = make()
        await aggregator.close()
        call = Call(aggregator, NODE)
        call.send(1.0)
        await call.task
        assert [answer.code for answer in call.answers] == [INTERNAL_ERROR]
        with pytest.raises(ProtocolViolation):
            await Call(aggregator, ME).task

    run_virtual(main)


def test_a_part_of_the_wrong_size_is_refused_when_it_comes_rather_than_kept() -> None:
    async def main() -> None:
        aggregator = make()
        running = asyncio.ensure_future(aggregator.run())
        node, client = Call(aggregator, NODE), Call(aggregator, CLIENT)
        node.send(1.0, size=2**16)
        await settle()
        assert list(aggregator.failed_senders) == [NODE]
        assert "expected (2,)" in aggregator.failed_senders[NODE]
        assert not aggregator._reducer._inputs[0].get(1)
        for _ in range(PARTS):
            client.send(1.0)
        await asyncio.gather(running, node.task, client.task)
        await aggregator.close()

    run_virtual(main)
