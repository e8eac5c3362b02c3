"""Who may call and be called: authorizers, and the wrapper that puts one before a service or its stub.

An authorizer decides in two ways. By the peer: libp2p proves the id of whoever is at the other side
(`AllowlistAuthorizer`). Or by what the messages carry: requests and answers with a field ``auth`` are signed and bear
an access token (`hivemind.p2p.tokens.TokenAuthorizerBase`; hivemind 1.1 wire format, section 8).
"""

from __future__ import annotations

import enum
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from google.protobuf.message import Message

from hivemind.aio import with_deadline
from hivemind.clock import Deadline
from hivemind.crypto import RSAPublicKey
from hivemind.errors import AuthorizationError
from hivemind.identity import PeerID
from hivemind.log import RateLimit, get_logger
from hivemind.p2p.config import as_peer_ids
from hivemind.p2p.rpc import P2PContext

__all__ = ["AllowlistAuthorizer", "AuthRPCWrapper", "AuthRole", "AuthorizerBase"]

logger = get_logger(__name__)

_refusals = RateLimit()


class AuthorizerBase(ABC):
    """Decides which calls pass. Owned by the event loop on which the calls are made and answered.

    The four abstract methods are those of hivemind 1.1 and concern the messages of unary calls. The three
    ``problem_with_…`` say the reason as well, which the caller is told; override those to have your own reasons told.
    """

    #: False: messages are neither signed nor looked at, so that calls with streams can pass, too
    checks_messages: bool = True

    @abstractmethod
    async def sign_request(self, request: Any, service_public_key: RSAPublicKey | None) -> None:
        """Write into ``request.auth`` what its receiver will check.

        :param service_public_key: the key of the only receiver that may accept it; None: any
        :raises AuthorizationError: if this peer has nothing to show
        """

    @abstractmethod
    async def validate_request(self, request: Any) -> bool:
        """Whether a received request may be answered."""

    @abstractmethod
    async def sign_response(self, response: Any, request: Any) -> None:
        """Write into ``response.auth`` what the caller will check."""

    @abstractmethod
    async def validate_response(self, response: Any, request: Any) -> bool:
        """Whether the answer to ``request`` can be trusted."""

    def problem_with_peer(self, peer: PeerID) -> str:
        """Why ``peer`` may neither call nor be called; empty if it may. Its id is proven."""
        return ""

    async def problem_with_request(self, request: Any) -> str:
        """Why a received request is refused; empty if it may be answered."""
        return "" if await self.validate_request(request) else "the authorizer has refused the request"

    async def problem_with_response(self, response: Any, request: Any) -> str:
        """Why an answer is not trusted; empty if it is."""
        return "" if await self.validate_response(response, request) else "the authorizer has refused the answer"


class AllowlistAuthorizer(AuthorizerBase):
    """A closed swarm: only peers whose ids are listed may call and be called. Nothing is added to the messages.

    Ids stay the same over restarts where peers have an ``identity_path``; ``hivemind identity`` prints them.

    :param peer_ids: the members, as `PeerID` or base58 text; the own id need not be there
    :raises ConfigError: if one is no peer id
    """

    checks_messages = False

    def __init__(self, peer_ids: Iterable[PeerID | str]) -> None:
        self._allowed = frozenset(as_peer_ids("peer_ids", peer_ids))

    @property
    def peer_ids(self) -> frozenset[PeerID]:
        """The members."""
        return self._allowed

    def allow(self, *peer_ids: PeerID | str) -> None:
        """Add members, for calls from now on. Any thread, one at a time."""
        self._allowed = self._allowed.union(as_peer_ids("peer_ids", peer_ids))

    def forbid(self, *peer_ids: PeerID | str) -> None:
        """Remove members, for calls from now on. Any thread, one at a time."""
        self._allowed = self._allowed.difference(as_peer_ids("peer_ids", peer_ids))

    def problem_with_peer(self, peer: PeerID) -> str:
        return "" if peer in self._allowed else f"{peer} is not on the allowlist of this swarm"

    async def sign_request(self, request: Any, service_public_key: RSAPublicKey | None) -> None:
        """Nothing: the connection has proven who calls."""

    async def validate_request(self, request: Any) -> bool:
        return True

    async def sign_response(self, response: Any, request: Any) -> None:
        """Nothing, as `sign_request`."""

    async def validate_response(self, response: Any, request: Any) -> bool:
        return True


class AuthRole(enum.Enum):
    """The side of a call on which an `AuthRPCWrapper` stands."""

    CLIENT = 0
    SERVICER = 1


class AuthRPCWrapper:
    """Stands before a stub or a servicer; its methods ``rpc_*`` pass through an authorizer, all else is the stub's.

    ::

        await service.add_p2p_handlers(p2p, AuthRPCWrapper(service, AuthRole.SERVICER, authorizer))
        stub = AuthRPCWrapper(Service.get_stub(p2p, peer), AuthRole.CLIENT, authorizer)

    A refused call raises `AuthorizationError` where it is refused; refused by the other side, it ends in
    `P2PHandlerError` with the reason.

    :param stub: what is wrapped
    :param role: CLIENT for a stub, SERVICER for a service
    :param authorizer: None lets all pass
    :param service_public_key: CLIENT: the key of the only service that may accept the requests; None: any
    :param on_admitted: called with each peer whose request or answer has passed
    """

    def __init__(
        self,
        stub: Any,
        role: AuthRole,
        authorizer: AuthorizerBase | None,
        service_public_key: RSAPublicKey | None = None,
        on_admitted: Callable[[PeerID], None] | None = None,
    ) -> None:
        self._stub = stub
        self._role = role
        self._authorizer = authorizer
        self._service_public_key = service_public_key
        self._on_admitted = on_admitted

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        if self._authorizer is None or not name.startswith("rpc_"):
            return method
        if self._role is AuthRole.SERVICER:
            wrapped = _answering(method, self._authorizer, self._on_admitted)
        else:
            peer = getattr(self._stub, "peer_id", None)
            wrapped = _calling(method, self._authorizer, self._service_public_key, peer, self._on_admitted)
        setattr(self, name, wrapped)
        return wrapped


def _calling(
    method: Callable[..., Awaitable[Any]],
    authorizer: AuthorizerBase,
    service_public_key: RSAPublicKey | None,
    peer: PeerID | None,
    on_admitted: Callable[[PeerID], None] | None,
) -> Callable[..., Awaitable[Any]]:
    """A method of a stub: the request is signed before it goes out, the answer is checked when it has come."""

    async def call(request: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        name = getattr(method, "__name__", "call")
        if peer is not None and (problem := authorizer.problem_with_peer(peer)):
            raise AuthorizationError(f"{name}: {problem}")
        if not authorizer.checks_messages:
            return await method(request, **_given(timeout), **kwargs)
        _check_unary(name, request, "request")
        deadline = Deadline.after(timeout)
        await with_deadline(authorizer.sign_request(request, service_public_key), deadline, f"authorization of {name}")
        response = await method(request, **_given(deadline.timeout()), **kwargs)
        _check_unary(name, response, "answer")
        if problem := await authorizer.problem_with_response(response, request):
            raise AuthorizationError(f"{name}: the answer of {peer or 'the peer'} cannot be trusted: {problem}")
        if on_admitted is not None and peer is not None:
            on_admitted(peer)
        return response

    return call


def _given(timeout: float | None) -> dict[str, float]:
    return {} if timeout is None else {"timeout": timeout}


def _answering(
    method: Callable[..., Any], authorizer: AuthorizerBase, on_admitted: Callable[[PeerID], None] | None
) -> Callable[..., Awaitable[Any]]:
    """A method of a service: it runs only if its caller and the request pass, and its answer is signed."""

    async def answer(request: Any, context: P2PContext | None = None, **kwargs: Any) -> Any:
        name = getattr(method, "__name__", "call")
        problem = "" if context is None else authorizer.problem_with_peer(context.remote_id)
        if not problem and authorizer.checks_messages:
            _check_unary(name, request, "request")
            problem = await authorizer.problem_with_request(request)
        if problem:
            if _refusals.allow():
                caller = "a caller" if context is None else context.remote_id
                logger.info("%s of %s was refused: %s", name, caller, problem)
            raise AuthorizationError(f"{name}: {problem}")
        if on_admitted is not None and context is not None:
            on_admitted(context.remote_id)
        response = method(request, *(() if context is None else (context,)), **kwargs)
        if inspect.isawaitable(response):
            response = await response
        if authorizer.checks_messages:
            _check_unary(name, response, "answer")
            await authorizer.sign_response(response, request)
        return response

    return answer


def _check_unary(name: str, message: Any, what: str) -> None:
    """
    :raises AuthorizationError: unless ``message`` can be signed as a whole
    """
    if not isinstance(message, Message):
        raise AuthorizationError(f"{name}: its {what} is a stream, and only single messages can be signed")
    if "auth" not in message.DESCRIPTOR.fields_by_name:
        raise AuthorizationError(f"{name}: a {type(message).__name__} has no field for the authorization")
