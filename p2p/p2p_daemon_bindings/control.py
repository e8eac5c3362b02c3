"""Names of hivemind 1.1 at their old place."""

from hivemind.errors import ControlFailure, DispatchFailure, P2PDaemonError, P2PHandlerError
from hivemind.p2p.limits import DEFAULT_MAX_MSG_SIZE, MAX_UNARY_PAYLOAD_SIZE

__all__ = [
    "DEFAULT_MAX_MSG_SIZE",
    "MAX_UNARY_PAYLOAD_SIZE",
    "ControlFailure",
    "DispatchFailure",
    "P2PDaemonError",
    "P2PHandlerError",
]
