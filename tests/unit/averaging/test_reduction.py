"""What a reducer answers to parts that have lost digits on their way."""

from __future__ import annotations

import pytest
import torch

from hivemind.averaging.messages import PartMessage
from hivemind.averaging.reduction import reduce_part
from hivemind.compression import BufferCodec, codec_for, deserialize_torch_tensor, known_codecs, serialize_torch_tensor
from hivemind.proto import averaging_pb2

every_codec = pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: type(codec).__name__)


@every_codec
def test_answers_are_differences_from_the_part_as_it_was_decoded(codec: BufferCodec) -> None:
    generator = torch.Generator().manual_seed(0)
    local, sent = (torch.randn(5000, generator=generator) for _ in range(2))
    message = serialize_torch_tensor(sent, codec.compression_type)
    decoded = deserialize_torch_tensor(message)
    reduced = reduce_part(local, 0, {0: (None, 1.0), 1: (message, 3.0)})
    average = (local + 3 * decoded) / 4
    assert reduced.average is not None
    torch.testing.assert_close(reduced.average, average)
    wire = PartMessage.FromString(reduced.answers[1].SerializeToString())
    assert (wire.code, wire.tensor_part.compression) == (averaging_pb2.AVERAGED_PART, codec.compression_type)
    answer = codec_for(wire.tensor_part.compression).extract(wire.tensor_part)
    difference = average - decoded
    assert ((answer - difference).abs() <= codec.error_bound(difference) + 1e-5).all()


@every_codec
def test_a_sender_of_values_that_are_not_finite_is_found_behind_every_codec(codec: BufferCodec) -> None:
    local, sent = torch.ones(5000), torch.ones(5000)
    sent[17] = float("nan")
    message = serialize_torch_tensor(sent, codec.compression_type)
    reduced = reduce_part(local, 0, {0: (None, 1.0), 1: (message, 1.0)})
    assert list(reduced.rejected) == [1]
    assert reduced.average is not None
    assert torch.equal(reduced.average, local)
