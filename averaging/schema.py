"""The hash by which peers tell whether their tensors can be averaged with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from hivemind.compression import TensorDescriptor
from hivemind.serializer import MSGPackSerializer

__all__ = ["compute_schema_hash"]


def compute_schema_hash(tensors: Sequence[torch.Tensor]) -> bytes:
    """20 bytes that are equal for equal shapes, dtypes and gradient flags (hivemind 1.1 wire format).

    Neither values nor compression settings enter, nor where a tensor is: peers with and without a GPU average together,
    and the format says for all what it says for the memory of a CPU.
    """
    rows = [_row(TensorDescriptor.from_tensor(tensor)) for tensor in tensors]
    return hashlib.sha1(MSGPackSerializer.dumps(rows)).digest()


def _row(descriptor: TensorDescriptor) -> dict[str, str]:
    """All values as Python prints them: that is the format."""
    return {
        "size": f"torch.Size({list(descriptor.size)})",
        "dtype": str(descriptor.dtype),
        "layout": str(descriptor.layout),
        "device": "cpu",
        "requires_grad": str(descriptor.requires_grad),
        "pin_memory": str(descriptor.pin_memory),
        "compression": str(int(descriptor.compression)),
    }
