"""Signed records, by the path of hivemind 1.1."""

from hivemind.dht.signing import RSASignatureValidator

__all__ = ["RSASignatureValidator"]
