"""Codecs compute in their own threads, whatever torch may do in others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from hivemind.compression import BufferCodec, CompressionInfo, chunks, known_codecs
from hivemind.compression.buffers import CPU
from hivemind.compression.one_thread import _setter, one_thread


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_new_thread(work: Callable[[], object]) -> list[object]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(60)
    return results


def test_only_the_calling_thread_is_limited() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
        assert in_new_thread(torch.get_num_threads) == [3]
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_it_ends_with_an_error_too() -> None:
    with pytest.raises(ValueError, match="x"), one_thread():
        raise ValueError("x")
    assert torch.get_num_threads() == 3


def test_an_openmp_that_is_not_torchs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _setter.__wrapped__() is not None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert _setter.__wrapped__() is None


@pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)
def test_codecs_start_no_threads_of_torch(codec: BufferCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a new thread would be new."""
    monkeypatch.setattr(chunks, "SHARED_ELEMENTS", 2**40)
    tensor = torch.randn(chunks.CPU_SPAN + 2**16, generator=torch.Generator().manual_seed(0))

    def there_and_back() -> tuple[int, int]:
        before = len(os.listdir("/proc/self/task"))
        _, buffer = codec.encode(tensor, CompressionInfo.from_tensor(tensor))
        codec.decode(bytes(buffer), tensor.dtype, tensor.shape, CPU)
        return before, len(os.listdir("/proc/self/task"))

    ((before, after),) = in_new_thread(there_and_back)  # type: ignore[misc]
    assert after == before
