"""The service of a server of experts as its callers see it (hivemind 1.1 wire format, "Handler names")."""

from __future__ import annotations

from collections.abc import AsyncIterator

from hivemind.identity import PeerID
from hivemind.moe.wire import ExpertRequest, ExpertResponse
from hivemind.p2p import P2P, P2PContext, ServicerBase, StubBase
from hivemind.proto import runtime_pb2

__all__ = ["ConnectionHandler", "get_server_stub"]


class ConnectionHandler(ServicerBase):
    """What a server answers. The name of the class is part of the protocol."""

    async def rpc_info(self, request: runtime_pb2.ExpertUID, context: P2PContext) -> runtime_pb2.ExpertInfo:
        """What the expert takes and gives."""
        raise NotImplementedError

    async def rpc_forward(self, request: ExpertRequest, context: P2PContext) -> ExpertResponse:
        """Outputs for inputs."""
        raise NotImplementedError

    async def rpc_backward(self, request: ExpertRequest, context: P2PContext) -> ExpertResponse:
        """Gradients of inputs, for inputs and gradients of outputs; the expert makes a step of its optimizer."""
        raise NotImplementedError

    def rpc_forward_stream(
        self, requests: AsyncIterator[ExpertRequest], context: P2PContext
    ) -> AsyncIterator[ExpertResponse]:
        """As `rpc_forward`, in chunks."""
        raise NotImplementedError

    def rpc_backward_stream(
        self, requests: AsyncIterator[ExpertRequest], context: P2PContext
    ) -> AsyncIterator[ExpertResponse]:
        """As `rpc_backward`, in chunks."""
        raise NotImplementedError


def get_server_stub(p2p: P2P, server_peer_id: PeerID) -> StubBase:
    """An object whose methods ``rpc_*`` call the server ``server_peer_id``; see `hivemind.p2p.StubBase`."""
    return ConnectionHandler.get_stub(p2p, server_peer_id)
