"""Stubs: objects whose methods call the handlers of a service on one peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from hivemind.errors import ConfigError
from hivemind.identity import PeerID
from hivemind.p2p.handler_table import RPCHandler
from hivemind.p2p.p2p import P2P

__all__ = ["StubBase", "make_stub"]


class StubBase:
    """Calls a service on one peer: ``answer = await stub.rpc_x(request, timeout=3)``, and for a handler that streams
    its answers ``async for answer in await stub.rpc_y(request)``. A handler that takes a stream is given an async
    iterator of requests.

    ``timeout`` is in seconds; `P2P.call_protobuf_handler` tells what is raised.
    """

    def __init__(self, p2p: P2P, peer: PeerID, namespace: str | None) -> None:
        self._p2p = p2p
        self._peer = peer
        self._namespace = namespace

    @property
    def peer_id(self) -> PeerID:
        """The peer that is called."""
        return self._peer

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...


def make_stub(
    service: str, handlers: Iterable[RPCHandler], wire_name: Callable[[str, str | None], str]
) -> type[StubBase]:
    """The stub's class for a service of these handlers.

    :param wire_name: gives a handler's name on the network from method and namespace
    """
    methods = {handler.method_name: _caller(handler, wire_name) for handler in handlers}
    return type(f"{service}Stub", (StubBase,), methods)


def _caller(handler: RPCHandler, wire_name: Callable[[str, str | None], str]) -> Callable[..., Any]:
    plain = wire_name(handler.method_name, None)

    def name_for(namespace: str | None) -> str:
        return plain if namespace is None else wire_name(handler.method_name, namespace)

    async def call(self: StubBase, input: Any, timeout: float | None = None) -> Any:
        name = name_for(self._namespace)
        return await self._p2p.call_protobuf_handler(self._peer, name, input, handler.output_type, timeout=timeout)

    async def iterate(self: StubBase, input: Any, timeout: float | None = None) -> Any:
        if timeout is not None:
            raise ConfigError("timeout", timeout, "None: bound the reading of a stream of answers instead")
        name = name_for(self._namespace)
        return await self._p2p.iterate_protobuf_handler(self._peer, name, input, handler.output_type)

    caller = iterate if handler.stream_output else call
    caller.__name__ = caller.__qualname__ = handler.method_name
    return caller
