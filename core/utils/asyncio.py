"""Path of hivemind 1.1 for `hivemind.aio`."""

from hivemind.aio import as_aiter, cancel_and_wait

__all__ = ["as_aiter", "cancel_and_wait"]
