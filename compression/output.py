"""Memory for what codecs write."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import torch

from hivemind.compression.buffers import CPU, Buffer, to_buffer
from hivemind.large_blocks import keep_large_blocks

__all__ = ["Output", "as_bytes"]

_api = ctypes.pythonapi
_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(("PyBytes_FromStringAndSize", _api))
_address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", _api))
_view_of = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", _api)
)
_WRITABLE = 0x200  # PyBUF_WRITE
#: Bytes from which on huge pages are worth asking for; numpy does from here on, too.
_LARGE = 2**22


class Output:
    """Memory of ``length`` bytes that are not set.

    On a CPU it is that of a ``bytes`` object: protobuf takes no other kind, and would need one more copy. CPython has
    new ones filled this way (PyBytes_FromStringAndSize), as long as nobody else has them.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        #: uint8, 1-d, to be written to until `buffer` is called, and not to be kept
        self.octets: torch.Tensor
        self._bytes: bytes | None = None
        if device.type != "cpu" or not length:
            self.octets = torch.empty(length, dtype=torch.uint8, device=device)
            return
        keep_large_blocks()
        self._bytes = _new_bytes(None, length)
        address = _address_of(self._bytes)
        if length >= _LARGE:
            _ask_for_huge_pages(address, length)
        self.octets = torch.frombuffer(_view_of(address, length, _WRITABLE), dtype=torch.uint8)

    def buffer(self) -> Buffer:
        """What was written."""
        return to_buffer(self.octets) if self._bytes is None else self._bytes


def as_bytes(buffer: Buffer) -> bytes:
    """``buffer`` itself if it is ``bytes``, else a copy."""
    if isinstance(buffer, bytes) or len(buffer) < _LARGE:
        return bytes(buffer)
    copy = Output(len(buffer), CPU)
    np.copyto(copy.octets.numpy(), np.frombuffer(buffer, np.uint8))
    return bytes(copy.buffer())


def _ask_for_huge_pages(address: int, length: int) -> None:
    """Where the system gives them to who asks: the page faults of fresh memory take several times as long without."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise(first, address + length - first, mmap.MADV_HUGEPAGE)
