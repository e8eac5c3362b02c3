"""Path of hivemind 1.1 for the keys that sign records, see `hivemind.dht`."""

from hivemind.dht import RSAPrivateKey, RSAPublicKey

__all__ = ["RSAPrivateKey", "RSAPublicKey"]
