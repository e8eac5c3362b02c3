"""Names of hivemind 1.1 at their old place."""

from hivemind.identity import PeerID, PeerInfo
from hivemind.p2p.binary import StreamInfo

__all__ = ["PeerID", "PeerInfo", "StreamInfo"]
