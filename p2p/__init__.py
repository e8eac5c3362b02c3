"""Peers: calls and streams between them, over libp2p through the daemon or inside one process."""

from hivemind.errors import ControlFailure, DispatchFailure, P2PDaemonError, P2PHandlerError
from hivemind.identity import PeerID, PeerInfo
from hivemind.p2p.auth import AllowlistAuthorizer, AuthorizerBase, AuthRole, AuthRPCWrapper
from hivemind.p2p.binary import StreamInfo
from hivemind.p2p.config import P2PConfig, as_peer_ids
from hivemind.p2p.daemon_version import daemon_versions
from hivemind.p2p.exposition import metrics_text, register_metrics
from hivemind.p2p.faults import Fault
from hivemind.p2p.identity_file import ensure_identity, read_peer_id
from hivemind.p2p.limits import DEFAULT_MAX_MSG_SIZE, MAX_UNARY_PAYLOAD_SIZE
from hivemind.p2p.membership import Membership
from hivemind.p2p.memory import MemoryNetwork, MemoryTransport
from hivemind.p2p.metrics import LATENCY_BOUNDS, CallStats, P2PMetrics, PeerStats, ProtocolStats
from hivemind.p2p.p2p import P2P
from hivemind.p2p.process import find_binary
from hivemind.p2p.reachability import Reachability, RelayInUse
from hivemind.p2p.refusals import named_arguments, retry_seconds
from hivemind.p2p.relay_limits import RelayLimits
from hivemind.p2p.rpc import P2PContext
from hivemind.p2p.servicer import ServicerBase
from hivemind.p2p.stub import StubBase
from hivemind.p2p.swarm_key import SwarmKey
from hivemind.p2p.tokens import TokenAuthorizerBase
from hivemind.p2p.transport import Mode, Stream, Transport

__all__ = [
    "DEFAULT_MAX_MSG_SIZE",
    "LATENCY_BOUNDS",
    "MAX_UNARY_PAYLOAD_SIZE",
    "P2P",
    "AllowlistAuthorizer",
    "AuthRPCWrapper",
    "AuthRole",
    "AuthorizerBase",
    "CallStats",
    "ControlFailure",
    "DispatchFailure",
    "Fault",
    "Membership",
    "MemoryNetwork",
    "MemoryTransport",
    "Mode",
    "P2PConfig",
    "P2PContext",
    "P2PDaemonError",
    "P2PHandlerError",
    "P2PMetrics",
    "PeerID",
    "PeerInfo",
    "PeerStats",
    "ProtocolStats",
    "Reachability",
    "RelayInUse",
    "RelayLimits",
    "ServicerBase",
    "Stream",
    "StreamInfo",
    "StubBase",
    "SwarmKey",
    "TokenAuthorizerBase",
    "Transport",
    "as_peer_ids",
    "daemon_versions",
    "ensure_identity",
    "find_binary",
    "metrics_text",
    "named_arguments",
    "read_peer_id",
    "register_metrics",
    "retry_seconds",
]
