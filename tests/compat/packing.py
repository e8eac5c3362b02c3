"""Tensors as plain data, for the lines of JSON between a test and its peer of hivemind 1.1.12."""

from typing import Any

import torch


def pack_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """A tensor as data for ``linejson``: ``dtype``, ``shape``, ``data`` (bytes, C order), ``requires_grad``."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "data": bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b"",
        "requires_grad": tensor.requires_grad,
    }


def unpack_tensor(packed: dict[str, Any]) -> torch.Tensor:
    """The tensor that :func:`pack_tensor` made ``packed`` from."""
    dtype = getattr(torch, packed["dtype"])
    if not packed["data"]:
        return torch.empty(packed["shape"], dtype=dtype)
    tensor = torch.frombuffer(bytearray(packed["data"]), dtype=dtype).reshape(packed["shape"])
    return tensor.requires_grad_(packed["requires_grad"])
