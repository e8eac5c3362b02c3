"""The reducer: when a part is complete, who has a share in it, and what its mean is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hivemind.averaging.arithmetic import accumulator_dtype, is_finite, weighted_mean
from hivemind.averaging.reducer import PartLedger, TensorPartReducer, mean_of_tensors
from hivemind.errors import AllreduceException, BannedException, ProtocolViolation

FLOATS = st.floats(-1e6, 1e6, width=32)


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.float32, (n, 17), elements=FLOATS),
            st.lists(st.floats(0, 1e3), min_size=n, max_size=n).filter(lambda weights: max(weights) > 1e-3),
        )
    )
)
def test_weighted_mean_is_numpys(case: tuple[np.ndarray, list[float]]) -> None:
    values, weights = case
    mean = weighted_mean([torch.from_numpy(row.copy()) for row in values], weights)
    expected = np.average(values.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-4, atol=max(1e-6, 1e-6 * float(np.abs(values).max())))


def test_values_of_weight_zero_are_not_looked_at() -> None:
    poison = torch.full((3,), float("nan"))
    assert weighted_mean([poison, torch.ones(3), poison], [0.0, 2.0, 0.0]).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int8, torch.float32),
        (torch.int64, torch.float64),
        (torch.bool, torch.float32),
    ],
)
def test_accumulators(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert accumulator_dtype(dtype) == expected
    mean = weighted_mean([torch.ones(2).to(dtype), torch.zeros(2).to(dtype)], [1.0, 3.0])
    assert mean.dtype == expected
    assert mean.tolist() == [0.25, 0.25]


def test_is_finite() -> None:
    assert is_finite(torch.tensor([3e38, 3e38])), "a sum that overflows is no infinity among the values"
    assert is_finite(torch.ones(3, dtype=torch.int64))
    assert is_finite(torch.ones(0))
    for wrong in ("nan", "inf", "-inf"):
        assert not is_finite(torch.tensor([0.0, float(wrong)]))
    assert not is_finite(torch.tensor([float("inf"), float("-inf")]))


@given(st.integers(1, 5), st.integers(0, 4), st.data())
def test_ledger(parts: int, others: int, data: st.DataObject) -> None:
    """Whatever comes in which order: complete parts only grow, and are those that all live senders have delivered."""
    ledger, sent, banned = PartLedger(parts, others + 1), [0] * (others + 1), set()
    before = 0
    for _ in range(data.draw(st.integers(0, 40))):
        sender = data.draw(st.integers(0, others))
        if data.draw(st.integers(0, 9)) == 0:
            assert ledger.ban(sender) == (sender not in banned and sent[sender] < parts)
            banned |= {sender} if sent[sender] < parts else set()
        elif sender in banned:
            with pytest.raises(BannedException):
                ledger.deliver(sender, sent[sender])
        elif sent[sender] < parts:
            ledger.deliver(sender, sent[sender])
            sent[sender] += 1
        else:
            with pytest.raises(ProtocolViolation):
                ledger.deliver(sender, sent[sender])
        live = [count for each, count in enumerate(sent) if each not in banned]
        assert ledger.complete == (min(live) if live else parts)
        assert ledger.complete >= before
        before = ledger.complete


@pytest.mark.parametrize("part", [-1, 1, 2, 100])
def test_parts_come_in_order(part: int) -> None:
    with pytest.raises(ProtocolViolation, match="came after 0 parts"):
        PartLedger(2, 1).deliver(0, part)


def make(num_parts: int = 3, num_senders: int = 3) -> TensorPartReducer[torch.Tensor, torch.Tensor]:
    return TensorPartReducer([torch.Size([2])] * num_parts, num_senders)


@pytest.mark.asyncio
async def test_a_part_waits_for_all_and_all_get_the_same_mean() -> None:
    reducer = make()
    first = asyncio.ensure_future(reducer.accumulate_part(0, 0, torch.tensor([1.0, 2.0]), 1.0))
    second = asyncio.ensure_future(reducer.accumulate_part(2, 0, torch.tensor([3.0, 4.0]), 1.0))
    await asyncio.sleep(0)
    assert not first.done()
    assert not second.done()
    last = await reducer.accumulate_part(1, 0, torch.tensor([5.0, 6.0]), 2.0)
    assert last.tolist() == [3.5, 4.5]
    assert (await first) is last
    assert (await second) is last


@pytest.mark.asyncio
async def test_a_sender_may_be_ahead_of_others() -> None:
    reducer = make(num_senders=2)
    for part in range(3):
        reducer.deliver(0, part, torch.full((2,), float(part)), 1.0)
    for part in range(3):
        mean = await reducer.accumulate_part(1, part, torch.zeros(2), 1.0)
        assert mean.tolist() == [part / 2] * 2


@pytest.mark.asyncio
async def test_a_failed_sender_is_not_waited_for_and_keeps_what_it_gave() -> None:
    reducer = make(num_senders=2)
    reducer.deliver(1, 0, torch.full((2,), 3.0), 1.0)
    assert reducer.on_sender_failed(1)
    assert (await reducer.accumulate_part(0, 0, torch.ones(2), 1.0)).tolist() == [2, 2]
    assert (await reducer.accumulate_part(0, 1, torch.ones(2), 1.0)).tolist() == [1, 1]
    with pytest.raises(BannedException):
        reducer.deliver(1, 1, torch.ones(2), 1.0)
    assert not reducer.on_sender_failed(1)


@pytest.mark.asyncio
async def test_a_failure_completes_what_waits() -> None:
    reducer = make(num_senders=2)
    waiting = asyncio.ensure_future(reducer.accumulate_part(0, 0, torch.ones(2), 1.0))
    await asyncio.sleep(0)
    reducer.on_sender_failed(1)
    assert (await waiting).tolist() == [1, 1]


@pytest.mark.asyncio
async def test_the_end_wakes_everybody() -> None:
    reducer = make(num_senders=2)
    done = asyncio.gather(reducer.accumulate_part(0, 0, torch.ones(2)), reducer.accumulate_part(1, 0, torch.ones(2)))
    await done
    waiting = asyncio.ensure_future(reducer.accumulate_part(0, 1, torch.ones(2), 1.0))
    await asyncio.sleep(0)
    reducer.finalize("enough")
    reducer.finalize("again")
    with pytest.raises(AllreduceException, match="enough"):
        await waiting
    assert (await reducer.result(0)).tolist() == [1, 1], "what was reduced before stays"


@pytest.mark.asyncio
async def test_a_waiter_that_is_cancelled_leaves_the_part_to_others() -> None:
    started, go_on, calls = threading.Event(), threading.Event(), []

    def slow(part: int, inputs: Mapping[int, tuple[torch.Tensor, float]]) -> torch.Tensor:
        calls.append(part)
        started.set()
        assert go_on.wait(30)
        return mean_of_tensors(part, inputs)

    size = 2**16
    reducer = TensorPartReducer([torch.Size([size])], 2, slow)
    reducer.deliver(0, 0, torch.ones(size), 1.0)
    reducer.deliver(1, 0, torch.zeros(size), 1.0)
    first = asyncio.ensure_future(reducer.result(0))
    assert await asyncio.to_thread(started.wait, 30)
    second = asyncio.ensure_future(reducer.result(0))
    first.cancel()
    go_on.set()
    assert (await second)[0].item() == 0.5
    assert calls == [0], "the values may be used up by the first call"


@pytest.mark.asyncio
async def test_no_mean_without_weights() -> None:
    reducer = make(num_senders=1)
    with pytest.raises(AllreduceException, match="nobody has contributed"):
        await reducer.accumulate_part(0, 0, torch.ones(2), 0.0)
