"""Errors that travel as the text of their repr: what peers of hivemind 1.1 get as the text of an ordinary error, others
get as the error that it was."""

from __future__ import annotations

import ast
import re
from typing import Final

from hivemind.errors import HandlerBusy, HivemindError, P2PHandlerError

__all__ = ["error_told", "named_arguments", "retry_seconds"]

_FORM: Final = re.compile(r"(\w{1,64})(\(.{0,8192}\))", re.DOTALL)
#: Seconds that a peer may name: whoever waits longer has been told nothing.
_LONGEST_WAIT: Final = 3600.0


def named_arguments(text: str) -> tuple[str, object] | None:
    """The name and the arguments (one, or a tuple of several) of a repr like ``Name('text', 1.5)``; None if it is no
    such thing. Nothing but literals is read."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    try:
        return form.group(1), ast.literal_eval(form.group(2))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def retry_seconds(told: object) -> float | None:
    """The seconds after which a peer says to try again; None if it is no time to wait for."""
    if isinstance(told, (int, float)) and 0 <= told < _LONGEST_WAIT:
        return float(told)
    return None


def error_told(text: str) -> HivemindError:
    """The error for what a peer's handler says."""
    match named_arguments(text):
        case "HandlerBusy", (str() as reason, told) if (seconds := retry_seconds(told)) is not None:
            return HandlerBusy(reason, seconds)
    return P2PHandlerError(text)
