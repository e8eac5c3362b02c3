"""Codecs that lose digits: golden bytes, error bounds, values that are not finite, and what they refuse."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hivemind.compression import (
    BufferCodec,
    CompressionInfo,
    chunks,
    codec_for,
    deserialize_torch_tensor,
    known_codecs,
    serialize_torch_tensor,
)
from hivemind.compression.blockwise import dynamic_map
from hivemind.compression.chunks import CPU_SPAN
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2

CODECS = [codec for codec in known_codecs() if codec.compression_type in runtime_pb2.CompressionType.values()]
EIGHT_BITS = [runtime_pb2.QUANTILE_8BIT, runtime_pb2.UNIFORM_8BIT, runtime_pb2.BLOCKWISE_8BIT]
KEEPING_NON_FINITE = [runtime_pb2.MEANSTD_16BIT, *EIGHT_BITS]


def name_of(codec: BufferCodec | int) -> str:
    number = codec if isinstance(codec, int) else codec.compression_type
    return runtime_pb2.CompressionType.Name(number)  # type: ignore[arg-type]


every_codec = pytest.mark.parametrize("codec", CODECS, ids=name_of)
every_8bit = pytest.mark.parametrize("number", EIGHT_BITS, ids=name_of)


def there_and_back(tensor: torch.Tensor, codec: BufferCodec) -> torch.Tensor:
    return deserialize_torch_tensor(serialize_torch_tensor(tensor, codec.compression_type))


def check_bound(tensor: torch.Tensor, codec: BufferCodec) -> None:
    restored, finite = there_and_back(tensor, codec), tensor.isfinite()
    assert (restored.dtype, restored.shape) == (tensor.dtype, tensor.shape)
    error = (restored.double() - tensor.double()).abs()
    bound = codec.error_bound(tensor)
    assert bound.shape == tensor.shape
    beyond = finite & ~(error <= bound)
    assert not beyond.any(), (tensor[beyond][:3], restored[beyond][:3], bound[beyond][:3])


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor([[1, 2, 3], [4, 5, 70000.0]]), "e6bc0000e63ca8b9a8b9a83d 00000040ab50b646 ec05513f31e40047"),
        (torch.ones(10), "00" * 20 + "0000803f 00000034"),
    ],
)
def test_golden_mean_and_deviation(tensor: torch.Tensor, expected: str) -> None:
    message = serialize_torch_tensor(tensor, runtime_pb2.MEANSTD_16BIT)
    assert message.buffer == bytes.fromhex(expected)


def test_golden_codes() -> None:
    digest = hashlib.sha256(dynamic_map().numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"


def test_golden_uniform() -> None:
    """By the formula of the wire format: mean 2, deviation 2**0.5, steps of 6/256 of it."""
    buffer = serialize_torch_tensor(torch.tensor([0.0, 1, 2, 3, 4]), runtime_pb2.UNIFORM_8BIT).buffer
    assert struct.unpack_from("<q", buffer) == (256,)
    indices = list(buffer[-5:])
    assert indices == [68, 98, 128, 158, 188]
    codebook = struct.unpack_from("<256f", buffer, 8)
    assert [codebook[index] for index in indices] == [0, 1, 2, 3, 4]
    assert sum(map(abs, codebook)) == 10


@every_8bit
def test_layout_and_size(number: int) -> None:
    codec, shape = codec_for(number), torch.Size([100, 100])
    scales = 8 + 4 * 3 if number == runtime_pb2.BLOCKWISE_8BIT else 0
    message = serialize_torch_tensor(torch.randn(shape), number)
    assert len(message.buffer) == 8 + 1024 + scales + 10_000 == codec.encoded_bytes(shape, torch.float32)


@every_codec
def test_sizes_and_ratios_are_as_stated(codec: BufferCodec) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        tensor = torch.randn(3, 5000).to(dtype)
        message = serialize_torch_tensor(tensor, codec.compression_type)
        assert len(message.buffer) == codec.encoded_bytes(tensor.shape, dtype)
        ratio = codec.estimate_compression_ratio(CompressionInfo.from_tensor(tensor))
        assert len(message.buffer) / tensor.nbytes == pytest.approx(ratio, rel=0.08)


def test_only_sums_of_plain_numbers_are_sums() -> None:
    assert {name_of(codec) for codec in CODECS if codec.linear} == {"NONE", "FLOAT16"}
    for codec in CODECS:
        if codec.linear:
            first, second = torch.tensor([1.0, 2.5]), torch.tensor([0.25, -4.0])
            dtype = np.float32 if codec.compression_type == runtime_pb2.NONE else np.float16
            arrays = [
                np.frombuffer(codec.encode(each, CompressionInfo("x", None))[1], dtype) for each in (first, second)
            ]  # type: ignore[arg-type]
            message = serialize_torch_tensor(first, codec.compression_type)
            message.buffer = (arrays[0] + arrays[1]).tobytes()
            assert torch.equal(deserialize_torch_tensor(message), first + second)


arrays = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=40), elements=st.floats(width=32)
)


@every_codec
@given(array=arrays, dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_any_values_are_within_the_bound(codec: BufferCodec, array: np.ndarray, dtype: torch.dtype) -> None:
    check_bound(torch.from_numpy(array.copy()).to(dtype), codec)


def distributions(length: int) -> dict[str, torch.Tensor]:
    """What tensors of models look like, and what they do not."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(length, generator=generator)
    return {
        "normal": normal,
        "far from 0": 1000 + normal / 100,
        "heavy tails": normal / torch.rand(length, generator=generator),
        "mostly 0": normal * (torch.rand(length, generator=generator) < 0.05),
        "one outlier": torch.cat([normal[1:], torch.tensor([1e30])]),
        "two narrow clusters": normal.sign() * 1000 + normal / 1000,
        "tiny": normal * 1e-38,
        "huge": (normal * 5e37).clamp(-3e38, 3e38),
        "constant": torch.full((length,), 0.1),
        "zero": torch.zeros(length),
        "relu": normal.clamp(min=0),
        "ternary": normal.sign(),
        "ascending": torch.arange(length, dtype=torch.float32),
        "exponents": normal.sign() * torch.exp2(normal * 20),
    }


@every_codec
@pytest.mark.parametrize("length", [5, 300, 8193, CPU_SPAN + 77])
def test_distributions_are_within_the_bound(codec: BufferCodec, length: int) -> None:
    for tensor in distributions(length).values():
        check_bound(tensor, codec)


@every_codec
def test_what_several_threads_do_is_within_the_bound(codec: BufferCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SHARED_ELEMENTS", 1)
    tensors = distributions(3 * CPU_SPAN + 5)
    check_bound(tensors["normal"], codec)
    check_bound(tensors["two narrow clusters"], codec)


@every_8bit
def test_zeros_and_constants_are_exact(number: int) -> None:
    for length in (300, 50_000):
        for value in (0.0, 0.1, -3.0):
            tensor = torch.full((length,), value)
            restored = there_and_back(tensor, codec_for(number))
            assert torch.equal(restored, tensor)


def test_few_values_are_exact_quantiles() -> None:
    tensor = torch.randn(256)
    assert torch.equal(there_and_back(tensor, codec_for(runtime_pb2.QUANTILE_8BIT)), tensor)


def test_a_tiny_negative_value_is_beside_zero() -> None:
    tensor = torch.zeros(9000)
    tensor[0], tensor[1] = -(2**-24), 1.0
    check_bound(tensor, codec_for(runtime_pb2.QUANTILE_8BIT))


@pytest.mark.parametrize("length", [3000, 300_000])
def test_mean_error_is_that_of_the_formulas(length: int) -> None:
    """Against the encoders of the wire format, computed as they stand there."""
    values = torch.randn(length, generator=torch.Generator().manual_seed(2))
    step = 6 * values.std() / 256
    uniform = ((values - values.mean()) / step).round().add(128).clamp(0, 255).long()
    borders = torch.from_numpy(np.quantile(values.numpy(), np.linspace(0, 1, 257)[1:-1])).float()
    quantile = torch.searchsorted(borders, values)
    blocks = torch.nn.functional.pad(values, (0, -length % 4096)).view(-1, 4096)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    codes = dynamic_map()
    nearest = codes[torch.bucketize(scaled, (codes[1:] + codes[:-1]) / 2)]
    expected = {
        runtime_pb2.UNIFORM_8BIT: by_means(values, uniform),
        runtime_pb2.QUANTILE_8BIT: by_means(values, quantile),
        runtime_pb2.BLOCKWISE_8BIT: (nearest * blocks.abs().amax(1, keepdim=True)).view(-1)[:length],
    }
    for number, reference in expected.items():
        ours = there_and_back(values, codec_for(number)) - values
        theirs = reference - values
        assert ours.abs().mean() <= 1.02 * theirs.abs().mean(), name_of(number)
        assert ours.square().mean() <= 1.05 * theirs.square().mean(), name_of(number)


def by_means(values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros(256).index_add_(0, shares, values)
    return (sums / torch.bincount(shares, minlength=256).clamp(min=1))[shares]


@pytest.mark.parametrize("number", KEEPING_NON_FINITE, ids=name_of)
@pytest.mark.parametrize("length", [7, 5000, 100_000])
def test_values_that_are_not_finite_stay_so_and_spoil_nothing(number: int, length: int) -> None:
    clean = torch.randn(length, generator=torch.Generator().manual_seed(3))
    dirty, special = clean.clone(), [float("nan"), float("inf"), float("-inf")]
    places = torch.arange(3) * (length // 3)
    dirty[places] = torch.tensor(special)
    restored = there_and_back(dirty, codec_for(number))
    assert restored[places[0]].isnan()
    assert restored[places[1:]].tolist() == special[1:]
    check_bound(dirty, codec_for(number))
    finite = dirty.isfinite()
    error = (restored - clean)[finite].abs().mean()
    assert error <= 1.5 * (there_and_back(clean, codec_for(number)) - clean).abs().mean() + 1e-3
    for value in special:  # nothing finite at all
        assert torch.equal(
            there_and_back(torch.tensor([value]), codec_for(number)).isnan(), torch.tensor([value]).isnan()
        )


@pytest.mark.parametrize("number", KEEPING_NON_FINITE, ids=name_of)
def test_float64_beyond_float32_is_infinite(number: int) -> None:
    restored = there_and_back(torch.tensor([1.0, -1e300, 2.0], dtype=torch.float64), codec_for(number))
    assert restored[1] == float("-inf")
    assert restored[[0, 2]].isfinite().all()


@every_codec
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (1,), (3, 1), (2, 3, 4)], ids=str)
def test_shapes(codec: BufferCodec, shape: tuple[int, ...]) -> None:
    check_bound(torch.randn(shape), codec)


@every_codec
def test_no_dimensions(codec: BufferCodec) -> None:
    if codec.compression_type == runtime_pb2.MEANSTD_16BIT:
        with pytest.raises(SerializationError, match="at least one dimension"):
            there_and_back(torch.tensor(1.0), codec)
    else:
        check_bound(torch.tensor(1.0), codec)


@every_codec
def test_strides_do_not_matter_and_nothing_is_changed(codec: BufferCodec) -> None:
    tensor = torch.randn(60, 80).t()[::2, 1:]
    kept = tensor.clone()
    restored = there_and_back(tensor, codec)
    assert torch.equal(restored, there_and_back(kept.contiguous(), codec))
    assert torch.equal(tensor, kept)


@every_codec
def test_the_same_bytes_whatever_the_threads_do(codec: BufferCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(3 * CPU_SPAN + 999, generator=torch.Generator().manual_seed(4))
    first = serialize_torch_tensor(tensor, codec.compression_type).buffer
    monkeypatch.setattr(chunks, "SHARED_ELEMENTS", 1)
    assert serialize_torch_tensor(tensor, codec.compression_type).buffer == first
    assert serialize_torch_tensor(tensor, codec.compression_type).buffer == first


@every_codec
@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, dtype=torch.int64),
        torch.ones(3, dtype=torch.bool),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(2, 2).to_sparse(),
        torch.ones(3, device="meta"),
        torch.ones(3).to(torch.float8_e5m2),
    ],
    ids=["int64", "bool", "complex64", "sparse", "meta", "float8"],
)
def test_what_is_refused_is_named(codec: BufferCodec, tensor: torch.Tensor) -> None:
    carried = codec.compression_type == runtime_pb2.NONE and tensor.layout == torch.strided and not tensor.is_meta
    if carried and tensor.dtype != torch.float8_e5m2:
        assert torch.equal(there_and_back(tensor, codec), tensor)
        return
    named = "meta" if tensor.is_meta else "sparse" if tensor.layout != torch.strided else str(tensor.dtype)
    with pytest.raises(SerializationError, match=named) as caught:
        serialize_torch_tensor(tensor, codec.compression_type)
    assert type(codec).__name__ in str(caught.value)


def message(number: int, buffer: bytes, **fields: Any) -> runtime_pb2.Tensor:
    return runtime_pb2.Tensor(**{"compression": number, "size": [10], "dtype": "float32", "buffer": buffer, **fields})


def quantized(length: int, codes: int, indices: bytes) -> bytes:
    return struct.pack("<q", length) + bytes(4 * codes) + indices


def blocks(scales: int, codes: int, *, data: bytes) -> bytes:
    return struct.pack("<qq", scales, codes) + data


BAD_BUFFERS = [
    ("QUANTILE_8BIT", b"", "0 bytes"),
    ("QUANTILE_8BIT", bytes(7), "7 bytes"),
    ("QUANTILE_8BIT", quantized(256, 256, bytes(9)), "1041 bytes, not 22 to 1042"),
    ("QUANTILE_8BIT", quantized(256, 256, bytes(11)), "1043 bytes"),
    ("UNIFORM_8BIT", quantized(0, 1, bytes(10)), "got 0 codes, allowed: 1 to 256"),
    ("UNIFORM_8BIT", quantized(-1, 1, bytes(10)), "got -1 codes"),
    ("UNIFORM_8BIT", quantized(2**62, 1, bytes(10)), "codes, allowed: 1 to 256"),
    ("UNIFORM_8BIT", quantized(255, 256, bytes(10)), "255 codes in 1042 bytes"),
    ("UNIFORM_8BIT", quantized(2, 2, bytes(9) + b"\x02"), "index 2 into a codebook of 2"),
    ("BLOCKWISE_8BIT", bytes(15), "15 bytes"),
    ("BLOCKWISE_8BIT", blocks(2, 256, data=bytes(4 + 1024 + 10)), "2 scales"),
    ("BLOCKWISE_8BIT", blocks(-1, 256, data=bytes(4 + 1024 + 10)), "-1 scales"),
    ("BLOCKWISE_8BIT", blocks(1, 0, data=bytes(4 + 1024 + 10)), "got 0 codes"),
    ("BLOCKWISE_8BIT", blocks(1, 255, data=bytes(4 + 1024 + 10)), "255 codes in 1054 bytes"),
    ("BLOCKWISE_8BIT", blocks(1, 3, data=bytes(4 + 12) + bytes(9) + b"\xff"), "index 255 into a codebook of 3"),
    ("MEANSTD_16BIT", bytes(27), "27 bytes, not 28"),
    ("MEANSTD_16BIT", bytes(29), "29 bytes, not 28"),
]


@pytest.mark.parametrize(("codec", "buffer", "text"), BAD_BUFFERS)
def test_buffers_that_contradict_themselves(codec: str, buffer: bytes, text: str) -> None:
    with pytest.raises(SerializationError, match=text):
        deserialize_torch_tensor(message(runtime_pb2.CompressionType.Value(codec), buffer))


@every_codec
def test_headers_that_lie_take_no_memory(codec: BufferCodec) -> None:
    lies: list[tuple[dict[str, Any], str]] = [
        ({"size": [2**32 - 1]}, "shape \\(4294967295,\\) came with 1042 bytes"),
        ({"size": [2**32 - 1] * 5}, "shape: got 5 dimensions, allowed: 64 dimensions, 281474976710656 elements"),
        ({"size": [0, *[2**32 - 1] * 5]}, "shape: got 6 dimensions"),
        ({"dtype": "floating32"}, "dtype: got 'floating32', allowed: float32, "),
    ]
    if codec.compression_type != runtime_pb2.NONE:
        lies.append(({"dtype": "complex64"}, "does not carry .*complex64"))
    for fields, text in lies:
        tracemalloc.start()
        with pytest.raises(SerializationError, match=text):
            deserialize_torch_tensor(message(codec.compression_type, bytes(1042), **fields))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


@every_codec
@pytest.mark.parametrize("change", [-1, 1, 4096])
def test_truncated_and_overlong_buffers_are_named(codec: BufferCodec, change: int) -> None:
    cut = serialize_torch_tensor(torch.randn(5000), codec.compression_type)
    length = len(cut.buffer)
    cut.buffer = (cut.buffer + bytes(4096))[: length + change]
    with pytest.raises(SerializationError, match=f"shape \\(5000,\\) came with {length + change} bytes|codes in"):
        deserialize_torch_tensor(cut)


@pytest.mark.parametrize("codes", [1, 3, 255])
def test_smaller_codebooks_are_read(codes: int) -> None:
    values = np.arange(codes, dtype=np.float32)
    indices = bytes(index % codes for index in range(10))
    buffer = struct.pack("<q", codes) + values.tobytes() + indices
    assert deserialize_torch_tensor(message(runtime_pb2.UNIFORM_8BIT, buffer)).tolist() == list(map(float, indices))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_whole_numbers_that_hivemind_1_sends_in_blocks_are_read(dtype: torch.dtype) -> None:
    as_floats = serialize_torch_tensor(torch.tensor([0.0, 1.0, 100.0, -100.0]), runtime_pb2.BLOCKWISE_8BIT)
    as_floats.dtype = str(dtype).removeprefix("torch.")
    restored = deserialize_torch_tensor(as_floats)
    assert restored.dtype == dtype
    assert restored[[0, 2]].tolist() == torch.tensor([0, 100]).to(dtype).tolist()


@every_codec
@given(buffer=st.binary(max_size=1100), size=st.lists(st.integers(0, 20), max_size=3))
def test_any_bytes_decode_or_are_refused(codec: BufferCodec, buffer: bytes, size: list[int]) -> None:
    try:
        restored = deserialize_torch_tensor(message(codec.compression_type, buffer, size=size))
    except SerializationError:
        return
    assert list(restored.shape) == size
