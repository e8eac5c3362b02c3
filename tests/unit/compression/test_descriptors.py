"""Descriptors of batches: their form on the wire, and what a hostile server may send as one."""

from __future__ import annotations

import pickle

import pytest
import torch

from hivemind.compression import BatchTensorDescriptor, TensorDescriptor
from hivemind.errors import SerializationError
from hivemind.proto import runtime_pb2
from hivemind.serializer import MSGPackSerializer

#: What hivemind 1.1.12 sends for a batch of 1,024 float32 numbers on the CPU that require a gradient.
GOLDEN = bytes.fromhex("c77d51") + (
    b"\x88\xa4size\xc7\x05\x40\x92\xc0\xcd\x04\x00\xa5dtype\xadtorch.float32\xa6layout\xadtorch.strided"
    b"\xadrequires_grad\xc3\xaapin_memory\xc2\xabcompression\x00\xabdevice_type\xa3cpu\xacdevice_index\xc0"
)


def test_golden_bytes() -> None:
    descriptor = BatchTensorDescriptor(1024, dtype=torch.float32, device=torch.device("cpu"), requires_grad=True)
    assert MSGPackSerializer.dumps(descriptor) == GOLDEN
    assert MSGPackSerializer.loads(GOLDEN) == descriptor


@pytest.mark.parametrize(
    "descriptor",
    [
        BatchTensorDescriptor(8),
        BatchTensorDescriptor(),
        BatchTensorDescriptor(4, 0, 5, dtype=torch.bool, device=torch.device("cuda", 1)),
        BatchTensorDescriptor(8, dtype=torch.float16, compression=runtime_pb2.FLOAT16),
    ],
)
def test_descriptors_cross_borders(descriptor: BatchTensorDescriptor) -> None:
    assert MSGPackSerializer.loads(MSGPackSerializer.dumps((descriptor, {"x": descriptor}))) == (
        descriptor,
        {"x": descriptor},
    )
    assert pickle.loads(pickle.dumps(descriptor)) == descriptor


def test_the_batch_is_not_part_of_it() -> None:
    tensor = torch.ones(3, 4, 5, requires_grad=True)
    descriptor = BatchTensorDescriptor.from_tensor(tensor, runtime_pb2.FLOAT16)
    assert isinstance(descriptor, TensorDescriptor)
    assert descriptor.shape == (None, 4, 5)
    assert descriptor.numel() == 20
    assert descriptor.requires_grad
    assert descriptor.compression == runtime_pb2.FLOAT16
    zeros = descriptor.make_zeros(2, 3, requires_grad=False)
    assert (zeros.shape, zeros.dtype, zeros.requires_grad) == ((2, 3, 4, 5), torch.float32, False)


def test_integers_are_not_compressed() -> None:
    tensor = torch.ones(3, 4, dtype=torch.int64)
    assert BatchTensorDescriptor.from_tensor(tensor, runtime_pb2.FLOAT16).compression == runtime_pb2.NONE


HONEST = {"size": (None, 4), "dtype": "torch.float32", "layout": "torch.strided"}


@pytest.mark.parametrize("dtype", ["float32", "torch.float32"])
def test_names_with_and_without_torch(dtype: str) -> None:
    payload = MSGPackSerializer.dumps({**HONEST, "dtype": dtype, "layout": "strided"})
    assert BatchTensorDescriptor.unpackb(payload).dtype == torch.float32


@pytest.mark.parametrize(
    "lies",
    [
        {"size": ()},
        {"size": 4},
        {"size": (None, -1)},
        {"size": (None, True)},
        {"size": (None, 2**31, 2**31)},
        {"size": (None, *[1] * 65)},
        {"dtype": "torch.nn"},
        {"dtype": 3},
        {"dtype": ["torch.float32"]},
        {"layout": "torch.sparse_coo"},
        {"requires_grad": 1},
        {"requires_grad": True, "dtype": "torch.int64"},
        {"compression": 77},
        {"compression": "NONE"},
        {"device_type": "flux"},
        {"device_type": "cpu", "device_index": -3},
        {"device_type": "cpu", "device_index": "0"},
        {"device_type": 7},
    ],
    ids=repr,
)
def test_lies_are_refused(lies: dict[str, object]) -> None:
    with pytest.raises(SerializationError):
        BatchTensorDescriptor.unpackb(MSGPackSerializer.dumps({**HONEST, **lies}))


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\xc1", MSGPackSerializer.dumps([1])])
def test_no_descriptor_at_all(payload: bytes) -> None:
    with pytest.raises(SerializationError):
        BatchTensorDescriptor.unpackb(payload)
