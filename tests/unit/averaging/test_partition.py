"""Partition: golden cases of hivemind 1.1, and properties that hold for all inputs; the container's bookkeeping."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hivemind.averaging.partition import (
    DEFAULT_PART_SIZE_BYTES,
    PartSlice,
    TensorPartContainer,
    partition,
    values_per_part,
)
from hivemind.compression import CompressionInfo, Float16Compression, NoCompression, deserialize_torch_tensor
from hivemind.errors import ConfigError, ProtocolViolation, SerializationError
from hivemind.proto import runtime_pb2


def lengths(sizes: list[int], values: int, counts: list[int]) -> list[list[int]]:
    return [[part.size for part in parts] for parts in partition(sizes, [values] * len(sizes), counts)]


@pytest.mark.parametrize(
    ("sizes", "values", "counts", "expected"),
    [
        ([8], 1, [3, 0, 5], [[1] * 3, [], [1] * 5]),
        ([5, 5, 2], 2, [1, 1, 1], [[2, 2], [1, 2, 2], [1, 2]]),
        ([3, 2], 2, [2, 2, 0, 1], [[2], [1, 2], [], []]),
        ([5, 0, 3], 2, [2, 0, 1, 0], [[2, 2, 1, 0], [], [2, 1], []]),
        ([0, 5], 2, [0, 1, 1], [[0], [2], [2, 1]]),
        ([1], 2, [1, 1], [[], [1]]),
        ([18, 1, 0], 3, [0, 1, 0], [[], [3, 3, 3, 3, 3, 3, 1, 0], []]),
        ([16, 0, 10, 1, 0], 6, [0, 1, 15, 1, 13], [[], [], [6, 6, 4], [], [0, 6, 4, 1, 0]]),
        ([37, 0, 1], 25, [0, 13, 1], [[], [25, 12], [0, 1]]),
        ([], 2, [1, 1], [[], []]),
    ],
)
def test_golden(sizes: list[int], values: int, counts: list[int], expected: list[list[int]]) -> None:
    assert lengths(sizes, values, counts) == expected


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), max_size=8),
    st.lists(st.integers(0, 10), min_size=1, max_size=8).filter(any),
)
def test_every_element_has_exactly_one_owner(tensors: list[tuple[int, int]], counts: list[int]) -> None:
    sizes, values = [size for size, _ in tensors], [length for _, length in tensors]
    owned = partition(sizes, values, counts)
    assert len(owned) == len(counts)
    in_order = [part for parts in owned for part in parts]
    expected = [
        PartSlice(tensor, index, start, min(start + length, size))
        for tensor, (size, length) in enumerate(tensors)
        for index, start in enumerate(range(0, max(1, size), length))
    ]
    assert sorted(in_order, key=lambda part: (part.tensor, part.index)) == expected
    for parts in owned:
        assert list(parts) == sorted(parts, key=lambda part: (part.tensor, part.index))
    for parts, count in zip(owned, counts, strict=True):
        assert count > 0 or not any(part.size for part in parts)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=8), st.integers(1, 20_000))
@example([1, 9, 1, 8, 2], 80)
def test_shares_are_as_the_counts_say_up_to_a_part_at_either_end(counts: list[int], size: int) -> None:
    """Where several peers meet within one part, one of them gets all of it: by either end of its stretch a peer may win
    or lose almost a part. (Pivots are rounded down, by one element at the most.)"""
    for parts, count in zip(partition([size], [16], counts), counts, strict=True):
        assert abs(sum(part.size for part in parts) - size * count / sum(counts)) < 2 * 16 + 1


@pytest.mark.parametrize("counts", [[], [0], [0, 0], [1, -1], [float("nan")], [float("inf"), 1]])
def test_counts_are_checked(counts: list[float]) -> None:
    with pytest.raises(ConfigError, match="peer_counts"):
        partition([3], [1], counts)


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 131072), (0.5, 262144), (0.25, 524288)])
def test_values_per_part_of_float32(ratio: float, expected: int) -> None:
    assert values_per_part(DEFAULT_PART_SIZE_BYTES, 4, ratio) == expected


def test_a_part_holds_at_least_one_value() -> None:
    with pytest.raises(ConfigError, match="at least 8"):
        values_per_part(7, 8, 1.0)


def test_the_infos_dtype_counts_rather_than_the_tensors() -> None:
    tensor = torch.zeros(1000)
    info = CompressionInfo.from_tensor(torch.zeros(1000, dtype=torch.float16))
    container = TensorPartContainer([tensor], [1], Float16Compression(), part_size_bytes=400, tensor_infos=[info])
    assert container.part_values == (100,)
    assert TensorPartContainer([tensor], [1], Float16Compression(), part_size_bytes=400).part_values == (200,)


def container(*, deltas: bool = True) -> TensorPartContainer:
    tensors = [torch.arange(5.0), torch.arange(5.0, 11.0).reshape(2, 3)]
    return TensorPartContainer(tensors, [1, 0, 1], part_size_bytes=8, return_deltas=deltas)


def test_inputs_are_the_local_values_in_order() -> None:
    parts = container()
    assert parts.num_parts_by_peer == (3, 0, 3)
    assert [part.tolist() for part in parts.get_raw_input_parts(0)] == [[0, 1], [2, 3], [4]]

    async def encoded() -> list[list[float]]:
        return [deserialize_torch_tensor(each).tolist() async for each in parts.iterate_input_parts_for(2)]

    assert asyncio.run(encoded()) == [[5, 6], [7, 8], [9, 10]]


@pytest.mark.parametrize("deltas", [True, False])
def test_answers_go_where_they_belong(deltas: bool) -> None:
    parts = container(deltas=deltas)
    source = [tensor.clone() for tensor in parts._local]
    parts.register_processed_part(2, 1, torch.tensor([100.0, 200.0]))
    base = torch.tensor([7.0, 8.0]) if deltas else torch.zeros(2)
    first, second = parts.averaged
    assert torch.equal(first, torch.arange(5.0))
    assert second.flatten().tolist() == [5, 6, *(base + torch.tensor([100.0, 200.0])).tolist(), 9, 10]
    assert all(torch.equal(a, b) for a, b in zip(source, parts._local, strict=True)), "the tensors were written to"


def test_failed_reducers_leave_local_values_and_are_counted() -> None:
    parts = container()
    parts.register_processed_part(0, 0, torch.tensor([1.0, 1.0]))
    parts.register_failed_reducer(0)
    assert parts.failed_size == 3
    assert parts.averaged[0].tolist() == [1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    "answer",
    [
        torch.ones(3),
        torch.ones(0),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
        torch.ones(2, dtype=torch.complex64),
    ],
)
def test_bad_answers_are_refused(answer: torch.Tensor) -> None:
    parts = container()
    with pytest.raises(ProtocolViolation):
        parts.register_processed_part(0, 0, answer)
    assert parts.averaged[0].tolist() == [0, 1, 2, 3, 4]


def test_a_second_answer_is_refused() -> None:
    parts = container()
    parts.register_processed_part(0, 1, torch.ones(2))
    with pytest.raises(ProtocolViolation, match="second answer to part 1"):
        parts.register_processed_part(0, 1, torch.ones(2))


def test_integers_are_rounded() -> None:
    parts = TensorPartContainer([torch.tensor([1, 2, 2**53 - 1])], [1])
    parts.register_processed_part(0, 0, torch.tensor([0.4, 0.6, 0.0]))
    assert parts.averaged[0].tolist() == [1, 3, 2**53 - 1]


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="tensor_infos"):
        TensorPartContainer([torch.ones(1)], [1], tensor_infos=[])
    with pytest.raises(ConfigError, match=r"tensors\[1\]"):
        TensorPartContainer([torch.ones(1), torch.ones(1, dtype=torch.complex64)], [1])
    with pytest.raises(SerializationError, match="bfloat16"):
        TensorPartContainer([torch.ones(1, dtype=torch.bfloat16)], [1], Float16Compression())


def test_an_empty_part_of_a_peer_that_reduces_nothing_is_not_sent() -> None:
    parts = TensorPartContainer([torch.ones(0), torch.ones(4)], [0, 1, 1], part_size_bytes=8)
    assert parts.num_parts_by_peer == (0, 1, 1)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.integers(1, 5))
def test_parts_put_together_are_the_tensors(sizes: list[int], peers: int) -> None:
    tensors = [torch.from_numpy(np.random.default_rng(size).normal(size=size)) for size in sizes]
    parts = TensorPartContainer(tensors, [1] * peers, NoCompression(), part_size_bytes=160)
    assert sum(parts.num_parts_by_peer) == sum(max(1, -(-size // 20)) for size in sizes)
    together = [part for peer in range(peers) for part in parts.get_raw_input_parts(peer)]
    assert torch.equal(torch.cat([torch.zeros(0), *together]), torch.cat([torch.zeros(0), *tensors]))
    message = parts.encode(next(p for p in range(peers) if parts.num_parts_by_peer[p]), 0)
    assert (message.compression, message.dtype, len(message.size)) == (runtime_pb2.NONE, "float64", 1)
