"""What a tensor looks like, without its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hivemind.proto import runtime_pb2

__all__ = ["TensorDescriptor"]


@dataclass(frozen=True)
class TensorDescriptor:
    """Shape, dtype and placement of a tensor, as in hivemind 1.1.

    :param size: the shape
    :param compression: how the tensor should travel, where nothing else says so
    """

    size: torch.Size
    dtype: torch.dtype | None = None
    layout: torch.layout = torch.strided
    device: torch.device | None = None
    requires_grad: bool = False
    pin_memory: bool = False
    compression: runtime_pb2.CompressionType.ValueType = runtime_pb2.NONE

    @property
    def shape(self) -> torch.Size:
        """The same as ``size``."""
        return self.size

    def numel(self) -> int:
        """Number of elements."""
        return self.size.numel()

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor) -> TensorDescriptor:
        """The descriptor of ``tensor``."""
        return cls(tensor.shape, tensor.dtype, tensor.layout, tensor.device, tensor.requires_grad, _is_pinned(tensor))

    def make_zeros(self, **kwargs: Any) -> torch.Tensor:
        """Zeros of this shape, dtype and place; ``kwargs`` (of `torch.zeros`) override."""
        properties: dict[str, Any] = {
            "dtype": self.dtype,
            "layout": self.layout,
            "device": self.device,
            "requires_grad": self.requires_grad,
            "pin_memory": self.pin_memory,
        }
        return torch.zeros(self.size, **{**properties, **kwargs})


def _is_pinned(tensor: torch.Tensor) -> bool:
    # asking a CPU tensor of a machine without an accelerator would initialise CUDA for nothing
    return torch.cuda.is_available() and tensor.device.type == "cpu" and tensor.is_pinned()
