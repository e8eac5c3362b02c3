"""What an expert takes and gives, held against the tensors of this side and of the other. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hivemind.compression import BatchTensorDescriptor
from hivemind.errors import InputMismatch, ProtocolViolation, WrongTypeError
from hivemind.moe.messages import MAX_UNARY_BYTES, ExpertSchema
from hivemind.nested import nested_compare, nested_flatten

__all__ = ["answer_bounds", "check_inputs", "check_tensors", "flat_schema", "is_trained"]

#: Most bytes that a codec makes of one element (complex128), and of a tensor besides (code books).
_ELEMENT_BYTES = 16
_TENSOR_BYTES = 8192
#: Bytes of an answer, or times the bytes of the question, that are taken from a server whatever it says of its expert.
_ANSWER_BYTES = 2**30
_TIMES_THE_QUESTION = 16


def flat_schema(schema: Any) -> list[BatchTensorDescriptor]:
    """The descriptors of a nested schema, in the order in which tensors travel."""
    return list(nested_flatten(schema))


def is_trained(tensor_or_descriptor: torch.Tensor | BatchTensorDescriptor) -> bool:
    """Whether it has gradients: it is of floating point."""
    dtype = tensor_or_descriptor.dtype
    return dtype is None or dtype.is_floating_point or dtype.is_complex


def check_inputs(schema: ExpertSchema, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The arguments as the expert takes them: flat, floating point ones in its dtype (which autograd follows).

    :raises WrongTypeError: (a ``TypeError``) if they are structured otherwise, are no tensors, or of other dtypes
    :raises InputMismatch: (a ``ValueError``) if their shapes do not fit
    """
    expected_args, expected_kwargs = schema["forward_schema"]
    if set(kwargs) != set(expected_kwargs):
        allowed = f"exactly {', '.join(expected_kwargs)}" if expected_kwargs else "none"
        raise WrongTypeError("keyword arguments of the expert", sorted(kwargs), allowed)
    given = (tuple(args), dict(kwargs))
    if not nested_compare(given, (tuple(expected_args), expected_kwargs)):
        raise WrongTypeError(
            "arguments of the expert", _outline(given), f"structured as {_outline((expected_args, expected_kwargs))}"
        )
    descriptors = flat_schema((tuple(expected_args), expected_kwargs))
    tensors = [
        _as_described(f"input {index} of the expert", tensor, descriptor)
        for index, (tensor, descriptor) in enumerate(zip(nested_flatten(given), descriptors, strict=True))
    ]
    batches = {len(tensor) for tensor in tensors}
    if len(batches) > 1:
        raise InputMismatch(f"inputs of the expert: batches of different sizes: {[len(tensor) for tensor in tensors]}")
    if batches == {0}:
        raise InputMismatch("inputs of the expert: an empty batch")
    return tensors


def _as_described(name: str, value: object, descriptor: BatchTensorDescriptor) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise WrongTypeError(name, value, "a tensor")
    if value.layout != torch.strided or value.device.type == "meta":
        raise WrongTypeError(name, f"a {value.layout} tensor on {value.device}", "a dense tensor that has values")
    if tuple(value.shape[1:]) != tuple(descriptor.instance_size) or value.ndim == 0:
        shape = ", ".join(["batch", *map(str, descriptor.instance_size)])
        raise InputMismatch(f"{name}: got shape {tuple(value.shape)}, allowed: ({shape})")
    dtype = descriptor.dtype
    if dtype is None or value.dtype == dtype:
        return value
    if not (value.is_floating_point() and dtype.is_floating_point):
        raise WrongTypeError(name, value.dtype, str(dtype))
    return value.to(dtype)


def _outline(structure: Any) -> str:
    """The structure in words: shapes in place of tensors."""
    if isinstance(structure, dict):
        return "{" + ", ".join(f"{key}: {_outline(value)}" for key, value in structure.items()) + "}"
    if isinstance(structure, list | tuple):
        inside = ", ".join(map(_outline, structure))
        return f"[{inside}]" if isinstance(structure, list) else f"({inside})"
    shape = getattr(structure, "shape", None)
    return type(structure).__name__ if shape is None else f"tensor{tuple(shape)}".replace("None", "batch")


def check_tensors(
    what: str, tensors: Sequence[torch.Tensor], descriptors: Sequence[BatchTensorDescriptor], batch: int
) -> list[torch.Tensor]:
    """The tensors that a server has sent, if they are what was asked for. Ones without gradients may have any dtype.

    :param what: what they are, for the error
    :raises ProtocolViolation: if number, shapes or dtypes differ
    """
    if len(tensors) != len(descriptors):
        raise ProtocolViolation(f"{what}: {len(tensors)} tensors came, not {len(descriptors)}")
    for tensor, descriptor in zip(tensors, descriptors, strict=True):
        shape = (batch, *descriptor.instance_size)
        dtype_fits = tensor.dtype == descriptor.dtype or descriptor.dtype is None or not is_trained(descriptor)
        if tuple(tensor.shape) != shape or not dtype_fits:
            raise ProtocolViolation(
                f"{what}: a {tensor.dtype} tensor of shape {tuple(tensor.shape)} came, not {descriptor.dtype} {shape}"
            )
    return [tensor.detach() for tensor in tensors]


def answer_bounds(
    descriptors: Sequence[BatchTensorDescriptor], batch: int, question: Iterable[torch.Tensor]
) -> tuple[bool, int]:
    """Whether an answer fits one message, uncompressed, and how many bytes of buffers are taken at most."""
    elements = [batch * descriptor.numel() for descriptor in descriptors]
    plain = sum(
        count * (4 if descriptor.dtype is None else max(4, descriptor.dtype.itemsize))
        for count, descriptor in zip(elements, descriptors, strict=True)
    )
    most = sum(count * _ELEMENT_BYTES + _TENSOR_BYTES for count in elements)
    ceiling = max(_ANSWER_BYTES, _TIMES_THE_QUESTION * sum(tensor.nbytes for tensor in question))
    return plain <= MAX_UNARY_BYTES, min(most, ceiling)
