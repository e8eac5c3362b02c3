"""Names of hivemind 1.1 at their old place."""

from hivemind.errors import P2PDaemonError, P2PHandlerError
from hivemind.identity import PeerID, PeerInfo
from hivemind.p2p.binary import StreamInfo
from hivemind.p2p.limits import DEFAULT_MAX_MSG_SIZE, MAX_UNARY_PAYLOAD_SIZE
from hivemind.p2p.p2p import P2P
from hivemind.p2p.rpc import P2PContext

__all__ = [
    "DEFAULT_MAX_MSG_SIZE",
    "MAX_UNARY_PAYLOAD_SIZE",
    "P2P",
    "P2PContext",
    "P2PDaemonError",
    "P2PHandlerError",
    "PeerID",
    "PeerInfo",
    "StreamInfo",
]
