"""Path of hivemind 1.1 for the futures of `hivemind.runtime`. They stay within one process."""

from hivemind.runtime import HivemindFuture as MPFuture

__all__ = ["MPFuture"]
