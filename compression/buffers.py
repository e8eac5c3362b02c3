"""Between tensors and plain memory: dtypes by their names on the wire, and checks of what a message says of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from hivemind.compression.spare_blocks import LARGEST, SMALLEST, take_block
from hivemind.errors import SerializationError
from hivemind.large_blocks import keep_large_blocks

__all__ = [
    "CPU",
    "WIRE_DTYPES",
    "Array",
    "Buffer",
    "Elements",
    "TensorMessage",
    "allocate",
    "dtype_name",
    "from_buffer",
    "on_cpu",
    "read_header",
    "to_buffer",
]

CPU = torch.device("cpu")

#: Numbers on the CPU.
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

#: Memory that holds encoded values. What is not ``bytes`` belongs to whoever has got it, and may be written to.
Buffer = bytes | bytearray | memoryview

#: The dtypes that may stand in a message, by their name there. No other name is looked up, whoever sends it.
WIRE_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
_NAMES = {dtype: name for name, dtype in WIRE_DTYPES.items()}

#: Those that Python knows as numbers, too.
_PLAIN = frozenset(WIRE_DTYPES.values()) - {torch.bfloat16, torch.complex64, torch.complex128}

#: Bytes up to which memory is not asked for in a special way.
_SMALL = 2**16
#: More dimensions than any tensor operation of torch takes.
MAX_DIMENSIONS = 64
#: Elements in one tensor; also bounds the strides of tensors that have no elements.
MAX_ELEMENTS = 2**48

#: Bytes of a cache line, and of the widest register: memory that begins at a multiple is written to the fastest.
_LINE = 64


class TensorMessage(Protocol):
    """A ``Tensor`` message that has come, be it a protobuf object or a view of the bytes that came."""

    @property
    def buffer(self) -> Buffer: ...

    @property
    def size(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def requires_grad(self) -> bool: ...

    @property
    def compression(self) -> int: ...


def read_header(message: TensorMessage) -> tuple[torch.Size, torch.dtype]:
    """Shape and dtype of a message, checked; allocates nothing and does not look at the buffer.

    :raises SerializationError: if one of them is not allowed
    """
    dtype = WIRE_DTYPES.get(message.dtype)
    if dtype is None:
        raise SerializationError(f"dtype: got {message.dtype[:32]!r}, allowed: {', '.join(WIRE_DTYPES)}")
    if message.requires_grad and not (dtype.is_floating_point or dtype.is_complex):
        raise SerializationError(f"a {message.dtype} tensor cannot require a gradient")
    size = message.size
    if len(size) > MAX_DIMENSIONS or math.prod(max(1, length) for length in size) > MAX_ELEMENTS:
        raise SerializationError(
            f"shape: got {len(size)} dimensions, allowed: {MAX_DIMENSIONS} dimensions, {MAX_ELEMENTS} elements"
        )
    return torch.Size(size), dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The name of ``dtype`` in messages.

    :raises SerializationError: if it has none
    """
    try:
        return _NAMES[dtype]
    except KeyError:
        raise SerializationError(f"dtype: got {dtype}, allowed: {', '.join(WIRE_DTYPES)}") from None


def on_cpu(device: torch.device) -> bool:
    """Whether it is computed with numpy and span by span, for the processor's cache; else with torch alone."""
    return device.type == "cpu"


def allocate(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A 1-d tensor of ``length`` elements that are not set.

    On a CPU it is memory that was used before, or from numpy, which asks the system for huge pages where there is much:
    torch does not, and then the page faults of fresh memory take several times as long as what a codec does with it.
    """
    if device.type != "cpu":
        return torch.empty(length, dtype=dtype, device=device)
    keep_large_blocks()
    size = length * dtype.itemsize
    if SMALLEST <= size <= LARGEST:
        return torch.from_numpy(take_block(size)).view(dtype)
    octets = np.empty(size + _LINE - 1, np.uint8)
    start = -octets.ctypes.data % _LINE
    return torch.from_numpy(octets[start : start + size]).view(dtype)


def to_buffer(tensor: torch.Tensor) -> memoryview:
    """The elements in C order. No copy if the tensor is contiguous and on the CPU: use it before the tensor changes.

    From a GPU they are copied once, to memory that it can write to by itself.
    """
    if not tensor.numel():  # may have strides that no view takes
        return memoryview(b"")
    if tensor.is_cpu and tensor.dtype in _PLAIN and tensor.is_contiguous() and not tensor.is_neg():
        return tensor.detach().numpy().data.cast("B")  # in few steps: each takes as long as copying 10 KiB
    octets = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    if octets.is_cuda:
        pinned = torch.empty(octets.shape, dtype=torch.uint8, pin_memory=True)
        pinned.copy_(octets, non_blocking=True)
        torch.cuda.current_stream(octets.device).synchronize()
        return pinned.numpy().data
    return octets.cpu().numpy().data


def from_buffer(buffer: Buffer, dtype: torch.dtype, device: torch.device = CPU) -> torch.Tensor:
    """A 1-d tensor on ``device`` of the elements in ``buffer``, whose length is a multiple of their size.

    It may be written to. No copy if it is on the CPU, and the buffer may be written to as well and begins at a multiple
    of that size.
    """
    if not len(buffer):  # torch.frombuffer refuses empty buffers
        return torch.empty(0, dtype=dtype, device=device)
    if device.type != "cpu":
        staging = torch.empty(len(buffer), dtype=torch.uint8, pin_memory=device.type == "cuda")
        staging.numpy()[:] = np.frombuffer(buffer, np.uint8)
        return staging.to(device, non_blocking=True).view(dtype)
    if not _is_read_only(buffer):
        values = torch.frombuffer(buffer, dtype=dtype)
        if values.data_ptr() % dtype.itemsize == 0:
            return values
    if len(buffer) <= _SMALL:
        return torch.frombuffer(bytearray(buffer), dtype=dtype)
    octets = allocate(len(buffer), torch.uint8, CPU)
    octets.numpy()[:] = np.frombuffer(buffer, np.uint8)
    return octets.view(dtype)


class Elements:
    """The elements in a buffer that has come, to be read piece by piece, without a copy of it as a whole on a CPU."""

    def __init__(self, buffer: Buffer, dtype: torch.dtype, device: torch.device) -> None:
        in_place = device.type == "cpu" and _is_read_only(buffer)  # torch takes no memory that is not to be written to
        self._octets = np.frombuffer(buffer, np.uint8)
        self._values = None if in_place else from_buffer(buffer, dtype, device)

    def read(self, start: int, stop: int, scratch: torch.Tensor) -> torch.Tensor:
        """Elements ``start`` to ``stop``, not to be written to.

        :param scratch: memory for just so many of them, which may be used
        """
        if self._values is not None:
            return self._values[start:stop]
        size = scratch.element_size()
        scratch.view(torch.uint8).numpy()[:] = self._octets[start * size : stop * size]
        return scratch


def _is_read_only(buffer: Buffer) -> bool:
    return isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly)
