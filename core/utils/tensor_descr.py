"""Path of hivemind 1.1 for descriptions of tensors, see `hivemind.compression`."""

from hivemind.compression import TensorDescriptor

__all__ = ["TensorDescriptor"]
