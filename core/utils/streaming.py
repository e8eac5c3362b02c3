"""Path of hivemind 1.1 for tensors in parts, see `hivemind.compression`."""

from hivemind.compression import combine_from_streaming, split_for_streaming

__all__ = ["combine_from_streaming", "split_for_streaming"]
