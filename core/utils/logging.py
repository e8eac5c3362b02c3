"""Path of hivemind 1.1 for `hivemind.log`."""

from hivemind.log import get_logger, loglevel, use_hivemind_log_handler

__all__ = ["get_logger", "loglevel", "use_hivemind_log_handler"]
