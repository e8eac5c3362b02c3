"""Path of hivemind 1.1 for authorizers, see `hivemind.p2p`."""

from hivemind.crypto import RSAPrivateKey, RSAPublicKey
from hivemind.p2p import AllowlistAuthorizer, AuthorizerBase, AuthRole, AuthRPCWrapper, TokenAuthorizerBase
from hivemind.proto.auth_pb2 import AccessToken, RequestAuthInfo, ResponseAuthInfo

__all__ = [
    "AccessToken",
    "AllowlistAuthorizer",
    "AuthRPCWrapper",
    "AuthRole",
    "AuthorizerBase",
    "RSAPrivateKey",
    "RSAPublicKey",
    "RequestAuthInfo",
    "ResponseAuthInfo",
    "TokenAuthorizerBase",
]
