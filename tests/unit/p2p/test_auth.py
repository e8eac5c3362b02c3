"""Authorizers and the wrapper that applies them, over the in-memory network."""

from __future__ import annotations

import asyncio
import base64
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from hivemind.clock import get_dht_time
from hivemind.crypto import RSAPrivateKey, RSAPublicKey
from hivemind.errors import AuthorizationError, ConfigError, DeadlineExceeded, P2PHandlerError, TokenUnavailable
from hivemind.p2p import (
    P2P,
    AllowlistAuthorizer,
    AuthorizerBase,
    AuthRole,
    AuthRPCWrapper,
    MemoryNetwork,
    P2PContext,
    ServicerBase,
    tokens,
)
from hivemind.proto import test_pb2
from hivemind.proto.auth_pb2 import AccessToken
from hivemind.proto.dht_pb2 import NodeInfo, PingRequest, PingResponse
from tests.support.authority import TokenAuthorizer, issue

Pair = tuple[P2P, P2P]


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    network = MemoryNetwork()
    async with await network.create_p2p() as alice, await network.create_p2p() as bob:
        yield alice, bob


@pytest.fixture(scope="module")
def keys() -> list[RSAPrivateKey]:
    return [RSAPrivateKey(), RSAPrivateKey()]


class Service(ServicerBase):
    """Handlers of three shapes; only the first can be signed."""

    def __init__(self) -> None:
        self.calls = 0

    async def rpc_ping(self, request: PingRequest, context: P2PContext) -> PingResponse:
        self.calls += 1
        return PingResponse(peer=NodeInfo(node_id=b"answer to " + request.peer.node_id))

    async def rpc_square(self, request: test_pb2.TestRequest, context: P2PContext) -> test_pb2.TestResponse:
        self.calls += 1
        return test_pb2.TestResponse(number=request.number**2)

    async def rpc_count(
        self, request: test_pb2.TestRequest, context: P2PContext
    ) -> AsyncIterator[test_pb2.TestResponse]:
        self.calls += 1
        for number in range(request.number):
            yield test_pb2.TestResponse(number=number)


async def connect(pair: Pair, callee: AuthorizerBase | None, caller: AuthorizerBase | None) -> tuple[Service, Any]:
    """A service of the first peer behind ``callee``, and a stub of the second behind ``caller``."""
    alice, bob = pair
    service = Service()
    await service.add_p2p_handlers(alice, AuthRPCWrapper(service, AuthRole.SERVICER, callee))
    return service, AuthRPCWrapper(Service.get_stub(bob, alice.peer_id), AuthRole.CLIENT, caller)


def ping(text: bytes = b"") -> PingRequest:
    return PingRequest(peer=NodeInfo(node_id=text))


# -- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_members_call_members(pair: Pair, keys: list[RSAPrivateKey]) -> None:
    callee, caller = TokenAuthorizer("alice", key=keys[0]), TokenAuthorizer("bob", key=keys[1])
    _, stub = await connect(pair, callee, caller)
    for number in range(3):
        text = bytes([number])
        answer = await stub.rpc_ping(ping(text), timeout=10)
        assert answer.peer.node_id == b"answer to " + text
        assert answer.auth.service_access_token.username == "alice"
    assert (callee.asked, caller.asked) == (1, 1), "tokens are kept"


@pytest.mark.asyncio
async def test_strangers_are_told_why_they_are_refused(pair: Pair, keys: list[RSAPrivateKey]) -> None:
    service, stub = await connect(pair, TokenAuthorizer("alice", key=keys[0]), None)
    with pytest.raises(P2PHandlerError, match=r"AuthorizationError.*no access token: this swarm is only for peers"):
        await stub.rpc_ping(ping())
    forged = TokenAuthorizer("mallory", authority=RSAPrivateKey(), key=keys[1])
    forged.is_token_valid = lambda token: True  # type: ignore[method-assign]
    stub = AuthRPCWrapper(Service.get_stub(pair[1], pair[0].peer_id), AuthRole.CLIENT, forged)
    with pytest.raises(P2PHandlerError, match=r"AuthorizationError.*not valid"):
        await stub.rpc_ping(ping())
    assert service.calls == 0


@pytest.mark.asyncio
async def test_a_callee_must_be_a_member_too(pair: Pair, keys: list[RSAPrivateKey]) -> None:
    service, stub = await connect(pair, None, TokenAuthorizer("bob", key=keys[1]))
    with pytest.raises(AuthorizationError, match="cannot be trusted: there is no access token"):
        await stub.rpc_ping(ping())
    assert service.calls == 1


def change_time(request: PingRequest) -> None:
    request.auth.time += 1


def change_content(request: PingRequest) -> None:
    request.peer.node_id = b"another"


def change_token(request: PingRequest) -> None:
    request.auth.client_access_token.username = "root"


def change_key(request: PingRequest) -> None:
    request.auth.client_access_token.CopyFrom(issue("mallory", RSAPrivateKey()))


def change_nonce(request: PingRequest) -> None:
    request.auth.nonce = bytes(8)


def drop_signature(request: PingRequest) -> None:
    request.auth.signature = b""


def break_signature(request: PingRequest) -> None:
    signature = bytearray(base64.b64decode(request.auth.signature))
    signature[7] ^= 1
    request.auth.signature = base64.b64encode(signature)


def garble_key(request: PingRequest) -> None:
    request.auth.client_access_token.public_key = b"ssh-rsa !!!"


CHANGES = [
    change_time,
    change_content,
    change_token,
    change_key,
    change_nonce,
    drop_signature,
    break_signature,
    garble_key,
]


@pytest.mark.asyncio
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_changed_request_is_refused(change: Callable[[PingRequest], None], keys: list[RSAPrivateKey]) -> None:
    caller, callee = TokenAuthorizer("bob", key=keys[1]), TokenAuthorizer("alice", key=keys[0])
    request = ping(b"text")
    await caller.sign_request(request, None)
    original = request.SerializeToString()
    change(request)
    assert not await callee.validate_request(request)
    assert await callee.validate_request(PingRequest.FromString(original)), "the original passes"


@pytest.mark.asyncio
async def test_a_request_passes_once(keys: list[RSAPrivateKey]) -> None:
    caller, callee = TokenAuthorizer("bob", key=keys[1]), TokenAuthorizer("alice", key=keys[0])
    request = ping()
    await caller.sign_request(request, None)
    assert await callee.problem_with_request(request) == ""
    assert "replay" in await callee.problem_with_request(request)
    await caller.sign_request(request, None)
    assert await callee.problem_with_request(request) == "", "the same request again is another one"


@pytest.mark.asyncio
@pytest.mark.parametrize("difference", [-61, -30, 30, 65, float("nan")])
async def test_clocks(difference: float, keys: list[RSAPrivateKey], monkeypatch: pytest.MonkeyPatch) -> None:
    caller, callee = TokenAuthorizer("bob", key=keys[1]), TokenAuthorizer("alice", key=keys[0])
    request = ping()
    with monkeypatch.context() as other_clock:
        other_clock.setattr(tokens, "get_dht_time", lambda: get_dht_time() + difference)
        await caller.sign_request(request, None)
    problem = await callee.problem_with_request(request)
    if abs(difference) == 30:
        assert problem == ""
    else:
        assert "its time is off" in problem


@pytest.mark.asyncio
async def test_a_request_for_one_service_only(keys: list[RSAPrivateKey]) -> None:
    caller, callee = TokenAuthorizer("bob", key=keys[1]), TokenAuthorizer("alice", key=keys[0])
    request = ping()
    await caller.sign_request(request, callee.local_public_key)
    assert await callee.validate_request(request)
    await caller.sign_request(request, caller.local_public_key)
    assert "another key" in await callee.problem_with_request(request)


@pytest.mark.asyncio
async def test_answers_belong_to_their_requests(keys: list[RSAPrivateKey]) -> None:
    caller, callee = TokenAuthorizer("bob", key=keys[1]), TokenAuthorizer("alice", key=keys[0])
    requests = [ping(b"1"), ping(b"2")]
    answers = [PingResponse(), PingResponse()]
    for request, answer in zip(requests, answers, strict=True):
        await caller.sign_request(request, None)
        await callee.sign_response(answer, request)
        assert await caller.validate_response(answer, request)
    assert "another request" in await caller.problem_with_response(answers[0], requests[1])
    answers[0].dht_time = 1.0
    assert "not signed" in await caller.problem_with_response(answers[0], requests[0])


@pytest.mark.asyncio
async def test_large_messages_are_checked_too(keys: list[RSAPrivateKey]) -> None:
    caller, callee = TokenAuthorizer("bob", key=keys[1]), TokenAuthorizer("alice", key=keys[0])
    request = ping(bytes(1 << 20))
    await caller.sign_request(request, None)
    changed = PingRequest.FromString(request.SerializeToString())
    changed.peer.node_id = bytes((1 << 20) - 1) + b"x"
    assert not await callee.validate_request(changed)
    assert await callee.validate_request(request)


@pytest.mark.asyncio
async def test_a_token_is_renewed_before_it_expires(keys: list[RSAPrivateKey], monkeypatch: pytest.MonkeyPatch) -> None:
    authorizer = TokenAuthorizer("bob", lifetime=600, key=keys[1])
    await authorizer.refresh_token_if_needed()
    first = authorizer._local_access_token
    await asyncio.gather(*(authorizer.sign_request(ping(), None) for _ in range(5)))
    assert authorizer.asked == 1
    authorizer.does_token_need_refreshing = lambda token: token is first  # type: ignore[method-assign]
    await asyncio.gather(*(authorizer.sign_request(ping(), None) for _ in range(5)))
    assert authorizer.asked == 2, "one asks for all"


@pytest.mark.asyncio
async def test_no_token_to_be_had(pair: Pair, keys: list[RSAPrivateKey], monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller learns why; the authority is not asked for each call; an old token is used as long as it holds."""
    now = [1000.0]
    monkeypatch.setattr(tokens, "monotonic", lambda: now[0])
    caller = TokenAuthorizer("bob", key=keys[1])
    caller.fault = OSError("the authority is down")
    service, stub = await connect(pair, TokenAuthorizer("alice", key=keys[0]), caller)
    for _ in range(3):
        with pytest.raises(TokenUnavailable, match="OSError: the authority is down"):
            await stub.rpc_ping(ping())
    assert caller.asked == 1
    assert service.calls == 0
    caller.fault = None
    now[0] += 10
    await stub.rpc_ping(ping())
    caller.does_token_need_refreshing = lambda token: True  # type: ignore[method-assign]
    caller.fault = OSError("down again")
    await stub.rpc_ping(ping())
    assert (caller.asked, service.calls) == (3, 2)


@pytest.mark.asyncio
async def test_an_authority_that_hangs(pair: Pair, keys: list[RSAPrivateKey], monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(TokenAuthorizer):
        async def get_token(self) -> AccessToken:
            await asyncio.get_running_loop().create_future()
            raise AssertionError("nothing comes")

    _, stub = await connect(pair, None, Hanging("bob", key=keys[1]))
    with pytest.raises(DeadlineExceeded, match="authorization of rpc_ping"):
        await stub.rpc_ping(ping(), timeout=0.05)
    monkeypatch.setattr(tokens, "_TOKEN_SECONDS", 0.05)
    with pytest.raises(TokenUnavailable, match="access token"):
        await stub.rpc_ping(ping())


@pytest.mark.asyncio
async def test_a_fault_of_the_check_lets_nobody_in(pair: Pair, keys: list[RSAPrivateKey]) -> None:
    callee = TokenAuthorizer("alice", key=keys[0])
    service, stub = await connect(pair, callee, TokenAuthorizer("bob", key=keys[1]))

    def fail(token: AccessToken) -> bool:
        raise ZeroDivisionError

    callee.is_token_valid = fail  # type: ignore[method-assign]
    with pytest.raises(P2PHandlerError, match="not valid"):
        await stub.rpc_ping(ping())
    assert service.calls == 0


@pytest.mark.asyncio
async def test_what_cannot_be_signed_does_not_pass(pair: Pair, keys: list[RSAPrivateKey]) -> None:
    service, stub = await connect(pair, TokenAuthorizer("alice", key=keys[0]), TokenAuthorizer("bob", key=keys[1]))
    with pytest.raises(AuthorizationError, match="TestRequest has no field"):
        await stub.rpc_square(test_pb2.TestRequest(number=2))
    plain = Service.get_stub(pair[1], pair[0].peer_id)
    with pytest.raises(P2PHandlerError, match="TestRequest has no field"):
        await plain.rpc_square(test_pb2.TestRequest(number=2))
    with pytest.raises(P2PHandlerError, match="TestRequest has no field"):
        async for _ in await plain.rpc_count(test_pb2.TestRequest(number=2)):
            pass
    assert service.calls == 0


@pytest.mark.asyncio
async def test_an_authorizer_goes_to_another_process(keys: list[RSAPrivateKey]) -> None:
    caller = TokenAuthorizer("bob", key=keys[1])
    await caller.refresh_token_if_needed()
    copy = pickle.loads(pickle.dumps(caller))
    request = ping()
    await copy.sign_request(request, None)
    assert copy.asked == 1, "it has taken the token along"
    assert await TokenAuthorizer("alice", key=keys[0]).validate_request(request)


# -- the allowlist -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_allowlist(pair: Pair) -> None:
    alice, bob = pair
    members = AllowlistAuthorizer([str(alice.peer_id), bob.peer_id])
    assert members.peer_ids == {alice.peer_id, bob.peer_id}
    service, stub = await connect(pair, members, members)
    assert (await stub.rpc_ping(ping(b"x"))).peer.node_id == b"answer to x"
    assert (await stub.rpc_square(test_pb2.TestRequest(number=3), timeout=10)).number == 9
    assert [answer.number async for answer in await stub.rpc_count(test_pb2.TestRequest(number=3))] == [0, 1, 2]
    service.calls = 0
    members.forbid(bob.peer_id)
    plain = Service.get_stub(bob, alice.peer_id)
    for call in (plain.rpc_ping(ping()), plain.rpc_square(test_pb2.TestRequest())):
        with pytest.raises(P2PHandlerError, match=f"AuthorizationError.*{bob.peer_id} is not on the allowlist"):
            await call
    with pytest.raises(P2PHandlerError, match="not on the allowlist"):
        async for _ in await plain.rpc_count(test_pb2.TestRequest(number=3)):
            pass
    assert service.calls == 0
    members.allow(str(bob.peer_id))
    await plain.rpc_ping(ping())


@pytest.mark.asyncio
async def test_allowlist_keeps_requests_from_strangers(pair: Pair) -> None:
    service, stub = await connect(pair, None, AllowlistAuthorizer([]))
    with pytest.raises(AuthorizationError, match=f"{pair[0].peer_id} is not on the allowlist"):
        await stub.rpc_ping(ping())
    assert service.calls == 0


@pytest.mark.parametrize("slip", ["not an id", "abc", "2NEpo7TZRRrLZSi2U", ""])
def test_allowlist_of_what_is_no_id(slip: str) -> None:
    """Text that is base58 but no id among them."""
    with pytest.raises(ConfigError, match=r"peer_ids.*peer id"):
        AllowlistAuthorizer([slip])
    with pytest.raises(ConfigError, match=r"peer_ids.*peer id"):
        AllowlistAuthorizer([]).allow(slip)


# -- subclasses as hivemind 1.1 has them -----------------------------------------------------------------------------


class Password(AuthorizerBase):
    """The four methods of 1.1 only."""

    def __init__(self, word: bytes) -> None:
        self.word = word

    async def sign_request(self, request: Any, service_public_key: RSAPublicKey | None) -> None:
        request.auth.signature = self.word

    async def validate_request(self, request: Any) -> bool:
        return bool(request.auth.signature == self.word)

    async def sign_response(self, response: Any, request: Any) -> None:
        response.auth.signature = self.word

    async def validate_response(self, response: Any, request: Any) -> bool:
        return bool(response.auth.signature == self.word)


@pytest.mark.asyncio
async def test_an_authorizer_of_one_own(pair: Pair) -> None:
    _, stub = await connect(pair, Password(b"sesame"), Password(b"sesame"))
    assert (await stub.rpc_ping(ping())).auth.signature == b"sesame"
    stub = AuthRPCWrapper(Service.get_stub(pair[1], pair[0].peer_id), AuthRole.CLIENT, Password(b"barley"))
    with pytest.raises(P2PHandlerError, match="has refused the request"):
        await stub.rpc_ping(ping())


@pytest.mark.asyncio
async def test_no_authorizer_lets_all_pass(pair: Pair) -> None:
    service, stub = await connect(pair, None, None)
    assert (await stub.rpc_square(test_pb2.TestRequest(number=2))).number == 4
    assert stub.peer_id == pair[0].peer_id
    assert service.calls == 1
