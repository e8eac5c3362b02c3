"""Tensors as bytes on the wire of hivemind 1.1.

* `base`: the codec interface, what a codec may know of a tensor, and the codec that changes nothing;
* `buffers`: tensors and plain memory, and what a message may say of itself; `output`: memory for what codecs write;
* `floating`: 16 bits an element; `uniform`, `quantile`, `blockwise`: 8 bits, with what they share in `codebook`;
* `adaptive`: strategies that choose a codec by size, role or key;
* `registry`: which codec reads which ``CompressionType``, those of other packages among them;
* `chunks`, `moments`: going over many elements in pieces that stay in the cache; `one_thread`: torch without threads;
* `spec`: descriptors of tensors;
* `views`: messages whose buffers are not copied;
* `wire`: tensors from and to messages and streams of messages.
"""

from hivemind.compression.adaptive import (
    AdaptiveCompressionBase,
    PerTensorCompression,
    RoleAdaptiveCompression,
    SizeAdaptiveCompression,
)
from hivemind.compression.base import BufferCodec, CompressionBase, CompressionInfo, Key, NoCompression, TensorRole
from hivemind.compression.blockwise import BlockwiseQuantization
from hivemind.compression.buffers import Buffer, TensorMessage, read_header
from hivemind.compression.floating import Float16Compression, ScaledFloat16Compression
from hivemind.compression.quantile import Quantile8BitQuantization
from hivemind.compression.registry import codec_for, known_codecs, register_codec
from hivemind.compression.spec import DUMMY_BATCH_SIZE, BatchTensorDescriptor, TensorDescriptor
from hivemind.compression.uniform import Uniform8BitQuantization
from hivemind.compression.views import TensorView, take_tensors, tensor_field
from hivemind.compression.wire import (
    DEFAULT_CHUNK_BYTES,
    assemble,
    combine_from_streaming,
    deserialize_tensor_stream,
    deserialize_torch_tensor,
    encode_torch_tensor,
    serialize_torch_tensor,
    split_for_streaming,
    split_view,
)

__all__ = [
    "DEFAULT_CHUNK_BYTES",
    "DUMMY_BATCH_SIZE",
    "AdaptiveCompressionBase",
    "BatchTensorDescriptor",
    "BlockwiseQuantization",
    "Buffer",
    "BufferCodec",
    "CompressionBase",
    "CompressionInfo",
    "Float16Compression",
    "Key",
    "NoCompression",
    "PerTensorCompression",
    "Quantile8BitQuantization",
    "RoleAdaptiveCompression",
    "ScaledFloat16Compression",
    "SizeAdaptiveCompression",
    "TensorDescriptor",
    "TensorMessage",
    "TensorRole",
    "TensorView",
    "Uniform8BitQuantization",
    "assemble",
    "codec_for",
    "combine_from_streaming",
    "deserialize_tensor_stream",
    "deserialize_torch_tensor",
    "encode_torch_tensor",
    "known_codecs",
    "read_header",
    "register_codec",
    "serialize_torch_tensor",
    "split_for_streaming",
    "split_view",
    "take_tensors",
    "tensor_field",
]
