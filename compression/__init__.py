"""Tensors as bytes on the wire of hivemind 1.1.

* `base`: the codec interface, what a codec may know of a tensor, and the codec that changes nothing;
* `buffers`: tensors and plain memory, and what a message may say of itself;
* `floating`: half precision; * `adaptive`: strategies that choose a codec by size, role or key;
* `registry`: which codec reads which ``CompressionType``;
* `spec`: descriptors of tensors;
* `wire`: tensors from and to messages and streams of messages.
"""

from hivemind.compression.adaptive import (
    AdaptiveCompressionBase,
    PerTensorCompression,
    RoleAdaptiveCompression,
    SizeAdaptiveCompression,
)
from hivemind.compression.base import CompressionBase, CompressionInfo, Key, NoCompression, TensorRole
from hivemind.compression.buffers import Buffer, TensorMessage, read_header
from hivemind.compression.floating import Float16Compression
from hivemind.compression.registry import codec_for
from hivemind.compression.spec import DUMMY_BATCH_SIZE, BatchTensorDescriptor, TensorDescriptor
from hivemind.compression.wire import (
    DEFAULT_CHUNK_BYTES,
    combine_from_streaming,
    deserialize_tensor_stream,
    deserialize_torch_tensor,
    serialize_torch_tensor,
    split_for_streaming,
)

__all__ = [
    "DEFAULT_CHUNK_BYTES",
    "DUMMY_BATCH_SIZE",
    "AdaptiveCompressionBase",
    "BatchTensorDescriptor",
    "Buffer",
    "CompressionBase",
    "CompressionInfo",
    "Float16Compression",
    "Key",
    "NoCompression",
    "PerTensorCompression",
    "RoleAdaptiveCompression",
    "SizeAdaptiveCompression",
    "TensorDescriptor",
    "TensorMessage",
    "TensorRole",
    "codec_for",
    "combine_from_streaming",
    "deserialize_tensor_stream",
    "deserialize_torch_tensor",
    "read_header",
    "serialize_torch_tensor",
    "split_for_streaming",
]
