"""Path of hivemind 1.1 for `hivemind.crypto`."""

from hivemind.crypto import RSAPrivateKey, RSAPublicKey

__all__ = ["RSAPrivateKey", "RSAPublicKey"]
