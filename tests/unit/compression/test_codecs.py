"""Codecs: golden bytes of hivemind 1.1, round trips, and strategies that choose a codec."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hivemind.compression import (
    CompressionBase,
    CompressionInfo,
    Float16Compression,
    NoCompression,
    PerTensorCompression,
    RoleAdaptiveCompression,
    SizeAdaptiveCompression,
    TensorDescriptor,
    TensorRole,
    Uniform8BitQuantization,
    base,
    codec_for,
    deserialize_torch_tensor,
    serialize_torch_tensor,
)
from hivemind.compression.buffers import WIRE_DTYPES, from_buffer, to_buffer
from hivemind.errors import ConfigError, SerializationError
from hivemind.proto import runtime_pb2

FLOATS = [torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize(
    ("tensor", "compression", "expected"),
    [
        (torch.tensor([1, 2, 3, 4, 5, 70000.0]), runtime_pb2.FLOAT16, "003c0040004200440045ff7b"),
        (torch.tensor([1.0, -2.0]), runtime_pb2.NONE, "0000803f000000c0"),
        (torch.tensor([True, False]), runtime_pb2.NONE, "0100"),
        (torch.tensor([1, 258]), runtime_pb2.NONE, "01000000000000000201000000000000"),
        (torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).T, runtime_pb2.NONE, "01030204"),
        (torch.tensor([1.0], dtype=torch.bfloat16), runtime_pb2.NONE, "0000803f"),
    ],
)
def test_golden_buffers(
    tensor: torch.Tensor, compression: runtime_pb2.CompressionType.ValueType, expected: str
) -> None:
    assert serialize_torch_tensor(tensor, compression).buffer.hex() == expected


def test_golden_messages() -> None:
    message = serialize_torch_tensor(torch.tensor(0.0))
    message.buffer = b""
    assert message.SerializeToString().hex() == "2207666c6f61743332"
    message = serialize_torch_tensor(torch.empty(300, dtype=torch.float32))
    message.ClearField("buffer")
    message.ClearField("dtype")
    assert message.SerializeToString().hex() == "1202ac02"


def test_bfloat16_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.tensor([1.0, -3.140625, 0.0], dtype=torch.bfloat16)
    legacy = serialize_torch_tensor(tensor)
    assert (legacy.dtype, len(legacy.buffer)) == ("bfloat16", 12)
    monkeypatch.setattr(base, "USE_LEGACY_BFLOAT16", False)
    compact = serialize_torch_tensor(tensor)
    assert compact.buffer.hex() == "803f49c00000"
    for message in (legacy, compact):
        restored = deserialize_torch_tensor(message)
        assert restored.dtype == torch.bfloat16
        assert torch.equal(restored, tensor)


@pytest.mark.parametrize("dtype", list(WIRE_DTYPES.values()), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (2, 3, 4)], ids=str)
def test_none_restores_every_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    restored = deserialize_torch_tensor(serialize_torch_tensor(tensor))
    assert restored.dtype == dtype
    assert torch.equal(restored, tensor)


def test_views_of_other_values_than_the_memory_holds() -> None:
    """Conjugates and negatives are flags of a view; a broadcast tensor has fewer elements in memory than it has."""
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    for tensor in (numbers.conj(), numbers.conj().imag, torch.tensor(3.0).expand(2, 3), torch.arange(5)[1::2]):
        assert torch.equal(deserialize_torch_tensor(serialize_torch_tensor(tensor)), tensor)


@pytest.mark.parametrize("compression", [runtime_pb2.NONE, runtime_pb2.FLOAT16])
def test_restored_tensors_are_writable_and_keep_requires_grad(
    compression: runtime_pb2.CompressionType.ValueType,
) -> None:
    tensor = torch.ones(2, 3, requires_grad=True)
    message = serialize_torch_tensor(tensor, compression)
    restored = deserialize_torch_tensor(message)
    assert restored.requires_grad
    restored.detach().zero_()
    assert torch.equal(deserialize_torch_tensor(message), tensor)


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)), st.sampled_from(FLOATS)
)
def test_float16_is_round_and_clamp(array: np.ndarray, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(array.copy()).to(dtype)
    kept = tensor.clone()
    restored = deserialize_torch_tensor(serialize_torch_tensor(tensor, runtime_pb2.FLOAT16))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.clip(tensor.numpy().astype(np.float32), -65504, 65504).astype(np.float16)
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored.numpy(), expected.astype(restored.numpy().dtype))
    assert torch.equal(tensor.nan_to_num(), kept.nan_to_num()), "compress has changed its input"


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)))
def test_none_is_exact(array: np.ndarray) -> None:
    restored = deserialize_torch_tensor(serialize_torch_tensor(torch.from_numpy(array.copy())))
    np.testing.assert_array_equal(restored.numpy(), array)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_float16_refuses(dtype: torch.dtype) -> None:
    with pytest.raises(SerializationError, match="does not support"):
        serialize_torch_tensor(torch.ones(2).to(dtype), runtime_pb2.FLOAT16)


def test_unknown_compression_and_dtype() -> None:
    with pytest.raises(SerializationError, match="got 77, allowed: NONE, MEANSTD_16BIT, FLOAT16, "):
        codec_for(77)
    with pytest.raises(SerializationError, match=r"does not support torch\.float8_e5m2"):
        serialize_torch_tensor(torch.ones(2).to(torch.float8_e5m2))


@pytest.mark.parametrize(("dtype", "ratio"), [(torch.float16, 1.0), (torch.float32, 0.5), (torch.float64, 0.25)])
def test_ratios(dtype: torch.dtype, ratio: float) -> None:
    info = CompressionInfo.from_tensor(torch.ones(1, dtype=dtype))
    assert Float16Compression().estimate_compression_ratio(info) == ratio
    assert NoCompression().estimate_compression_ratio(info) == 1.0


def test_ratio_needs_a_dtype() -> None:
    info = CompressionInfo("x", TensorDescriptor(torch.Size([1])))
    with pytest.raises(SerializationError, match="'x' has no dtype"):
        Float16Compression().estimate_compression_ratio(info)


def test_size_adaptive_looks_at_the_whole_tensor() -> None:
    strategy = SizeAdaptiveCompression(10, NoCompression(), Float16Compression())
    whole = CompressionInfo.from_tensor(torch.ones(10))
    assert strategy.choose_compression(whole.get_part(3, 2)).compression_type == runtime_pb2.FLOAT16
    assert strategy.choose_compression(CompressionInfo.from_tensor(torch.ones(9))).compression_type == runtime_pb2.NONE
    assert strategy.estimate_compression_ratio(whole) == 0.5
    message = strategy.compress(torch.ones(2), whole.get_part(0, 2))
    assert message.compression == runtime_pb2.FLOAT16
    assert torch.equal(strategy.extract(message), torch.ones(2))


def test_role_adaptive() -> None:
    strategy = RoleAdaptiveCompression(gradient=Float16Compression())
    for role in TensorRole:
        info = CompressionInfo.from_tensor(torch.ones(1), role=role)
        expected = runtime_pb2.FLOAT16 if role is TensorRole.GRADIENT else runtime_pb2.NONE
        assert strategy.choose_compression(info).compression_type == expected


def test_per_tensor() -> None:
    strategies = [
        (0, PerTensorCompression([Float16Compression(), NoCompression()])),
        ("w", PerTensorCompression({"w": Float16Compression()})),
    ]
    for key, strategy in strategies:
        info = CompressionInfo.from_tensor(torch.ones(1), key=key)
        assert strategy.choose_compression(info).compression_type == runtime_pb2.FLOAT16
        with pytest.raises(ConfigError, match="no codec for tensor 'other'"):
            strategy.choose_compression(CompressionInfo.from_tensor(torch.ones(1), key="other"))


def test_strategies_tell_what_their_codecs_do() -> None:
    """Number, size, error bound and linearity of the codec for the tensor, through strategies within strategies."""
    small, large = torch.randn(9), torch.randn(10)
    by_size = SizeAdaptiveCompression(10, NoCompression(), Float16Compression())
    strategy = RoleAdaptiveCompression(gradient=by_size, default=Uniform8BitQuantization())
    gradient = CompressionInfo.from_tensor(large, role=TensorRole.GRADIENT)
    for tensor, codec in ((small, NoCompression()), (large, Float16Compression())):
        assert torch.equal(by_size.error_bound(tensor), codec.error_bound(tensor))
        assert by_size.encoded_bytes(tensor.shape, tensor.dtype) == codec.encoded_bytes(tensor.shape, tensor.dtype)
    assert strategy.codec_of(gradient).compression_type == runtime_pb2.FLOAT16
    assert strategy.codec_of(gradient).linear
    assert not strategy.codec_of(CompressionInfo.from_tensor(large)).linear
    assert strategy.encoded_bytes(large.shape, large.dtype, gradient) == 20
    assert torch.equal(strategy.error_bound(large, gradient), Float16Compression().error_bound(large))
    assert torch.equal(strategy.error_bound(large), Uniform8BitQuantization().error_bound(large))
    part = gradient.get_part(1, 3)  # the choice follows from the whole
    assert strategy.encoded_bytes(torch.Size([3]), torch.float32, part) == 6


def test_descriptor() -> None:
    descriptor = TensorDescriptor.from_tensor(torch.ones(2, 3, dtype=torch.float64, requires_grad=True))
    assert (descriptor.shape, descriptor.numel(), descriptor.requires_grad) == (torch.Size([2, 3]), 6, True)
    zeros = descriptor.make_zeros(requires_grad=False)
    assert (zeros.dtype, zeros.shape, zeros.requires_grad) == (torch.float64, torch.Size([2, 3]), False)


@pytest.mark.parametrize("dtype", list(WIRE_DTYPES.values()), ids=str)
def test_buffers_that_belong_to_their_receiver_are_not_copied(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype)
    memory = bytearray(to_buffer(tensor))
    view = from_buffer(memory, dtype)
    assert torch.equal(view, tensor)
    view.zero_()
    assert not any(memory)
    assert torch.equal(from_buffer(bytes(to_buffer(tensor)), dtype), tensor)


@pytest.mark.parametrize("offset", range(9))
def test_buffers_at_any_offset(offset: int) -> None:
    tensor = torch.arange(5, dtype=torch.float64)
    memory = bytearray(offset) + bytes(to_buffer(tensor))
    values = from_buffer(memoryview(memory)[offset:], torch.float64)
    assert torch.equal(values, tensor)
    assert values.data_ptr() % 8 == 0


def test_read_only_memory_is_copied() -> None:
    data = bytes(to_buffer(torch.ones(3)))
    from_buffer(memoryview(data), torch.float32).zero_()
    assert data == bytes(to_buffer(torch.ones(3)))


def test_a_codec_of_a_users_own_needs_only_compress_and_a_ratio() -> None:
    class Doubled(CompressionBase):
        def compress(
            self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
        ) -> runtime_pb2.Tensor:
            return NoCompression().compress(tensor * 2, info)

        def estimate_compression_ratio(self, info: CompressionInfo) -> float:
            return 1.0

    header, buffer = Doubled().encode(torch.ones(2), CompressionInfo.from_tensor(torch.ones(2)))
    assert (header.buffer, bytes(buffer).hex()) == (b"", "0000004000000040")
    with pytest.raises(SerializationError, match="Doubled does not tell its codec"):
        SizeAdaptiveCompression(10, Doubled(), NoCompression()).error_bound(torch.ones(2))
    with pytest.raises(SerializationError, match="Doubled reads no messages"):
        Doubled().extract(NoCompression().compress(torch.ones(2), CompressionInfo.from_tensor(torch.ones(2))))
