"""Path of hivemind 1.1 for descriptions of tensors, see `hivemind.compression`."""

from hivemind.compression import DUMMY_BATCH_SIZE, BatchTensorDescriptor, TensorDescriptor

__all__ = ["DUMMY_BATCH_SIZE", "BatchTensorDescriptor", "TensorDescriptor"]
