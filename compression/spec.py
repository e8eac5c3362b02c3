"""What a tensor looks like, without its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, cast

import torch

from hivemind.compression.buffers import MAX_DIMENSIONS, MAX_ELEMENTS, WIRE_DTYPES
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2
from hivemind.serializer import MSGPackSerializer

__all__ = ["DUMMY_BATCH_SIZE", "BatchTensorDescriptor", "TensorDescriptor"]

#: Samples in a batch that only serves to find out shapes.
DUMMY_BATCH_SIZE = 3


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


@MSGPackSerializer.ext_serializable(0x51)
@dataclass(frozen=True, init=False)
class BatchTensorDescriptor(TensorDescriptor):
    """A tensor whose first dimension is a batch of any size. ``size`` and ``shape`` are ``(None, *instance_size)``.

    It travels as msgpack ext 0x51 (hivemind 1.1 wire format, "rpc_info").

    :param instance_size: shape of one sample
    :param kwargs: the other fields of `TensorDescriptor`
    """

    def __init__(self, *instance_size: int, **kwargs: Any) -> None:
        super().__init__(cast("torch.Size", (None, *instance_size)), **kwargs)

    @property
    def instance_size(self) -> torch.Size:
        """Shape of one sample."""
        return torch.Size(self.size[1:])

    def numel(self) -> int:
        """Number of elements of one sample."""
        return self.instance_size.numel()

    @classmethod
    def from_tensor(
        cls, tensor: torch.Tensor, compression: runtime_pb2.CompressionType.ValueType = runtime_pb2.NONE
    ) -> Self:
        """The descriptor of batches like ``tensor``, whose first dimension is dropped. Integers are never compressed.

        :param compression: of floating point tensors
        """
        plain = TensorDescriptor.from_tensor(tensor)
        return cls(
            *tensor.shape[1:],
            dtype=plain.dtype,
            layout=plain.layout,
            device=plain.device,
            requires_grad=plain.requires_grad,
            pin_memory=plain.pin_memory,
            compression=compression if tensor.is_floating_point() else runtime_pb2.NONE,
        )

    def make_zeros(self, *batch_size: int, **kwargs: Any) -> torch.Tensor:
        """Zeros of shape ``(*batch_size, *instance_size)``; ``kwargs`` (of `torch.zeros`) override."""
        sized = TensorDescriptor(
            torch.Size((*batch_size, *self.instance_size)),
            self.dtype,
            self.layout,
            self.device,
            self.requires_grad,
            self.pin_memory,
        )
        return sized.make_zeros(**kwargs)

    def packb(self) -> bytes:
        """The payload of its ext."""
        device = self.device
        return MSGPackSerializer.dumps(
            {
                "size": tuple(self.size),
                "dtype": None if self.dtype is None else str(self.dtype),
                "layout": str(self.layout),
                "requires_grad": self.requires_grad,
                "pin_memory": self.pin_memory,
                "compression": int(self.compression),
                "device_type": None if device is None else device.type,
                "device_index": None if device is None else device.index,
            }
        )

    @classmethod
    def unpackb(cls, raw: bytes) -> Self:
        """
        :raises SerializationError: if ``raw`` is not the payload of a descriptor
        """
        fields = MSGPackSerializer.loads(raw)
        if not isinstance(fields, dict):
            raise SerializationError("a descriptor's payload is no dictionary")
        dtype = _read_dtype(fields.get("dtype"))
        flags = fields.get("requires_grad", False), fields.get("pin_memory", False)
        if not all(isinstance(flag, bool) for flag in flags):
            raise SerializationError(f"a descriptor's flags: got {flags!r:.64}, allowed: true, false")
        if flags[0] and dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise SerializationError(f"a {dtype} tensor cannot require a gradient")
        if _without_prefix(fields.get("layout", "strided")) != "strided":
            raise SerializationError(f"a descriptor's layout: got {fields['layout']!r:.64}, allowed: torch.strided")
        compression = fields.get("compression", runtime_pb2.NONE)
        if type(compression) is not int or compression not in runtime_pb2.CompressionType.values():
            raise SerializationError(f"a descriptor's compression: got {compression!r:.64}, allowed: a CompressionType")
        return cls(
            *_read_size(fields.get("size")),
            dtype=dtype,
            device=_read_device(fields.get("device_type"), fields.get("device_index")),
            requires_grad=flags[0],
            pin_memory=flags[1],
            compression=compression,
        )


def _without_prefix(name: object) -> str:
    return name.removeprefix("torch.") if isinstance(name, str) else ""


def _read_dtype(name: object) -> torch.dtype | None:
    if name is None:
        return None
    dtype = WIRE_DTYPES.get(_without_prefix(name))
    if dtype is None:
        raise SerializationError(f"a descriptor's dtype: got {name!r:.64}, allowed: {', '.join(WIRE_DTYPES)}")
    return dtype


def _read_size(size: object) -> tuple[int, ...]:
    """The shape of one sample: the first dimension, whose size is not known, is dropped."""
    if not isinstance(size, tuple | list) or not 1 <= len(size) <= MAX_DIMENSIONS:
        raise SerializationError(f"a descriptor's size: allowed: a tuple of 1 to {MAX_DIMENSIONS} numbers")
    instance = tuple(size[1:])
    if not all(type(length) is int and 0 <= length <= MAX_ELEMENTS for length in instance):
        raise SerializationError(f"a descriptor's size: allowed: numbers from 0 to {MAX_ELEMENTS}")
    if math.prod(max(1, length) for length in instance) > MAX_ELEMENTS:
        raise SerializationError(f"a descriptor of over {MAX_ELEMENTS} elements")
    return instance


def _read_device(kind: object, index: object) -> torch.device | None:
    if kind is None:
        return None
    if not isinstance(kind, str) or not (index is None or (type(index) is int and 0 <= index < 128)):
        raise SerializationError(f"a descriptor's device: got {kind!r:.64}, {index!r:.64}")
    try:
        return torch.device(kind) if index is None else torch.device(kind, index)
    except RuntimeError:
        raise SerializationError(f"a descriptor's device: torch knows no {kind!r:.64}") from None


def _is_pinned(tensor: torch.Tensor) -> bool:
    # asking a CPU tensor of a machine without an accelerator would initialise CUDA for nothing
    return torch.cuda.is_available() and tensor.device.type == "cpu" and tensor.is_pinned()
