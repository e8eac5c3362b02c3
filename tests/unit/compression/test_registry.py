"""Codecs of other packages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

from hivemind.compression import (
    BufferCodec,
    CompressionInfo,
    codec_for,
    deserialize_torch_tensor,
    known_codecs,
    register_codec,
    registry,
    serialize_torch_tensor,
)
from hivemind.compression.buffers import Buffer, from_buffer, to_buffer
from hivemind.errors import ConfigError, SerializationError
from hivemind.proto import runtime_pb2


class SignCodec(BufferCodec):
    """One byte an element: its sign."""

    compression_type = 70

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        return self._header(tensor, [torch.float32]), to_buffer(tensor.detach().sign().to(torch.int8))

    def decode(self, buffer: Buffer, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> torch.Tensor:
        return from_buffer(buffer, torch.int8, device).to(dtype).reshape(shape)

    def buffer_lengths(self, shape: torch.Size, dtype: torch.dtype) -> Sequence[int]:
        return (shape.numel(),)

    def error_bound(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor - tensor.sign()).abs().double()

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return 0.25


class OtherCodec(SignCodec):
    """Another one of the same number."""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_codecs", dict(registry._codecs))
    monkeypatch.setattr(registry, "_loaded", True)
    return


def installed(monkeypatch: pytest.MonkeyPatch, **values: str) -> list[str]:
    """Pretend that packages are installed; returns the groups that were asked for."""
    asked: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint(name, value, group) for name, value in values.items()]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_loaded", False)
    return asked


def test_a_registered_codec_is_used_by_its_number() -> None:
    register_codec(SignCodec())
    register_codec(SignCodec())  # the same again
    message = serialize_torch_tensor(torch.tensor([2.0, -0.5, 0.0]), 70)
    assert (message.compression, message.buffer) == (70, b"\x01\xff\x00")
    assert deserialize_torch_tensor(message).tolist() == [1, -1, 0]
    assert known_codecs()[-1].compression_type == 70
    with pytest.raises(SerializationError, match=r"got 71, allowed: NONE, .*, 70 \(SignCodec\)"):
        codec_for(71)


def test_installed_codecs_are_found_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    name = f"{SignCodec.__module__}:SignCodec"
    monkeypatch.setattr(EntryPoint, "load", lambda self: {name: SignCodec}[self.value])
    asked = installed(monkeypatch, broken="no.such.module:Codec", sign=name)
    codec_for(runtime_pb2.NONE)
    assert asked == []
    assert isinstance(codec_for(70), SignCodec)
    with pytest.raises(SerializationError):
        codec_for(71)
    assert asked == ["hivemind.codecs"]


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("FLOAT16", "codec: got 'str'"),
        (SignCodec, "codec"),
        (
            type("Reserved", (SignCodec,), {"compression_type": 6})(),
            "compression_type: got 6, allowed: a number from 64",
        ),
        (type("Nameless", (SignCodec,), {"compression_type": None})(), "compression_type: got None"),
        (type("Large", (SignCodec,), {"compression_type": 2**31})(), "compression_type"),
    ],
)
def test_what_cannot_be_registered(codec: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        register_codec(codec)


def test_numbers_are_taken_once() -> None:
    register_codec(SignCodec())
    with pytest.raises(ConfigError, match="this one is SignCodec's"):
        register_codec(OtherCodec())
