"""Path of hivemind 1.1 for tensors from and to messages, see `hivemind.compression.wire`."""

from hivemind.compression.wire import deserialize_tensor_stream, deserialize_torch_tensor, serialize_torch_tensor

__all__ = ["deserialize_tensor_stream", "deserialize_torch_tensor", "serialize_torch_tensor"]
