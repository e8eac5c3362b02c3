"""What codecs share: memory, sums over spans, and lookups, each against a plain way to do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hivemind.compression.buffers import CPU, WIRE_DTYPES, Elements, allocate
from hivemind.compression.chunks import CPU_SPAN
from hivemind.compression.codebook import CODES, Lookup, all_finite
from hivemind.compression.moments import BLOCK, moments

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LENGTHS = [1, 5, BLOCK, BLOCK + 1, CPU_SPAN, 2**20 + 4097]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_moments_are_those_of_numpy(length: int, dtype: torch.dtype) -> None:
    normal = torch.randn(length, generator=torch.Generator().manual_seed(0))
    for values in (normal, 3 + normal, 50 + normal / 4, torch.full((length,), 0.1), torch.zeros(length)):
        values = values.to(dtype)
        mean, sigma = moments(values)
        exact = values.double().numpy()
        assert mean == pytest.approx(exact.mean(), rel=1e-6, abs=1e-6 * (exact.std() + 1e-30))
        assert sigma == pytest.approx(exact.std(), rel=1e-5, abs=1e-7 * abs(exact.mean()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_moments_show_values_that_are_not_finite(value: float) -> None:
    values = torch.randn(3 * CPU_SPAN)
    assert all_finite(values)
    values[CPU_SPAN + 3] = value
    assert not np.isfinite(moments(values)[1])
    assert not all_finite(values)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("length", [1, 2**18, 2**18 + 1])
@pytest.mark.parametrize("first", [0, 1])
def test_lookups_are_those_of_torch(length: int, dtype: torch.dtype, first: int) -> None:
    """Also by pairs, and where indices begin at an odd byte."""
    codebook = torch.randn(CODES).to(dtype)
    random = np.random.default_rng(0).integers(0, CODES, first + length, dtype=np.uint8)
    indices, found = random[first:], torch.empty(length, dtype=dtype)
    Lookup(codebook, length).take(indices, found)
    assert torch.equal(found, codebook[torch.from_numpy(indices.astype(np.int64))])


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_elements_are_read_where_they_are(kind: type[bytes | bytearray], offset: int) -> None:
    values = torch.arange(1000, dtype=torch.float16)
    buffer = memoryview(kind(bytes(offset) + values.numpy().tobytes()))[offset:]
    read = Elements(buffer, torch.float16, CPU).read(10, 30, torch.empty(20, dtype=torch.float16))
    assert torch.equal(read, values[10:30])


@pytest.mark.parametrize("dtype", list(WIRE_DTYPES.values()), ids=str)
def test_memory_for_results_is_aligned(dtype: torch.dtype) -> None:
    for length in (0, 1, 1000, 2**21):
        made = allocate(length, dtype, CPU)
        assert (made.dtype, made.shape) == (dtype, (length,))
        assert made.data_ptr() % 64 == 0
