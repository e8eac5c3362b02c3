"""Swarms with an authority: each call bears an access token and is signed (hivemind 1.1 wire format, section 8)."""

from __future__ import annotations

import asyncio
import secrets
from abc import abstractmethod
from typing import Any, Final

from hivemind.aio import with_deadline
from hivemind.clock import Deadline, get_dht_time, monotonic
from hivemind.crypto import RSAPrivateKey, RSAPublicKey, parse_public_key
from hivemind.errors import TokenUnavailable, ValidationError
from hivemind.log import RateLimit, get_logger
from hivemind.p2p.auth import AuthorizerBase
from hivemind.p2p.replay import ReplayGuard
from hivemind.proto.auth_pb2 import AccessToken
from hivemind.runtime import in_pool

__all__ = ["MAX_CLOCK_DIFFERENCE", "TokenAuthorizerBase"]

logger = get_logger(__name__)

#: Seconds by which the clocks of caller and callee may differ.
MAX_CLOCK_DIFFERENCE: Final = 60.0
#: Seconds in which the authority must give a token.
_TOKEN_SECONDS: Final = 60.0
#: Seconds for which an authority that did not give one is left alone.
_RETRY_SECONDS: Final = 5.0
_NONCE_BYTES: Final = 8
#: Messages from this many bytes on are hashed in the pool.
_CHECK_IN_POOL: Final = 64 * 1024


class TokenAuthorizerBase(AuthorizerBase):
    """Calls pass if they are signed by the key of a valid access token. Says how; subclasses say what a token is.

    A token is issued by an authority of the swarm's own: it states that the holder of ``public_key`` may take part,
    until ``expiration_time`` (text in a format of the authority's choice), and carries the authority's ``signature``.
    Requests hold the token, a time stamp and a nonce and are signed as a whole; so are answers.

    Tokens name no peer id: a member that is called can pass the request on to another within a minute, in the name of
    its caller. Where members must not be able to do so, use `AllowlistAuthorizer`.

    :param local_private_key: this peer's key; by default that of the process
    """

    def __init__(self, local_private_key: RSAPrivateKey | None = None) -> None:
        self._local_private_key = local_private_key if local_private_key is not None else RSAPrivateKey.process_wide()
        self._local_access_token: AccessToken | None = None
        self._set_up()

    def _set_up(self) -> None:
        # made anew in another process
        self._refreshing = asyncio.Lock()
        # a stamp may be that far ahead, and passes until it is that far behind
        self._guard = ReplayGuard(2 * MAX_CLOCK_DIFFERENCE)
        self._failure: tuple[float, BaseException] | None = None
        self._complaints = RateLimit()

    # -- what subclasses say -----------------------------------------------------------------------------------------

    @abstractmethod
    async def get_token(self) -> AccessToken:
        """A token for `local_public_key`, from the authority. Must not block the loop; has 60 s. What it raises is
        told to whoever wants to make a call."""

    @abstractmethod
    def is_token_valid(self, access_token: AccessToken) -> bool:
        """Whether the authority has signed the token, also its ``public_key``, and it has not expired. Called with
        bytes of strangers, and for each request: it must not block."""

    @abstractmethod
    def does_token_need_refreshing(self, access_token: AccessToken) -> bool:
        """Whether this peer should get a new token, a while before its own expires."""

    @property
    def local_public_key(self) -> RSAPublicKey:
        """The key that this peer's token is for."""
        return self._local_private_key.get_public_key()

    # -- own token ---------------------------------------------------------------------------------------------------

    async def refresh_token_if_needed(self) -> None:
        """Get a token if there is none, or if the one that is there needs refreshing.

        :raises TokenUnavailable: if there is none that is valid
        """
        await self._own_token()

    async def _own_token(self) -> AccessToken:
        token = self._local_access_token
        if token is not None and not self.does_token_need_refreshing(token):
            return token
        async with self._refreshing:
            token = self._local_access_token
            if token is not None and not self.does_token_need_refreshing(token):
                return token
            return await self._new_token(token)

    async def _new_token(self, old: AccessToken | None) -> AccessToken:
        """A new token, or the old one as long as it is valid and there is no new one."""
        if self._failure is None or monotonic() >= self._failure[0]:
            try:
                token = await with_deadline(self.get_token(), Deadline.after(_TOKEN_SECONDS), "the access token")
                if problem := self._problem_with_token(token):
                    raise TokenUnavailable(problem)
            except Exception as error:
                self._failure = (monotonic() + _RETRY_SECONDS, error)
                logger.debug("there is no new access token", exc_info=True)
            else:
                self._local_access_token, self._failure = token, None
                return token
        cause = self._failure[1]
        reason = f"{type(cause).__name__}: {cause}"
        if old is None or self._problem_with_token(old):
            raise TokenUnavailable(f"no access token for this peer: {reason}") from cause
        if self._complaints.allow():
            logger.warning("there is no new access token, and that of this peer will expire: %s", reason)
        return old

    def _problem_with_token(self, token: AccessToken) -> str:
        if not token.public_key:
            return "there is no access token: this swarm is only for peers that its authority has let in"
        try:
            valid = self.is_token_valid(token)
        except Exception:
            logger.debug("is_token_valid raised", exc_info=True)
            valid = False
        return "" if valid else "the access token is not valid: it has expired, or was not signed by the authority"

    # -- messages ----------------------------------------------------------------------------------------------------

    async def sign_request(self, request: Any, service_public_key: RSAPublicKey | None) -> None:
        auth = request.auth
        auth.client_access_token.CopyFrom(await self._own_token())
        auth.service_public_key = b"" if service_public_key is None else service_public_key.to_bytes()
        auth.time = get_dht_time()
        auth.nonce = secrets.token_bytes(_NONCE_BYTES)
        auth.signature = b""
        auth.signature = await in_pool(self._local_private_key.sign, request.SerializeToString())

    async def validate_request(self, request: Any) -> bool:
        return not await self.problem_with_request(request)

    async def problem_with_request(self, request: Any) -> str:
        auth = request.auth
        token = auth.client_access_token
        if problem := self._problem_with_token(token) or await _problem_with_signature(request, token.public_key):
            return problem
        if auth.service_public_key and auth.service_public_key != self.local_public_key.to_bytes():
            return "it is for the service of another key"
        difference = auth.time - get_dht_time()
        # written so that NaN is refused
        if not abs(difference) <= MAX_CLOCK_DIFFERENCE:
            return f"its time is off by {difference:+.1f} s, at most {MAX_CLOCK_DIFFERENCE:g} s are allowed"
        return self._guard.problem_with(token.public_key, auth.nonce, monotonic())

    async def sign_response(self, response: Any, request: Any) -> None:
        auth = response.auth
        auth.service_access_token.CopyFrom(await self._own_token())
        auth.nonce = request.auth.nonce
        auth.signature = b""
        auth.signature = await in_pool(self._local_private_key.sign, response.SerializeToString())

    async def validate_response(self, response: Any, request: Any) -> bool:
        return not await self.problem_with_response(response, request)

    async def problem_with_response(self, response: Any, request: Any) -> str:
        auth = response.auth
        token = auth.service_access_token
        if problem := self._problem_with_token(token) or await _problem_with_signature(response, token.public_key):
            return problem
        return "" if auth.nonce == request.auth.nonce else "it is the answer to another request"

    def __getstate__(self) -> dict[str, Any]:
        made_anew = ("_refreshing", "_guard", "_failure", "_complaints")
        state = {name: value for name, value in vars(self).items() if name not in made_anew}
        token = self._local_access_token
        # protobuf's messages cannot be pickled where their modules are inside a package
        state["_local_access_token"] = None if token is None else token.SerializeToString()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        token = state["_local_access_token"]
        self._local_access_token = None if token is None else AccessToken.FromString(token)
        self._set_up()


async def _problem_with_signature(message: Any, public_key: bytes) -> str:
    """Whether ``message.auth.signature`` is that of the rest of the message."""
    try:
        key = parse_public_key(public_key)
    except ValidationError as error:
        return f"the access token holds {error}"
    signature = message.auth.signature
    message.auth.signature = b""
    data = message.SerializeToString()
    message.auth.signature = signature
    if len(data) < _CHECK_IN_POOL:
        verified = key.verify(data, signature)
    else:
        verified = await in_pool(key.verify, data, signature)
    return "" if verified else "it was not signed by the key of its access token"
