"""Rounds in which members die, freeze or lie. Whatever happens: every round ends by its deadline, tensors are as they
were unless it succeeded, and who succeeded has the mean of those who contributed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest
import torch

from hivemind.averaging.allreduce import AllReduceResult
from hivemind.clock import Deadline, monotonic
from hivemind.compression import serialize_torch_tensor
from hivemind.errors import AllreduceException, P2PHandlerError
from hivemind.p2p import MemoryNetwork
from hivemind.proto.averaging_pb2 import (
    AVERAGED_PART,
    BAD_GROUP_ID,
    CANCELLED,
    INTERNAL_ERROR,
    PART_FOR_AVERAGING,
    PROTOCOL_VIOLATION,
    AveragingData,
)
from hivemind.proto.runtime_pb2 import Tensor
from hivemind.virtual_clock import run_virtual
from tests.support.rounds import GROUP, PREFIX, Member, RoundServicer, members, run_all
from tests.support.waiting import eventually

SHAPES = [(30,), (50,)]  # with parts of 16 values: 2 and 4 parts


def mean_of(group: Sequence[Member]) -> list[np.ndarray]:
    return [np.mean([member.before[k].double().numpy() for member in group], axis=0) for k in range(len(SHAPES))]


def check_result(result: object, expected: Sequence[np.ndarray]) -> AllReduceResult:
    assert isinstance(result, AllReduceResult), result
    for tensor, mean in zip(result.averaged, expected, strict=True):
        np.testing.assert_allclose(tensor.double().numpy(), mean, atol=1e-6, rtol=0)
    return result


# -- senders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["absent", "frozen", "killed"])
def test_a_client_that_fails_is_left_out_and_named(fault: str) -> None:
    """It reduces nothing, so the others lack nothing but its values."""

    async def main() -> None:
        net = MemoryNetwork()
        async with members(net, 4, SHAPES) as group:
            peers, client = [member.peer_id for member in group], group[3]
            runners = [member.join(peers, [1, 1, 1, 0]) for member in group]
            runs = [asyncio.ensure_future(runner.run()) for runner in runners[:3]]
            if fault == "frozen":
                net.freeze(client)
                runs.append(asyncio.ensure_future(runners[3].run()))
            elif fault == "killed":
                net.kill(client)
            started = monotonic()
            results = await asyncio.gather(*runs, return_exceptions=True)
            for result in results[:3]:
                checked = check_result(result, mean_of(group[:3]))
                assert list(checked.failed_senders) == [client.peer_id]
                assert checked.contributors == tuple(peers[:3])
            assert monotonic() - started < 30
            assert all(member.unchanged() for member in group)
            if fault == "frozen":
                assert isinstance(results[3], AllreduceException)
            await runners[3].close()

    run_virtual(main)


def test_a_sender_that_stops_half_way_keeps_its_share_in_what_it_has_sent() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 3, SHAPES) as group:
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1, 1, 0]) for member in group]
            # the third sends two of its parts to each reducer, then nothing
            sends = [
                asyncio.ensure_future(_send(group[2], group[k], _parts(group[2], k), stop_after=2)) for k in (0, 1)
            ]
            results = await run_all(runners[:2])
            for task in sends:
                task.cancel()
            both, all_three = mean_of(group[:2]), mean_of(group)
            owned = [runners[0]._container.parts_by_peer[k] for k in (0, 1)]
            for result in results:
                assert isinstance(result, AllReduceResult), result
                assert "no answer in time" in result.failed_senders[peers[2]]
                for parts in owned:
                    for index, part in enumerate(parts):
                        expected = (all_three if index < 2 else both)[part.tensor].reshape(-1)[part.start : part.stop]
                        got = result.averaged[part.tensor].view(-1)[part.start : part.stop]
                        np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
            await runners[2].close()

    run_virtual(main)


# -- reducers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.0, 0.02, 0.05, 0.08, 0.2])
def test_a_reducer_that_is_killed_fails_the_round_and_changes_nothing(at: float) -> None:
    async def main() -> None:
        net = MemoryNetwork()
        async with members(net, 4, SHAPES) as group:
            net.delay(0.03)
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1] * 4) for member in group]
            runs = [asyncio.ensure_future(runner.run()) for runner in runners]
            started = monotonic()
            await asyncio.sleep(at)
            net.kill(group[2])
            survivors = await asyncio.gather(*(runs[k] for k in (0, 1, 3)), return_exceptions=True)
            assert monotonic() - started < 1, "a broken connection needs no timeout"
            assert all(member.unchanged() for member in group)
            for result in survivors:
                if at < 0.09:  # to open a stream, to send and to get the first answer takes 30 ms four times
                    assert isinstance(result, AllreduceException), result
                    assert str(peers[2]) in str(result)
                else:
                    check_result(result, mean_of(group))
            await asyncio.gather(runs[2], return_exceptions=True)

    run_virtual(main)


def test_a_reducer_that_freezes_fails_the_round_within_its_timeout() -> None:
    async def main() -> None:
        net = MemoryNetwork()
        async with members(net, 4, SHAPES) as group:
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1] * 4) for member in group]
            started = monotonic()
            with net.freeze(group[2]):
                results = await run_all([runners[k] for k in (0, 1, 3)])
            assert monotonic() - started <= 10 + 5 + 0.1
            for result in results:
                assert isinstance(result, AllreduceException), result
                assert str(peers[2]) in str(result)
                assert "no progress for 10 s" in str(result)
                assert not any(str(peers[k]) in str(result) for k in (0, 1, 3))
            assert all(member.unchanged() for member in group)
            await runners[2].close()

    run_virtual(main)


def test_a_part_of_the_group_that_is_cut_off_fails_the_round_everywhere() -> None:
    async def main() -> None:
        net = MemoryNetwork()
        async with members(net, 5, SHAPES) as group:
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1] * 5) for member in group]
            with net.partition(group[:2], group[2:]):
                results = await run_all(runners)
            for member, result in zip(group, results, strict=True):
                assert isinstance(result, AllreduceException), result
                assert member.unchanged()

    run_virtual(main)


def test_the_deadline_ends_the_round_and_says_what_was_missing() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 3, SHAPES) as group:
            peers = [member.peer_id for member in group]
            runner = group[0].join(peers, [1] * 3, deadline=Deadline.after(3), sender_timeout=20, reducer_timeout=40)
            others = [member.join(peers, [1] * 3) for member in group[1:]]  # they never run
            started = monotonic()
            with pytest.raises(AllreduceException, match=r"not done in time; awaited parts from .*; awaited averages"):
                await runner.run()
            assert monotonic() - started == pytest.approx(3)
            assert group[0].unchanged()
            for other in others:
                await other.close()

    run_virtual(main)


def test_cancel_ends_the_round_at_once_and_tells_the_others() -> None:
    async def main() -> None:
        net = MemoryNetwork()
        async with members(net, 3, SHAPES) as group:
            net.delay(0.05)
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1] * 3) for member in group]
            runs = [asyncio.ensure_future(runner.run()) for runner in runners]
            await asyncio.sleep(0.03)
            runners[0].cancel("the user has left")
            results = await asyncio.gather(*runs, return_exceptions=True)
            assert "the user has left" in str(results[0])
            for result in results[1:]:
                assert isinstance(result, AllreduceException), result
                assert str(peers[0]) in str(result)
            assert all(member.unchanged() for member in group)

    run_virtual(main)


# -- peers that lie --------------------------------------------------------------------------------------------------


def _parts(member: Member, reducer: int) -> list[AveragingData]:
    container = member.runner._container
    parts = [container.encode(reducer, k) for k in range(container.num_parts_by_peer[reducer])]
    first = AveragingData(code=PART_FOR_AVERAGING, group_id=GROUP, tensor_part=parts[0], weight=1.0)
    return [first, *(AveragingData(tensor_part=part, weight=1.0) for part in parts[1:])]


async def _send(
    sender: Member, to: Member, messages: Sequence[AveragingData], *, stop_after: int | None = None
) -> list[AveragingData]:
    async def stream() -> AsyncIterator[AveragingData]:
        for message in messages[:stop_after]:
            yield message
        if stop_after is not None:
            await asyncio.Event().wait()

    stub = RoundServicer.get_stub(sender.p2p, to.peer_id, namespace=PREFIX)
    return [answer async for answer in await stub.rpc_aggregate_part(stream())]


def _tensor(values: int = 16, **fields: object) -> Tensor:
    message = serialize_torch_tensor(torch.ones(values))
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def _replace(index: int, **fields: object) -> Callable[[list[AveragingData]], list[AveragingData]]:
    def change(messages: list[AveragingData]) -> list[AveragingData]:
        for name, value in fields.items():
            if isinstance(value, Tensor):
                messages[index].tensor_part.CopyFrom(value)
            else:
                setattr(messages[index], name, value)
        return messages

    return change


LIES: dict[str, tuple[Callable[[list[AveragingData]], list[AveragingData]], int]] = {
    "another group": (_replace(0, group_id=b"other"), BAD_GROUP_ID),
    "no group": (_replace(0, group_id=b""), BAD_GROUP_ID),
    "nothing": (lambda messages: [], BAD_GROUP_ID),
    "first code": (_replace(0, code=AVERAGED_PART), INTERNAL_ERROR),
    "unknown code": (_replace(0, code=999), INTERNAL_ERROR),
    "too few parts": (lambda messages: messages[:1], INTERNAL_ERROR),
    "short part": (_replace(1, tensor_part=_tensor(15)), INTERNAL_ERROR),
    "long part": (_replace(0, tensor_part=_tensor(17)), INTERNAL_ERROR),
    "huge shape": (_replace(0, tensor_part=Tensor(size=[2**32 - 1] * 3, dtype="float32")), INTERNAL_ERROR),
    "2-d part": (_replace(0, tensor_part=serialize_torch_tensor(torch.ones(4, 4))), INTERNAL_ERROR),
    "dtype": (_replace(0, tensor_part=_tensor(dtype="os.system")), INTERNAL_ERROR),
    "complex": (_replace(0, tensor_part=serialize_torch_tensor(torch.ones(16) * 1j)), INTERNAL_ERROR),
    "truncated buffer": (_replace(0, tensor_part=_tensor(buffer=b"123")), INTERNAL_ERROR),
    "codec": (_replace(0, tensor_part=_tensor(compression=5)), INTERNAL_ERROR),
    "unknown codec": (_replace(0, tensor_part=_tensor(compression=100)), INTERNAL_ERROR),
    "NaN": (_replace(0, tensor_part=serialize_torch_tensor(torch.full((16,), float("nan")))), INTERNAL_ERROR),
    "infinity": (_replace(0, tensor_part=serialize_torch_tensor(torch.full((16,), float("inf")))), INTERNAL_ERROR),
    "weight NaN": (_replace(1, weight=float("nan")), INTERNAL_ERROR),
    "weight infinite": (_replace(0, weight=float("inf")), INTERNAL_ERROR),
    "weight negative": (_replace(0, weight=-1.0), INTERNAL_ERROR),
    "weight huge": (_replace(0, weight=1e300), INTERNAL_ERROR),
}


@pytest.mark.parametrize("name", LIES)
def test_a_sender_that_lies_is_left_out(name: str) -> None:
    """The fourth member lies to the first only; it reduces nothing, so that everybody else gets a mean."""
    lie, code = LIES[name]

    async def main() -> None:
        async with members(MemoryNetwork(), 4, SHAPES) as group:
            peers, liar = [member.peer_id for member in group], group[3]
            runners = [member.join(peers, [1, 1, 1, 0]) for member in group]
            runs = [asyncio.ensure_future(runner.run()) for runner in runners[:3]]
            answers = await asyncio.gather(
                _send(liar, group[0], lie(_parts(liar, 0))),
                *(_send(liar, group[k], _parts(liar, k)) for k in (1, 2)),
            )
            results = await asyncio.gather(*runs)
            assert answers[0][-1].code == code
            assert all(answer.code == AVERAGED_PART for answer in answers[1] + answers[2])
            assert list(results[0].failed_senders) == [liar.peer_id]
            assert not results[1].failed_senders
            for parts in (runners[0]._container.parts_by_peer[k] for k in (1, 2)):
                for part in parts:
                    expected = mean_of(group)[part.tensor][part.start : part.stop]
                    for result in results:
                        np.testing.assert_allclose(
                            result.averaged[part.tensor][part.start : part.stop].numpy(), expected, atol=1e-6
                        )
            for result in results:
                assert all(bool(torch.isfinite(tensor).all()) for tensor in result.averaged)
            await runners[3].close()

    run_virtual(main)


def test_more_parts_than_there_are_cost_their_sender_nothing_but_the_call() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 3, SHAPES) as group:
            peers, liar = [member.peer_id for member in group], group[2]
            runners = [member.join(peers, [1, 1, 0]) for member in group]
            runs = [asyncio.ensure_future(runner.run()) for runner in runners[:2]]
            parts = [_parts(liar, k) for k in (0, 1)]
            extra = [parts[k] + [parts[k][-1]] * 5000 for k in (0, 1)]
            answers = await asyncio.gather(*(_send(liar, group[k], extra[k]) for k in (0, 1)))
            assert [len(each) for each in answers] == [len(each) for each in parts]
            for result in await asyncio.gather(*runs):
                check_result(result, mean_of(group))
            await runners[2].close()

    run_virtual(main)


def test_strangers_and_repeated_calls_are_refused() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 3, SHAPES) as group:
            peers, stranger = [member.peer_id for member in group[:2]], group[2]
            runners = [member.join(peers, [1, 1]) for member in group[:2]]
            stranger.join([stranger.peer_id, peers[0]], [1, 1])
            with pytest.raises(P2PHandlerError, match="not a sender in this group"):
                await _send(stranger, group[0], _parts(stranger, 1))
            running = asyncio.ensure_future(runners[1].run())
            await eventually(lambda: 1 in runners[0]._aggregator._begun, "the second member's first part is here")
            repeated = await _send(group[1], group[0], _parts(group[1], 0))
            assert [answer.code for answer in repeated] == [PROTOCOL_VIOLATION]
            for result in (await runners[0].run(), await running):
                check_result(result, mean_of(group[:2]))
            late = await _send(group[1], group[0], _parts(group[1], 0))
            assert [answer.code for answer in late] == [INTERNAL_ERROR]
            await stranger.runner.close()

    run_virtual(main)


def test_who_reduces_nothing_takes_no_parts() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 2, SHAPES) as group:
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1, 0]) for member in group]
            answers = await _send(group[0], group[1], _parts(group[0], 0))
            assert [answer.code for answer in answers] == [PROTOCOL_VIOLATION]
            runners[1].cancel()
            await runners[1].close()
            answers = await _send(group[0], group[1], _parts(group[0], 0))
            assert [answer.code for answer in answers] == [CANCELLED]
            await runners[0].close()

    run_virtual(main)


class _Liar(RoundServicer):
    """A reducer that answers what it is told to."""

    def __init__(self, answers: Callable[[AveragingData], list[AveragingData]]) -> None:
        super().__init__()
        self.answers = answers

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[AveragingData], context: object
    ) -> AsyncIterator[AveragingData]:
        async for message in stream:
            for answer in self.answers(AveragingData.FromString(message.SerializeToString())):
                yield answer


def _answer(part: Tensor, times: int = 1) -> Callable[[AveragingData], list[AveragingData]]:
    return lambda message: [AveragingData(code=AVERAGED_PART, tensor_part=part)] * times


@pytest.mark.parametrize(
    "answers",
    [
        lambda message: [AveragingData(code=INTERNAL_ERROR)],
        lambda message: [],
        lambda message: [AveragingData(tensor_part=message.tensor_part)],
        _answer(Tensor()),
        _answer(_tensor(3)),
        _answer(_tensor(16, buffer=b"")),
        _answer(_tensor(16, dtype="no")),
        _answer(serialize_torch_tensor(torch.full((16,), float("nan")))),
        _answer(serialize_torch_tensor(torch.ones(16) * 1j)),
        _answer(Tensor(size=[2**32 - 1] * 8, dtype="float64")),
    ],
)
def test_a_reducer_that_lies_fails_the_round(answers: Callable[[AveragingData], list[AveragingData]]) -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 2, SHAPES) as group:
            peers = [member.peer_id for member in group]
            await group[1].servicer.remove_p2p_handlers(group[1].p2p, namespace=PREFIX)
            liar = _Liar(answers)
            liar.__class__.__name__ = "RoundServicer"
            await liar.add_p2p_handlers(group[1].p2p, namespace=PREFIX)
            runner = group[0].join(peers, [1, 1])
            with pytest.raises(AllreduceException, match=str(peers[1])):
                await runner.run()
            assert list(runner.failed_reducers) == [peers[1]]
            assert group[0].unchanged()

    run_virtual(main)
