"""What a reducer does with one part: from the senders' messages to the mean and each sender's answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hivemind.averaging.arithmetic import accumulator_dtype, is_finite, weighted_mean
from hivemind.averaging.messages import PartMessage
from hivemind.compression import CompressionInfo, TensorMessage, codec_for
from hivemind.errors import SerializationError
from hivemind.proto import averaging_pb2, runtime_pb2

__all__ = ["ReducedPart", "reduce_part"]


@dataclass
class ReducedPart:
    """The outcome of one part.

    :param average: the mean in the accumulator's dtype; None if all weights are 0: then everybody keeps what it has
    :param answers: for each sender the difference from what it sent to the mean, encoded as it had encoded its part
    :param rejected: senders whose parts could not be used, and why; they have no share in the mean
    """

    average: torch.Tensor | None
    answers: dict[int, PartMessage]
    rejected: dict[int, str]


def reduce_part(
    local: torch.Tensor, local_sender: int, inputs: Mapping[int, tuple[TensorMessage | None, float]]
) -> ReducedPart:
    """Reduce one part.

    :param local: this peer's values, 1-d; everything is computed on its device
    :param local_sender: this peer's number among the senders
    :param inputs: message and weight by sender; the local sender has no message
    """
    values: dict[int, torch.Tensor] = {}
    rejected: dict[int, str] = {}
    for sender, (message, _) in sorted(inputs.items()):
        try:
            values[sender] = local if message is None else _decode(message, local)
        except SerializationError as error:
            rejected[sender] = str(error)
    weights = {sender: inputs[sender][1] for sender in values}
    average = _mean(values, weights)
    if average is not None and not is_finite(average):
        for sender in [sender for sender, weight in weights.items() if weight > 0 and not is_finite(values[sender])]:
            rejected[sender] = "values that are not finite"
            del values[sender]
        average = _mean(values, weights)
    values.pop(local_sender, None)
    answers = {sender: _answer(average, part, inputs[sender][0]) for sender, part in values.items()}
    return ReducedPart(average, answers, rejected)


def _decode(message: TensorMessage, local: torch.Tensor) -> torch.Tensor:
    part = codec_for(message.compression).extract(message, local.device)
    if part.shape != local.shape or part.is_complex():
        raise SerializationError(f"a part of shape {tuple(part.shape)}, expected {tuple(local.shape)}")
    return part


def _mean(values: Mapping[int, torch.Tensor], weights: Mapping[int, float]) -> torch.Tensor | None:
    if not any(weights[sender] > 0 for sender in values):
        return None
    return weighted_mean(list(values.values()), [weights[sender] for sender in values])


def _answer(average: torch.Tensor | None, part: torch.Tensor, message: TensorMessage | None) -> PartMessage:
    if average is None:
        delta = torch.zeros_like(part, dtype=accumulator_dtype(part.dtype))
    elif part.dtype == average.dtype:
        delta = torch.sub(average, part, out=part)  # the part was decoded for this, and is of no more use
    else:
        delta = average - part
    codec = codec_for(runtime_pb2.NONE if message is None else message.compression)
    header, buffer = codec.encode(delta, CompressionInfo.from_tensor(delta), allow_inplace=True)
    return PartMessage.pack(header, buffer, code=averaging_pb2.AVERAGED_PART)
