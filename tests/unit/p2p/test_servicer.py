"""Services: types from annotations, names from classes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from hivemind.p2p import MemoryNetwork, P2PContext, ServicerBase
from hivemind.p2p.handler_table import RPCHandler, handlers_of, wire_name
from hivemind.proto import test_pb2
from hivemind.virtual_clock import run_virtual

if TYPE_CHECKING:
    from somewhere_that_is_not_there import Unknown

Request, Response = test_pb2.TestRequest, test_pb2.TestResponse


class Parent(ServicerBase):
    async def rpc_one(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        return test_pb2.TestResponse(number=1)

    async def not_an_rpc(self, request: int) -> None: ...


class Child(Parent):
    async def rpc_one(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        return test_pb2.TestResponse(number=2)

    async def rpc_more(
        self, requests: AsyncIterable[test_pb2.TestRequest], context: Unknown
    ) -> AsyncGenerator[test_pb2.TestResponse, None]:
        yield test_pb2.TestResponse()


def test_types_come_from_annotations() -> None:
    assert handlers_of(Parent) == (RPCHandler("rpc_one", Request, Response, False, False),)
    # a context whose type cannot be resolved is no hindrance
    assert handlers_of(Child) == (
        RPCHandler("rpc_more", Request, Response, True, True),
        RPCHandler("rpc_one", Request, Response, False, False),
    )


def test_types_may_be_objects_or_text() -> None:
    def method(input_type: Any, output_type: Any) -> Any:
        async def rpc_x(self: Any, request: Any, context: Any) -> Any: ...

        rpc_x.__annotations__ = {"request": input_type, "return": output_type}
        return rpc_x

    service = type("Service", (ServicerBase,), {"rpc_x": method(Request, AsyncIterator[Response])})
    assert handlers_of(service) == (RPCHandler("rpc_x", Request, Response, False, True),)
    service = type("Service", (ServicerBase,), {"rpc_x": method("AsyncIterator[Request]", "Response")})
    assert handlers_of(service) == (RPCHandler("rpc_x", Request, Response, True, False),)


def test_names_are_those_of_the_concrete_class() -> None:
    assert wire_name(Child, "rpc_one", None) == "Child.rpc_one"
    assert wire_name(Parent, "rpc_one", "space") == "space::Parent.rpc_one"


def test_a_stub_of_a_child_never_calls_the_parent() -> None:
    """Whichever was used first: hivemind 1.1 kept stubs in the parent's class."""

    async def main() -> None:
        network = MemoryNetwork()
        async with await network.create_p2p() as alice, await network.create_p2p() as bob:
            await Parent().add_p2p_handlers(alice)
            await Child().add_p2p_handlers(alice)
            for service, number in ((Parent, 1), (Child, 2), (Parent, 1)):
                stub = service.get_stub(bob, alice.peer_id)
                assert (await stub.rpc_one(Request())).number == number

    run_virtual(main)


def test_a_method_replaced_later_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    async def other(self: Parent, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        return Response(number=9)

    async def main() -> None:
        handlers_of(Parent)
        monkeypatch.setattr(Parent, "rpc_one", other)
        network = MemoryNetwork()
        async with await network.create_p2p() as alice, await network.create_p2p() as bob:
            await Parent().add_p2p_handlers(alice)
            assert (await Parent.get_stub(bob, alice.peer_id).rpc_one(Request())).number == 9

    run_virtual(main)


class TooFew(ServicerBase):
    async def rpc_x(self, request: test_pb2.TestRequest) -> test_pb2.TestResponse: ...  # type: ignore[empty-body]


class NoInput(ServicerBase):
    async def rpc_x(self, request, context: P2PContext) -> test_pb2.TestResponse: ...  # type: ignore


class NoOutput(ServicerBase):
    async def rpc_x(self, request: test_pb2.TestRequest, context: P2PContext): ...  # type: ignore


class NotAType(ServicerBase):
    async def rpc_x(self, request: list[int], context: P2PContext) -> None: ...


class NotThere(ServicerBase):
    async def rpc_x(self, request: Unknown, context: P2PContext) -> None: ...


@pytest.mark.parametrize("service", [TooFew, NoInput, NoOutput, NotAType, NotThere])
def test_handlers_that_cannot_be(service: type[ServicerBase]) -> None:
    with pytest.raises(ValueError, match=rf"{service.__name__}\.rpc_x"):
        handlers_of(service)
