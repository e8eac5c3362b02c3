"""The emulated GPU refuses what a GPU refuses, and has what was not waited for arrive late."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hivemind.compression import buffers
from tests.support.emulated_gpu import GPU, emulate_gpu


def test_tensors_of_two_devices_do_not_mix() -> None:
    with emulate_gpu():
        there, here = torch.ones(3, device=GPU), torch.ones(3)
        assert there.is_cuda
        assert (there + 1).device == torch.zeros(2).to(GPU).device == GPU
        assert there[torch.tensor([0, 2])].tolist() == [1, 1]
        for mixed in (lambda: there + here, lambda: here.add_(there), lambda: torch.where(there > 0, here, there)):
            with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
                mixed()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


def test_views_and_results_share_memory() -> None:
    with emulate_gpu():
        whole = torch.zeros(4, device=GPU)
        whole[1:3].view(torch.int32).fill_(1)
        assert whole.view(torch.int32).tolist() == [0, 1, 1, 0]
        out = torch.empty(4, device=GPU)
        assert torch.add(whole, 1, out=out) is out


def test_a_copy_that_does_not_block_is_there_when_it_was_waited_for() -> None:
    with emulate_gpu() as stream:
        there, pinned = torch.ones(3, device=GPU), torch.zeros(3, pin_memory=True)
        pinned.copy_(there, non_blocking=True)
        assert pinned.tolist() == [0, 0, 0]
        stream.synchronize()
        assert pinned.tolist() == [1, 1, 1]
        assert torch.zeros(3).copy_(there, non_blocking=True).tolist() == [1, 1, 1]  # without pinned memory it blocks


def test_buffers_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `to_buffer` would give without: to see that the tests of codecs notice."""
    with emulate_gpu() as stream:
        there = torch.ones(3, device=GPU)
        assert torch.frombuffer(buffers.to_buffer(there), dtype=torch.float32).tolist() == [1, 1, 1]
        monkeypatch.setattr(stream, "synchronize", lambda: None)
        monkeypatch.setattr(torch, "empty", torch.zeros)
        assert torch.frombuffer(buffers.to_buffer(there), dtype=torch.float32).tolist() == [0, 0, 0]


def test_pools_see_the_gpu_too() -> None:
    with emulate_gpu(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: torch.zeros(2, device=GPU).is_cuda).result(timeout=30)
