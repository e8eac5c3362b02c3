"""Rounds of averaging with tensors on a GPU, also together with peers that have them on their processor."""

from __future__ import annotations

import pytest
import torch

from hivemind.averaging.allreduce import AllReduceResult
from hivemind.compression import BufferCodec, known_codecs
from hivemind.p2p import MemoryNetwork
from hivemind.virtual_clock import run_virtual
from tests.support.rounds import members, run_all

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


@pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)
@pytest.mark.parametrize("others", [GPU, CPU], ids=str)
def test_a_round(codec: BufferCodec, others: torch.device) -> None:
    """What is lost is what two passes through the codec lose: of the own part, and of the answer to it."""

    async def main() -> None:
        async with members(MemoryNetwork(), 3, [(300, 7), (5000,)]) as group:
            before = [[tensor.clone() for tensor in member.tensors] for member in group]
            for number, member in enumerate(group):
                device = others if number else GPU
                member.tensors = [tensor.to(device) for tensor in member.tensors]
            peers = [member.peer_id for member in group]
            runners = [member.join(peers, [1] * 3, compression=codec, part_size_bytes=2**11) for member in group]
            for member, result in zip(group, await run_all(runners), strict=True):
                assert isinstance(result, AllReduceResult), result
                for number, (average, own) in enumerate(zip(result.averaged, member.tensors, strict=True)):
                    assert (average.device, average.dtype, average.shape) == (own.device, own.dtype, own.shape)
                    expected = torch.stack([tensors[number] for tensors in before]).mean(0)
                    lost = torch.stack([codec.error_bound(tensors[number]).max() for tensors in before])
                    assert (average.cpu() - expected).abs().max() <= 3 * lost.max() + 1e-6
                    assert torch.equal(own.cpu(), before[group.index(member)][number])

    run_virtual(main)
