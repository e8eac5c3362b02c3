"""An authority for swarms of tests, with tokens as hivemind 1.1's own tests have them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hivemind.clock import get_dht_time
from hivemind.crypto import RSAPrivateKey, RSAPublicKey
from hivemind.p2p import TokenAuthorizerBase
from hivemind.proto.auth_pb2 import AccessToken

__all__ = ["AUTHORITY", "TokenAuthorizer", "expiration_of", "issue", "signed_part"]

#: Signs the tokens of the swarm.
AUTHORITY = RSAPrivateKey()


def signed_part(token: AccessToken) -> bytes:
    """What the authority signs."""
    return f"{token.username} {token.public_key!r} {token.expiration_time}".encode()


def issue(
    username: str, key: RSAPrivateKey, lifetime: float = 60.0, authority: RSAPrivateKey = AUTHORITY
) -> AccessToken:
    """A token that lets the holder of ``key`` in for ``lifetime`` seconds."""
    expires = datetime.fromtimestamp(get_dht_time(), UTC).replace(tzinfo=None) + timedelta(seconds=lifetime)
    token = AccessToken(
        username=username, public_key=key.get_public_key().to_bytes(), expiration_time=expires.isoformat()
    )
    token.signature = authority.sign(signed_part(token))
    return token


def expiration_of(token: AccessToken) -> float:
    """The DHT time at which it expires."""
    return datetime.fromisoformat(token.expiration_time).replace(tzinfo=UTC).timestamp()


class TokenAuthorizer(TokenAuthorizerBase):
    """Lets in whom `AUTHORITY` has let in.

    :param authority: who signs the tokens that this peer shows
    """

    def __init__(
        self,
        username: str,
        *,
        lifetime: float = 60.0,
        authority: RSAPrivateKey = AUTHORITY,
        key: RSAPrivateKey | None = None,
    ) -> None:
        super().__init__(RSAPrivateKey() if key is None else key)
        self.username = username
        self.lifetime = lifetime
        self.authority = authority
        self.authority_key = AUTHORITY.get_public_key().to_bytes()
        #: raised instead of giving a token
        self.fault: Exception | None = None
        #: tokens that were asked for
        self.asked = 0

    async def get_token(self) -> AccessToken:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return issue(self.username, self._local_private_key, self.lifetime, self.authority)

    def is_token_valid(self, access_token: AccessToken) -> bool:
        key = RSAPublicKey.from_bytes(self.authority_key)
        signed = key.verify(signed_part(access_token), access_token.signature)
        return signed and expiration_of(access_token) > get_dht_time()

    def does_token_need_refreshing(self, access_token: AccessToken) -> bool:
        return expiration_of(access_token) < get_dht_time() + self.lifetime / 4
