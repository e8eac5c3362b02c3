"""Services: classes whose methods ``rpc_*`` are handlers, and the stubs that call them."""

from __future__ import annotations

import functools
from typing import Any

from hivemind.identity import PeerID
from hivemind.p2p.handler_table import handlers_of, wire_name
from hivemind.p2p.p2p import P2P
from hivemind.p2p.stub import StubBase, make_stub

__all__ = ["ServicerBase"]


class ServicerBase:
    """A service: methods ``async def rpc_x(self, request: Message, context: P2PContext) -> Message`` are its handlers.

    With ``AsyncIterator[Message]`` as type of the request, of the result, or of both, a handler streams; one that
    streams its results is an async generator. Names on the network contain the concrete class's name, so that peers
    with different classes do not meet.
    """

    async def add_p2p_handlers(
        self, p2p: P2P, wrapper: Any | None = None, *, namespace: str | None = None, balanced: bool = False
    ) -> None:
        """Answer calls to this service.

        :param wrapper: an object with the same methods that is called instead, for instance to check authorization
        :param namespace: tells several services of one class apart
        :param balanced: several clients of one daemon share the service
        :raises P2PDaemonError: if one of the names has a handler; those added before stay
        """
        servicer = self if wrapper is None else wrapper
        for handler in handlers_of(type(self)):
            await p2p.add_protobuf_handler(
                wire_name(type(self), handler.method_name, namespace),
                getattr(servicer, handler.method_name),
                handler.input_type,
                stream_input=handler.stream_input,
                stream_output=handler.stream_output,
                balanced=balanced,
            )

    async def remove_p2p_handlers(self, p2p: P2P, *, namespace: str | None = None) -> None:
        """Stop answering; calls that run go on."""
        for handler in handlers_of(type(self)):
            await p2p.remove_protobuf_handler(
                wire_name(type(self), handler.method_name, namespace),
                stream_input=handler.stream_input,
                stream_output=handler.stream_output,
            )

    @classmethod
    def get_stub(cls, p2p: P2P, peer: PeerID, *, namespace: str | None = None) -> StubBase:
        """An object whose methods ``rpc_*`` call this service on ``peer``; see `StubBase`."""
        stub_type: type[StubBase] | None = vars(cls).get("_stub_type")
        if stub_type is None:
            stub_type = make_stub(cls.__name__, handlers_of(cls), functools.partial(wire_name, cls))
            cls._stub_type = stub_type  # type: ignore[attr-defined]
        return stub_type(p2p, peer, namespace)
