"""What an expert takes and gives, held against the tensors of this side and of the other. Pure.

Sizes between the batch and the last dimension, as the length of a sequence, may differ from the schema: a schema tells
them of one example only. Whether the expert can work with others is for its module to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hivemind.compression import BatchTensorDescriptor
from hivemind.errors import InputMismatch, ProtocolViolation, WrongTypeError
from hivemind.moe.messages import MAX_UNARY_BYTES, ExpertSchema
from hivemind.nested import nested_compare, nested_flatten

__all__ = ["AnswerBounds", "check_answer", "check_inputs", "flat_schema", "is_trained"]

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
    if value.ndim == 0 or not _alike(value.shape[1:], descriptor.instance_size):
        shape = ", ".join(["batch", *map(str, descriptor.instance_size)])
        raise InputMismatch(f"{name}: got shape {tuple(value.shape)}, allowed: ({shape})")
    dtype = descriptor.dtype
    if dtype is None or value.dtype == dtype:
        return value
    if not (value.is_floating_point() and dtype.is_floating_point):
        raise WrongTypeError(name, value.dtype, str(dtype))
    return value.to(dtype)


def _alike(shape: Sequence[int], example: Sequence[int]) -> bool:
    """Whether they are of the same rank, and end alike."""
    return len(shape) == len(example) and tuple(shape[-1:]) == tuple(example[-1:])


def _outline(structure: Any) -> str:
    """The structure in words: shapes in place of tensors."""
    if isinstance(structure, dict):
        return "{" + ", ".join(f"{key}: {_outline(value)}" for key, value in structure.items()) + "}"
    if isinstance(structure, list | tuple):
        inside = ", ".join(map(_outline, structure))
        return f"[{inside}]" if isinstance(structure, list) else f"({inside})"
    shape = getattr(structure, "shape", None)
    return type(structure).__name__ if shape is None else f"tensor{tuple(shape)}".replace("None", "batch")


def check_answer(
    what: str,
    answer: Sequence[torch.Tensor],
    descriptors: Sequence[BatchTensorDescriptor],
    batch: int,
    *,
    exact: bool,
) -> list[torch.Tensor]:
    """The tensors that a server has sent, if they are what was asked for. Ones without gradients may have any dtype.

    :param what: what they are, for the error
    :param exact: whether their shapes must be those of the schema
    :raises ProtocolViolation: if number, shapes or dtypes differ
    """
    if len(answer) != len(descriptors):
        raise ProtocolViolation(f"{what}: {len(answer)} tensors came, not {len(descriptors)}")
    for tensor, descriptor in zip(answer, descriptors, strict=True):
        expected, given = descriptor.instance_size, tensor.shape[1:]
        shape_fits = len(tensor.shape) > 0 and tensor.shape[0] == batch
        shape_fits = shape_fits and (given == expected if exact else _alike(given, expected))
        dtype_fits = tensor.dtype == descriptor.dtype or descriptor.dtype is None or not is_trained(descriptor)
        if not shape_fits or not dtype_fits:
            raise ProtocolViolation(
                f"{what}: a {tensor.dtype} tensor of shape {tuple(tensor.shape)} came, "
                f"not {descriptor.dtype} {(batch, *expected)}"
            )
    return [tensor.detach() for tensor in answer]


@dataclass(frozen=True)
class AnswerBounds:
    """What may come back for a question.

    :param exact: whether shapes are known: those of the schema
    :param unary: whether it fits one message, uncompressed
    :param max_bytes: of its buffers that are taken at most
    """

    exact: bool
    unary: bool
    max_bytes: int

    @classmethod
    def of(
        cls,
        question: Sequence[torch.Tensor],
        takes: Sequence[BatchTensorDescriptor],
        gives: Sequence[BatchTensorDescriptor],
    ) -> AnswerBounds:
        """
        :param question: all that is sent, as ``takes`` describes it; batch first
        """
        batch = len(question[0])
        exact = all(tensor.shape[1:] == each.instance_size for tensor, each in zip(question, takes, strict=True))
        growth = 1.0
        if not exact:  # answers are taken to grow with what is asked
            growth = max(
                growth, *(each.numel() / max(1, batch * one.numel()) for each, one in zip(question, takes, strict=True))
            )
        elements = [math.ceil(growth * batch * descriptor.numel()) for descriptor in gives]
        sizes = [4 if descriptor.dtype is None else max(4, descriptor.dtype.itemsize) for descriptor in gives]
        plain = sum(count * size for count, size in zip(elements, sizes, strict=True))
        most = sum(count * _ELEMENT_BYTES + _TENSOR_BYTES for count in elements)
        ceiling = max(_ANSWER_BYTES, _TIMES_THE_QUESTION * sum(tensor.nbytes for tensor in question))
        return cls(exact, plain <= MAX_UNARY_BYTES, min(most, ceiling))
