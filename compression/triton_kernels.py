"""The kernels of Triton behind `hivemind.compression.fused`, and examples to try them out.

A launcher has the name and the arguments of the `Step` it takes the place of, and does what is told there. Importing
this needs Triton. Offsets have 64 bits, each access has a mask, and nothing but indices of 8 bits and patterns of 16
chooses from a table. Products and sums are rounded one by one, as by torch's operations, unless it says ``fma``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import triton
import triton.language as tl

__all__ = [
    "assign_patterns",
    "assign_steps",
    "count_patterns",
    "decode_blocks",
    "encode_blocks",
    "example",
    "look_up",
    "round_to_half",
    "scale_rows",
    "sum_blocks",
    "unscale_rows",
]

#: Elements that one program of most kernels looks after.
_TILE: Final = 1024
_HALF_MAX = tl.constexpr(torch.finfo(torch.float16).max)
#: For products and sums that are rounded one by one.
_OPTIONS: Final[dict[str, Any]] = {"enable_fp_fusion": False}


def round_to_half(values: torch.Tensor, half: torch.Tensor) -> None:
    _round_to_half[_programs(values)](values, half, len(values), TILE=_TILE, **_OPTIONS)


def scale_rows(rows: torch.Tensor, means: torch.Tensor, stds: torch.Tensor, half: torch.Tensor) -> None:
    grid, tile = _rows_and_columns(rows)
    _scale_rows[grid](rows, means, stds, half, *rows.shape, **tile, **_OPTIONS)


def unscale_rows(rows: torch.Tensor, half: torch.Tensor, means: torch.Tensor, stds: torch.Tensor) -> None:
    grid, tile = _rows_and_columns(rows)
    _unscale_rows[grid](rows, half, means, stds, *rows.shape, **tile, **_OPTIONS)


def sum_blocks(values: torch.Tensor, block: int, shift: float, sums: torch.Tensor, norms: torch.Tensor) -> None:
    _sum_blocks[len(sums),](values, shift, sums, norms, len(values), BLOCK=block, num_warps=8, **_OPTIONS)


def assign_steps(
    values: torch.Tensor, indices: torch.Tensor, offset: torch.Tensor, scale: float, shift: float, codes: int
) -> None:
    _assign_steps[_programs(values)](
        values, indices, offset, scale, shift, float(codes - 1), len(values), TILE=_TILE, **_OPTIONS
    )


def look_up(values: torch.Tensor, codebook: torch.Tensor, indices: torch.Tensor) -> None:
    _look_up[_programs(values)](values, codebook, indices, len(codebook), len(values), TILE=_TILE, **_OPTIONS)


def encode_blocks(
    values: torch.Tensor, block: int, nearest: torch.Tensor, scales: torch.Tensor, indices: torch.Tensor
) -> None:
    _encode_blocks[len(scales),](values, nearest, scales, indices, len(values), BLOCK=block, num_warps=8, **_OPTIONS)


def decode_blocks(
    values: torch.Tensor, block: int, codes: torch.Tensor, scales: torch.Tensor, indices: torch.Tensor
) -> None:
    _decode_blocks[len(scales),](
        values, codes, scales, indices, len(codes), len(values), BLOCK=block, num_warps=8, **_OPTIONS
    )


def count_patterns(values: torch.Tensor, center: float, scale: float, counts: torch.Tensor) -> None:
    _count_patterns[_programs(values)](values, counts, 1 / scale, center / scale, len(values), TILE=_TILE, **_OPTIONS)


def assign_patterns(
    values: torch.Tensor, center: float, scale: float, share_of: torch.Tensor, indices: torch.Tensor
) -> None:
    _assign_patterns[_programs(values)](
        values, share_of, indices, 1 / scale, center / scale, len(values), TILE=_TILE, **_OPTIONS
    )


def example(name: str, device: torch.device, dtype: torch.dtype, length: int) -> list[Any]:
    """Arguments for the launcher ``name``, with about ``length`` numbers of ``dtype`` on ``device``.

    The same values each time, in memory of their own.
    """
    random = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    def empty(*shape: int, kind: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    def octets(count: int) -> torch.Tensor:
        return torch.randint(256, (count,), generator=random, device=device).to(torch.uint8)

    block, width = 4096, 768
    blocks, rows = -(-length // block), -(-length // width)
    per_row = (
        torch.randn(rows, 1, generator=random, device=device),
        torch.rand(rows, 1, generator=random, device=device),
    )
    codebook = torch.linspace(-1, 1, 256, device=device)
    table = (torch.arange(2**16, device=device) // 256).to(torch.uint8)
    examples: dict[str, Callable[[], list[Any]]] = {
        "round_to_half": lambda: [numbers(length), empty(length, kind=torch.float16)],
        "scale_rows": lambda: [numbers(rows, width), *per_row, empty(rows, width, kind=torch.float16)],
        "unscale_rows": lambda: [empty(rows, width, kind=dtype), numbers(rows, width).half(), *per_row],
        "sum_blocks": lambda: [numbers(length), block, 0.5, *empty(2, blocks, kind=torch.float32)],
        "assign_steps": lambda: [
            numbers(length), empty(length, kind=torch.uint8), torch.tensor(128.0, device=device), 40.0, 0.1, 256
        ],
        "look_up": lambda: [empty(length, kind=dtype), codebook.to(dtype), octets(length)],
        "encode_blocks": lambda: [
            numbers(length), block, table, empty(blocks, kind=torch.float32), empty(length, kind=torch.uint8)
        ],
        "decode_blocks": lambda: [
            empty(length, kind=dtype), block, codebook, torch.rand(blocks, generator=random, device=device),
            octets(length),
        ],
        "count_patterns": lambda: [numbers(length), 0.5, 2.0, empty(2**16, kind=torch.int64)],
        "assign_patterns": lambda: [numbers(length), 0.5, 2.0, table, empty(length, kind=torch.uint8)],
    }  # fmt: skip
    return examples[name]()


def _programs(values: torch.Tensor) -> tuple[int]:
    return (triton.cdiv(len(values), _TILE),)


def _rows_and_columns(rows: torch.Tensor) -> tuple[tuple[int], dict[str, int]]:
    """How many programs there are for all of ``rows``, and how many rows and columns each looks after."""
    columns = min(_TILE, triton.next_power_of_2(rows.shape[1]))
    tile = {"ROWS": _TILE // columns, "COLUMNS": columns}
    return (triton.cdiv(len(rows), tile["ROWS"]) * triton.cdiv(rows.shape[1], columns),), tile


@triton.jit
def _as_half(values):
    return tl.clamp(values, -_HALF_MAX, _HALF_MAX, propagate_nan=tl.PropagateNan.ALL).to(tl.float16)


@triton.jit
def _pattern(values, factor, offset):
    scaled = values.to(tl.float32) * factor - offset
    return _as_half(scaled).to(tl.uint16, bitcast=True).to(tl.int32)


@triton.jit
def _places(length, SIZE: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    return places, places < length


@triton.jit
def _places_in_rows(count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    across = tl.cdiv(width, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(0) % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, row < count, row * width + column, (row < count) & (column < width)


@triton.jit
def _round_to_half(source, half, length, TILE: tl.constexpr):
    places, there = _places(length, TILE)
    values = tl.load(source + places, mask=there, other=0).to(tl.float32)
    tl.store(half + places, _as_half(values), mask=there)


@triton.jit
def _scale_rows(source, means, stds, half, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, row_there, places, there = _places_in_rows(count, width, ROWS, COLUMNS)
    values = tl.load(source + places, mask=there, other=0).to(tl.float32)
    mean = tl.load(means + row, mask=row_there, other=0)
    std = tl.load(stds + row, mask=row_there, other=1)
    tl.store(half + places, _as_half(tl.div_rn(values - mean, tl.broadcast_to(std, values.shape))), mask=there)


@triton.jit
def _unscale_rows(target, half, means, stds, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, row_there, places, there = _places_in_rows(count, width, ROWS, COLUMNS)
    values = tl.load(half + places, mask=there, other=0).to(tl.float32)
    std = tl.load(stds + row, mask=row_there, other=1)
    mean = tl.load(means + row, mask=row_there, other=0)
    # the product is rounded to the digits of the result, as hivemind 1.1 does it in place
    product = (values * std).to(target.dtype.element_ty).to(tl.float32)
    tl.store(target + places, (product + mean).to(target.dtype.element_ty), mask=there)


@triton.jit
def _sum_blocks(source, shift, sums, norms, length, BLOCK: tl.constexpr):
    places, there = _places(length, BLOCK)
    values = tl.load(source + places, mask=there, other=0).to(tl.float32) - shift
    values = tl.where(there, values, 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(values, 0))
    tl.store(norms + tl.program_id(0), tl.sqrt_rn(tl.sum(values * values, 0)))


@triton.jit
def _assign_steps(source, indices, offset, scale, shift, last, length, TILE: tl.constexpr):
    places, there = _places(length, TILE)
    values = tl.load(source + places, mask=there, other=0).to(tl.float32) - shift
    step = tl.fma(values, scale, tl.load(offset))
    # what is not a number is found before, and goes nowhere
    tl.store(indices + places, tl.clamp(step, 0.0, last).to(tl.uint8), mask=there)


@triton.jit
def _look_up(target, codebook, indices, codes, length, TILE: tl.constexpr):
    places, there = _places(length, TILE)
    index = tl.load(indices + places, mask=there, other=0).to(tl.int32)
    tl.store(target + places, tl.load(codebook + index, mask=index < codes, other=0), mask=there)


@triton.jit
def _encode_blocks(source, nearest, scales, indices, length, BLOCK: tl.constexpr):
    places, there = _places(length, BLOCK)
    values = tl.load(source + places, mask=there, other=0).to(tl.float32)
    # a maximum may pass over what is not a number; 0 times that is not 0
    largest = tl.max(tl.abs(values), 0) + tl.sum(values * 0.0, 0)
    largest = tl.where(largest == 0, 1.0, largest)
    tl.store(scales + tl.program_id(0), largest)
    half = tl.div_rn(values, tl.broadcast_to(largest, values.shape)).to(tl.float16)
    index = tl.load(nearest + half.to(tl.uint16, bitcast=True).to(tl.int32))
    tl.store(indices + places, index, mask=there)


@triton.jit
def _decode_blocks(target, code_values, scales, indices, codes, length, BLOCK: tl.constexpr):
    places, there = _places(length, BLOCK)
    index = tl.load(indices + places, mask=there, other=0).to(tl.int32)
    values = tl.load(code_values + index, mask=index < codes, other=0) * tl.load(scales + tl.program_id(0))
    tl.store(target + places, values.to(target.dtype.element_ty), mask=there)


@triton.jit
def _count_patterns(source, counts, factor, offset, length, TILE: tl.constexpr):
    places, there = _places(length, TILE)
    pattern = _pattern(tl.load(source + places, mask=there, other=0), factor, offset)
    tl.atomic_add(counts + pattern, tl.full(pattern.shape, 1, tl.int64), mask=there, sem="relaxed")


@triton.jit
def _assign_patterns(source, share_of, indices, factor, offset, length, TILE: tl.constexpr):
    places, there = _places(length, TILE)
    pattern = _pattern(tl.load(source + places, mask=there, other=0), factor, offset)
    tl.store(indices + places, tl.load(share_of + pattern), mask=there)
