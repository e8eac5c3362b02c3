"""One part's reduction, golden messages, the outcome of a round and the checks of its arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from hivemind.averaging.allreduce import AllReduceRunner, decide_outcome
from hivemind.averaging.messages import PartMessage
from hivemind.averaging.modes import AveragingMode
from hivemind.averaging.reduction import reduce_part
from hivemind.clock import Deadline
from hivemind.compression import NoCompression, deserialize_torch_tensor, serialize_torch_tensor
from hivemind.compression.buffers import Buffer
from hivemind.errors import ConfigError, SerializationError
from hivemind.p2p import MemoryNetwork, PeerID
from hivemind.proto import runtime_pb2
from hivemind.proto.averaging_pb2 import AVERAGED_PART, AveragingData
from hivemind.virtual_clock import run_virtual
from tests.support.rounds import Member, RoundServicer, members

A, B, C = (PeerID(bytes([k]) * 4) for k in (1, 2, 3))


def sender(group: Sequence[Member], **options: Any) -> AllReduceRunner:
    """The round of the first of two members, all of whose elements the second reduces."""
    return AllReduceRunner(
        p2p=group[0].p2p,
        servicer_type=RoundServicer,
        prefix=None,
        group_id=b"G",
        tensors=group[0].tensors,
        ordered_peer_ids=[member.peer_id for member in group],
        peer_counts=[0, 1],
        sender_timeout=1,
        reducer_timeout=2,
        deadline=Deadline.never(),
        **options,
    )


# -- messages ----------------------------------------------------------------------------------------------------------


def test_golden_first_message() -> None:
    """Group id "G", one float32 1.0, weight 1.0, as hivemind 1.1 sends it."""

    async def main() -> list[PartMessage]:
        async with members(MemoryNetwork(), 2, [(1,)]) as group:
            group[0].tensors[0].fill_(1.0)
            runner = sender(group)
            sent = [message async for message in runner._parts_for(1, lambda: None, asyncio.Event())]
            await runner.close()
            return sent

    [message] = run_virtual(main)
    assert (
        message.SerializeToString().hex()
        == "0804120147" + "2212" + "0a040000803f1201012207666c6f6174333229000000000000f03f"
    )


class WatchedCompression(NoCompression):
    """Tells when a part has been encoded."""

    def __init__(self, encoded: Callable[[], object]) -> None:
        self._encoded = encoded

    def encode(self, *args: Any, **kwargs: Any) -> tuple[runtime_pb2.Tensor, Buffer]:
        try:
            return super().encode(*args, **kwargs)
        finally:
            self._encoded()


def test_a_part_is_encoded_while_the_one_before_is_sent() -> None:
    """One part ahead, so that neither codec nor network waits for the other; no more, as each takes memory."""

    async def main() -> None:
        loop, encoded = asyncio.get_running_loop(), asyncio.Semaphore(0)
        async with members(MemoryNetwork(), 2, [(4,)]) as group:
            compression = WatchedCompression(lambda: loop.call_soon_threadsafe(encoded.release))
            runner = sender(group, part_size_bytes=4, compression=compression)
            await encoded.acquire()  # to see whether the codec carries the dtype
            parts = runner._parts_for(1, lambda: None, asyncio.Event())
            seen = 0
            for sent in range(1, 5):
                await anext(parts)  # it is being sent until the next is asked for
                async with asyncio.timeout(30):
                    while seen < min(sent + 1, 4):
                        await encoded.acquire()
                        seen += 1
                assert encoded.locked()
            await parts.aclose()
            await runner.close()

    run_virtual(main)


# -- one part ----------------------------------------------------------------------------------------------------------


def part(values: Sequence[float], compression: Any = runtime_pb2.NONE, dtype: torch.dtype = torch.float32) -> Any:
    return serialize_torch_tensor(torch.tensor(values, dtype=dtype), compression)


def values_of(answer: PartMessage) -> torch.Tensor:
    message = AveragingData.FromString(answer.SerializeToString())
    assert message.code == AVERAGED_PART
    return deserialize_torch_tensor(message.tensor_part)


def test_answers_are_deltas_in_the_senders_codec() -> None:
    inputs = {0: (None, 1.0), 1: (part([1.0, 5.0]), 1.0), 2: (part([3.0, 6.0], runtime_pb2.FLOAT16), 2.0)}
    reduced = reduce_part(torch.tensor([5.0, 3.0]), 0, inputs)
    assert reduced.average is not None
    assert reduced.average.tolist() == [3.0, 5.0]
    assert not reduced.rejected
    assert {sender: values_of(answer).tolist() for sender, answer in reduced.answers.items()} == {
        1: [2.0, 0.0],
        2: [0.0, -1.0],
    }
    parts = [AveragingData.FromString(reduced.answers[k].SerializeToString()).tensor_part for k in (1, 2)]
    assert [each.compression for each in parts] == [runtime_pb2.NONE, runtime_pb2.FLOAT16]
    assert parts[0].buffer.hex() == "0000004000000000"


def test_deltas_of_low_precision_parts_are_float32() -> None:
    """As in hivemind 1.1: the mean of bfloat16 values is not rounded to bfloat16 before the subtraction."""
    reduced = reduce_part(
        torch.tensor([1.0], dtype=torch.bfloat16), 0, {0: (None, 1.0), 1: (part([2.0], dtype=torch.bfloat16), 2.0)}
    )
    assert AveragingData.FromString(reduced.answers[1].SerializeToString()).tensor_part.dtype == "float32"
    assert values_of(reduced.answers[1]).item() == pytest.approx(-1 / 3)


def test_without_weights_everybody_keeps_its_values() -> None:
    reduced = reduce_part(torch.tensor([1.0]), 0, {0: (None, 0.0), 1: (part([float("nan")]), 0.0)})
    assert reduced.average is None
    assert values_of(reduced.answers[1]).tolist() == [0.0]


@pytest.mark.parametrize(
    "bad",
    [
        part([float("nan")]),
        part([float("-inf")]),
        part([1.0, 2.0]),
        part([1j], dtype=torch.complex64),
        runtime_pb2.Tensor(size=[1], dtype="float32", buffer=b"12"),
        runtime_pb2.Tensor(size=[1], dtype="float32", buffer=b"1234", compression=5),
    ],
)
def test_bad_parts_are_rejected_alone(bad: runtime_pb2.Tensor) -> None:
    reduced = reduce_part(torch.tensor([1.0]), 0, {0: (None, 1.0), 1: (part([3.0]), 1.0), 2: (bad, 1.0)})
    assert list(reduced.rejected) == [2]
    assert list(reduced.answers) == [1]
    assert reduced.average is not None
    assert reduced.average.tolist() == [2.0]


def test_the_own_values_are_rejected_alike() -> None:
    reduced = reduce_part(torch.tensor([float("nan")]), 0, {0: (None, 1.0), 1: (part([3.0]), 1.0)})
    assert list(reduced.rejected) == [0]
    assert reduced.average is not None
    assert reduced.average.tolist() == [3.0]


# -- the outcome -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"contributors": [A, B]}, None),
        ({"contributors": [A]}, "no other member"),
        ({"contributors": [A], "reduces": False}, None),
        ({"contributors": [A], "group_size": 1}, None),
        ({"failed_reducers": {B: "gone"}}, "no averages from .* \\(gone\\)"),
        ({"interruption": "cancelled"}, "cancelled"),
        ({"interruption": "late", "failed_reducers": {B: "gone"}}, "gone"),
    ],
)
def test_outcome(changes: dict[str, Any], expected: str | None) -> None:
    arguments: dict[str, Any] = {
        "group_size": 3,
        "reduces": True,
        "contributors": [A, B, C],
        "failed_reducers": {},
        **changes,
    }
    outcome = decide_outcome(**arguments)
    if expected is None:
        assert outcome is None
    else:
        assert outcome is not None
        with pytest.raises(RuntimeError, match=expected):
            raise RuntimeError(outcome)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"peer_counts": [1]}, "peer_counts"),
        ({"peer_counts": [0, 0]}, "peer_counts"),
        ({"peer_counts": [1, -1]}, "peer_counts"),
        ({"ordered_peer_ids": [A, B]}, "ordered_peer_ids"),
        ({"modes": [AveragingMode.NODE]}, "modes"),
        ({"modes": [AveragingMode.NODE, AveragingMode.CLIENT]}, "peer_counts"),
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"sender_timeout": 0}, "sender_timeout"),
        ({"sender_timeout": float("inf")}, "sender_timeout"),
        ({"reducer_timeout": 5.0}, "reducer_timeout"),
        ({"part_size_bytes": 3}, "part_size_bytes"),
    ],
)
def test_wrong_arguments_name_themselves(changes: dict[str, Any], name: str) -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 2, [(3,)]) as group:
            arguments: dict[str, Any] = {
                "peers": [member.peer_id for member in group],
                "counts": [1, 1],
                "sender_timeout": 5.0,
                **changes,
            }
            peers = arguments.pop("ordered_peer_ids", arguments.pop("peers"))
            counts = arguments.pop("peer_counts", arguments.pop("counts"))
            with pytest.raises(ConfigError, match=f"^{name}"):
                group[0].join(peers, counts, **arguments)

    run_virtual(main)


def test_a_dtype_that_the_codec_cannot_carry_is_an_error_before_the_round() -> None:
    async def main() -> None:
        from hivemind.compression import Float16Compression

        async with members(MemoryNetwork(), 1, [(3,)]) as group:
            group[0].tensors = [torch.ones(2, dtype=torch.bfloat16)]
            with pytest.raises(SerializationError, match="bfloat16"):
                group[0].join([group[0].peer_id], [1], compression=Float16Compression())

    run_virtual(main)


def test_a_round_that_is_never_run_can_be_closed() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 2, [(3,)]) as group:
            runner = group[0].join([member.peer_id for member in group], [1, 1])
            await runner.close()
            await runner.close()
            assert len(asyncio.all_tasks()) == 1

    run_virtual(main)
