"""Rounds of averaging on the in-memory network under the virtual clock: the mean is right, whoever takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hivemind.averaging.allreduce import AllReduceResult
from hivemind.averaging.modes import AveragingMode
from hivemind.clock import monotonic
from hivemind.compression import (
    BufferCodec,
    CompressionBase,
    Float16Compression,
    NoCompression,
    SizeAdaptiveCompression,
    known_codecs,
)
from hivemind.p2p import MemoryNetwork
from hivemind.virtual_clock import run_virtual
from tests.support.rounds import Member, members, run_all

SHAPES = [(3, 5), (), (40,), (0, 2), (7, 11)]


def expected_mean(group: Sequence[Member], weights: Sequence[float]) -> list[np.ndarray]:
    """The weighted mean by numpy in double precision."""
    by_tensor = zip(*[[tensor.double().numpy() for tensor in member.before] for member in group], strict=True)
    return [np.average(np.stack(values), axis=0, weights=weights) for values in by_tensor]


def check_mean(results: Sequence[object], expected: Sequence[np.ndarray], *, atol: float = 1e-6) -> None:
    for result in results:
        assert isinstance(result, AllReduceResult), result
        for tensor, mean in zip(result.averaged, expected, strict=True):
            assert tensor.shape == mean.shape
            np.testing.assert_allclose(tensor.double().numpy(), mean, atol=atol, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 4, 7, 16])
def test_everybody_ends_with_the_mean(size: int) -> None:
    async def main() -> None:
        net = MemoryNetwork()
        async with members(net, size, SHAPES) as group:
            peers = [member.peer_id for member in group]
            results = await run_all([member.join(peers, [1] * size) for member in group])
            check_mean(results, expected_mean(group, [1.0] * size))
            for member, result in zip(group, results, strict=True):
                assert member.unchanged(), "a round must not write to the tensors themselves"
                assert isinstance(result, AllReduceResult)
                assert result.contributors == tuple(peers)
                assert not result.failed_senders
                assert not result.failed_reducers

    run_virtual(main)


@pytest.mark.parametrize("weights", [[1.0, 2.0, 3.0], [0.0, 0.0, 5.0], [1e-3, 1e3, 1.0], [0.1, 0.1, 0.1]])
def test_weights(weights: list[float]) -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 3, SHAPES) as group:
            peers = [member.peer_id for member in group]
            results = await run_all(
                [member.join(peers, [3, 1, 2], weight=weight) for member, weight in zip(group, weights, strict=True)]
            )
            check_mean(results, expected_mean(group, weights))

    run_virtual(main)


def test_if_all_weights_are_zero_everybody_keeps_its_values() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 3, SHAPES) as group:
            peers = [member.peer_id for member in group]
            results = await run_all([member.join(peers, [1, 1, 1], weight=0.0) for member in group])
            for member, result in zip(group, results, strict=True):
                assert isinstance(result, AllReduceResult)
                assert all(torch.equal(new, old) for new, old in zip(result.averaged, member.before, strict=True))

    run_virtual(main)


def test_modes() -> None:
    """As observed of hivemind 1.1: leader, follower, auxiliary, client; the mean is over all but the auxiliary."""

    async def main() -> None:
        modes = [AveragingMode.NODE, AveragingMode.NODE, AveragingMode.CLIENT, AveragingMode.AUX]
        async with members(MemoryNetwork(), 4, [(3,), (2,)]) as group:
            peers = [member.peer_id for member in group]
            results = await run_all(
                [member.join(peers, [2, 2, 0, 1], modes=modes, part_size_bytes=8) for member in group]
            )
            check_mean(results, expected_mean(group, [1, 1, 1, 0]))

    run_virtual(main)


def test_many_clients_one_node_and_parts_over_the_window() -> None:
    """Clients get no answer before they have sent everything, more than a stream holds."""

    async def main() -> None:
        async with members(MemoryNetwork(), 4, [(2**19,), (2**19 + 1,)]) as group:
            peers = [member.peer_id for member in group]
            results = await run_all([member.join(peers, [1, 0, 0, 0], part_size_bytes=2**17) for member in group])
            check_mean(results, expected_mean(group, [1.0] * 4))

    run_virtual(main)


@pytest.mark.parametrize(
    ("compression", "atol"),
    [(Float16Compression(), 5e-3), (SizeAdaptiveCompression(20, NoCompression(), Float16Compression()), 5e-3)],
)
def test_compression(compression: CompressionBase, atol: float) -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 4, SHAPES) as group:
            peers = [member.peer_id for member in group]
            results = await run_all([member.join(peers, [1] * 4, compression=compression) for member in group])
            check_mean(results, expected_mean(group, [1.0] * 4), atol=atol)

    run_virtual(main)


@pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)
def test_every_codec(codec: BufferCodec) -> None:
    """What is lost is what two passes through the codec lose: of the own part, and of the answer to it."""

    async def main() -> None:
        async with members(MemoryNetwork(), 3, [(9000,), (70, 3)]) as group:
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1, 1, 1], compression=codec, part_size_bytes=2**13) for member in group]
            results = await run_all(runners)
            check_mean(results, expected_mean(group, [1.0] * 3), atol=1.5)  # quantiles, and values far out
            for result in results:
                assert isinstance(result, AllReduceResult)
                for averaged, mean in zip(result.averaged, expected_mean(group, [1.0] * 3), strict=True):
                    assert np.abs(averaged.double().numpy() - mean).mean() < 0.025

    run_virtual(main)


@pytest.mark.parametrize(
    ("dtype", "atol"),
    [(torch.float64, 1e-12), (torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.int64, 0.5), (torch.int16, 0.5)],
)
def test_dtypes(dtype: torch.dtype, atol: float) -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 3, [(50,)]) as group:
            for member in group:
                scale = 1 if dtype.is_floating_point else 1000
                member.tensors = [tensor.mul(scale).to(dtype) for tensor in member.tensors]
                member.before = [tensor.clone() for tensor in member.tensors]
            peers = [member.peer_id for member in group]
            results = await run_all([member.join(peers, [1, 1, 1]) for member in group])
            check_mean(results, expected_mean(group, [1.0] * 3), atol=atol)
            assert all(result.averaged[0].dtype == dtype for result in results if isinstance(result, AllReduceResult))

    run_virtual(main)


def test_strides_and_gradients_do_not_matter() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 2, [(6, 8)]) as group:
            for member in group:
                member.tensors = [member.tensors[0].t()[::2].requires_grad_()]
                member.before = [member.tensors[0].detach().clone()]
            results = await run_all([member.join([m.peer_id for m in group], [1, 1]) for member in group])
            check_mean(results, expected_mean(group, [1.0, 1.0]))

    run_virtual(main)


def test_a_group_of_one() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 1, SHAPES) as group:
            results = await run_all([group[0].join([group[0].peer_id], [1])])
            check_mean(results, expected_mean(group, [1.0]), atol=0)

    run_virtual(main)


def test_members_that_start_late_are_waited_for() -> None:
    async def main() -> None:
        async with members(MemoryNetwork(), 4, SHAPES) as group:
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1] * 4) for member in group]

            async def run(position: int) -> AllReduceResult:
                await asyncio.sleep(1.4 * position)
                return await runners[position].run()

            results = await asyncio.gather(*map(run, range(4)))
            check_mean(results, expected_mean(group, [1.0] * 4))

    run_virtual(main)


def test_a_slow_link_delays_but_does_not_harm() -> None:
    async def main() -> None:
        net = MemoryNetwork()
        async with members(net, 4, [(4000,)]) as group:
            peers = [member.peer_id for member in group]
            for member in group[1:]:
                net.bandwidth(4000, between=(group[0], member))
            net.delay(0.05, jitter=0.05)
            started = monotonic()
            results = await run_all([member.join(peers, [1] * 4, part_size_bytes=1000) for member in group])
            check_mean(results, expected_mean(group, [1.0] * 4))
            assert 1 < monotonic() - started < 10

    run_virtual(main)


def test_the_same_inputs_give_the_same_bits_in_any_order_of_arrival() -> None:
    def round_with(seed: int) -> list[torch.Tensor]:
        async def main() -> list[torch.Tensor]:
            net = MemoryNetwork(seed=1)
            net._random.seed(seed)
            async with members(net, 5, [(300,)]) as group:
                net.delay(0.01, jitter=0.5)
                group.sort(key=lambda member: member.tensors[0][0].item())
                peers = [member.peer_id for member in group]
                results = await run_all([member.join(peers, [1] * 5) for member in group])
                assert all(isinstance(result, AllReduceResult) for result in results), results
                return [tensor for result in results for tensor in result.averaged]  # type: ignore[union-attr]

        return run_virtual(main)

    first, second = round_with(1), round_with(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
