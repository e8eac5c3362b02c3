"""Names of hivemind 1.1 at their old place."""

from hivemind.errors import ControlFailure, DispatchFailure

__all__ = ["ControlFailure", "DispatchFailure"]
