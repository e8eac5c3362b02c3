"""Strategies: they choose a codec for each tensor. Nothing of them is on the wire, as a message names its codec."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from hivemind.compression.base import BufferCodec, CompressionBase, CompressionInfo, NoCompression, TensorRole
from hivemind.compression.buffers import CPU, Buffer, TensorMessage
from hivemind.compression.registry import codec_for
from hivemind.compression.spec import TensorDescriptor
from hivemind.errors import ConfigError
from hivemind.proto import runtime_pb2

__all__ = [
    "AdaptiveCompressionBase",
    "PerTensorCompression",
    "RoleAdaptiveCompression",
    "SizeAdaptiveCompression",
]


class AdaptiveCompressionBase(CompressionBase):
    """A strategy: subclasses say which codec a tensor gets. All members of an averaging group must choose alike."""

    @abstractmethod
    def choose_compression(self, info: CompressionInfo) -> CompressionBase:
        """The codec (or a further strategy) for the tensor that ``info`` describes."""

    def compress(self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False) -> runtime_pb2.Tensor:
        return self.choose_compression(info).compress(tensor, info, allow_inplace)

    def encode(
        self, tensor: torch.Tensor, info: CompressionInfo, allow_inplace: bool = False
    ) -> tuple[runtime_pb2.Tensor, Buffer]:
        return self.choose_compression(info).encode(tensor, info, allow_inplace)

    def extract(self, serialized_tensor: TensorMessage, device: torch.device = CPU) -> torch.Tensor:
        return codec_for(serialized_tensor.compression).extract(serialized_tensor, device)

    def estimate_compression_ratio(self, info: CompressionInfo) -> float:
        return self.choose_compression(info).estimate_compression_ratio(info)

    def codec_of(self, info: CompressionInfo) -> BufferCodec:
        return self.choose_compression(info).codec_of(info)

    def error_bound(self, tensor: torch.Tensor, info: CompressionInfo | None = None) -> torch.Tensor:
        """As `BufferCodec.error_bound`, of the codec for ``tensor``.

        :param info: what the choice follows from, where that is more than shape and dtype of a whole tensor
        """
        return self.codec_of(info or CompressionInfo.from_tensor(tensor)).error_bound(tensor)

    def encoded_bytes(self, shape: torch.Size, dtype: torch.dtype, info: CompressionInfo | None = None) -> int:
        """As `BufferCodec.encoded_bytes`, of the codec for such a tensor; ``info`` as in `error_bound`."""
        return self.codec_of(info or CompressionInfo(None, TensorDescriptor(shape, dtype))).encoded_bytes(shape, dtype)


class SizeAdaptiveCompression(AdaptiveCompressionBase):
    """By the number of elements of the whole tensor: ``less`` below ``threshold``, else ``greater_equal``."""

    def __init__(self, threshold: int, less: CompressionBase, greater_equal: CompressionBase) -> None:
        self.threshold, self.less, self.greater_equal = threshold, less, greater_equal

    def choose_compression(self, info: CompressionInfo) -> CompressionBase:
        return self.greater_equal if info.descriptor.numel() >= self.threshold else self.less


class RoleAdaptiveCompression(AdaptiveCompressionBase):
    """By the role of the tensor; roles that are not given get ``default``."""

    def __init__(
        self,
        *,
        activation: CompressionBase | None = None,
        parameter: CompressionBase | None = None,
        gradient: CompressionBase | None = None,
        optimizer: CompressionBase | None = None,
        default: CompressionBase | None = None,
    ) -> None:
        self.default = default if default is not None else NoCompression()
        given = {
            TensorRole.ACTIVATION: activation,
            TensorRole.PARAMETER: parameter,
            TensorRole.GRADIENT: gradient,
            TensorRole.OPTIMIZER: optimizer,
        }
        self._by_role = {role: codec for role, codec in given.items() if codec is not None}

    def choose_compression(self, info: CompressionInfo) -> CompressionBase:
        return self._by_role.get(info.role, self.default)


class PerTensorCompression(AdaptiveCompressionBase):
    """By the key of the tensor.

    :param tensor_compressions: codecs in the order of the tensors (whose keys are then 0, 1, …), or by key
    """

    def __init__(self, tensor_compressions: Sequence[CompressionBase] | Mapping[Any, CompressionBase]) -> None:
        self.tensor_compressions = tensor_compressions

    def choose_compression(self, info: CompressionInfo) -> CompressionBase:
        try:
            return self.tensor_compressions[cast("Any", info.key)]
        except (KeyError, IndexError, TypeError):
            raise ConfigError("tensor_compressions", f"no codec for tensor {info.key!r}", "one per tensor") from None
