"""Memory of large tensors is used again, never while something refers to it."""

from __future__ import annotations

import gc
import resource
import threading
from collections import deque

import pytest
import torch

from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor, spare_blocks
from hivemind.compression.buffers import CPU, allocate
from hivemind.compression.spare_blocks import LARGEST, SMALLEST
from hivemind.proto import runtime_pb2


@pytest.fixture(autouse=True)
def nothing_spare(monkeypatch: pytest.MonkeyPatch) -> deque[object]:
    spare: deque[object] = deque(maxlen=2)
    monkeypatch.setattr(spare_blocks, "_spare", spare)
    return spare


def large(size: int = SMALLEST) -> torch.Tensor:
    return allocate(size // 4, torch.float32, CPU)


def test_a_block_is_used_again_when_no_view_is_left(nothing_spare: deque[object]) -> None:
    tensor = large()
    place = tensor.data_ptr()
    views = [tensor[5:], tensor.numpy(), tensor.view(2, -1).t()]
    del tensor
    while views:
        assert not nothing_spare
        assert large().data_ptr() != place
        nothing_spare.clear()
        views.pop()
    assert len(nothing_spare) == 1
    assert large().data_ptr() == place


def test_what_is_alive_keeps_its_values() -> None:
    first = large().fill_(1)
    second = large().fill_(2)
    del first
    third = large().fill_(3)
    assert (second == 2).all()
    assert (third == 3).all()


@pytest.mark.parametrize(("before", "after", "again"), [(1.3, 1.0, True), (1.4, 1.0, False), (1.0, 1.1, False)])
def test_a_block_is_for_tensors_about_as_large(before: float, after: float, again: bool) -> None:
    place = large(int(before * SMALLEST)).data_ptr()
    assert (large(int(after * SMALLEST)).data_ptr() == place) is again


def test_what_is_spare_is_bounded(nothing_spare: deque[object]) -> None:
    many = [large() for _ in range(4)]
    many.clear()
    assert len(nothing_spare) == 2
    nothing_spare.clear()
    for size in (SMALLEST - 4, LARGEST + 4):
        large(size)
    assert not nothing_spare


def test_extracting_again_causes_no_page_faults() -> None:
    message = serialize_torch_tensor(torch.ones(2**23), runtime_pb2.UNIFORM_8BIT)

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        deserialize_torch_tensor(message)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    # 32 MiB of fresh memory are 16 huge pages, or 8192 small ones
    assert min(faults() for _ in range(5)) < 8


def test_threads_and_the_collector_let_go_while_others_take() -> None:
    wrong: list[float] = []

    def work(number: int) -> None:
        for _ in range(20):
            tensor = large()
            tensor[::4096] = number
            cycle: list[object] = [tensor]
            cycle.append(cycle)
            wrong.extend(value for value in tensor[::4096].tolist() if value != number)
            del tensor, cycle
            gc.collect(0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
