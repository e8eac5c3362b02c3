"""Keys that sign.

RSA: records of the DHT and authorized calls (hivemind 1.1 wire format, 3.6 and 8). Ed25519 (RFC 8032): records of the
DHT, with shorter keys and signatures (docs/dht.md).
"""

from __future__ import annotations

import base64
import threading
from functools import lru_cache
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from hivemind.errors import ValidationError

__all__ = [
    "Ed25519PrivateKey",
    "Ed25519PublicKey",
    "PrivateKey",
    "PublicKey",
    "RSAPrivateKey",
    "RSAPublicKey",
    "parse_ed25519_key",
    "parse_public_key",
]

_KEY_BITS: Final = 2048
#: Text of a public key of 4096 bits; longer ones cost too much to check.
_MAX_PUBLIC_KEY_BYTES: Final = 768


class PublicKey(Protocol):
    """What both kinds of public keys can."""

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature``, in base64, is this key's of ``data``. Never raises."""

    def to_bytes(self) -> bytes:
        """Its text."""


class PrivateKey(Protocol):
    """What both kinds of private keys can."""

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data``, in base64."""

    def get_public_key(self) -> PublicKey:
        """The public half."""


def _pss(salt_length: Any) -> padding.PSS:
    return padding.PSS(padding.MGF1(hashes.SHA256()), salt_length)


class RSAPublicKey:
    """The public half: verifies signatures. Immutable."""

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        self._key = key

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature`` (base64, RSASSA-PSS with SHA-256) is this key's of ``data``. Never raises."""
        try:
            # characters outside the alphabet are skipped, as other peers do
            self._key.verify(base64.b64decode(signature), data, _pss(padding.PSS.AUTO), hashes.SHA256())
        except (InvalidSignature, ValueError):
            return False
        return True

    def to_bytes(self) -> bytes:
        """OpenSSH text: ``ssh-rsa AAAA…``."""
        return self._key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)

    @classmethod
    def from_bytes(cls, data: bytes) -> RSAPublicKey:
        """
        :raises ValidationError: unless ``data`` is the OpenSSH text of an RSA key of at most 4096 bits
        """
        if len(data) > _MAX_PUBLIC_KEY_BYTES:
            raise ValidationError(f"a public key of {len(data)} bytes, at most {_MAX_PUBLIC_KEY_BYTES} are allowed")
        try:
            key = serialization.load_ssh_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValidationError(f"not the OpenSSH text of a public key: {error}") from error
        if not isinstance(key, rsa.RSAPublicKey):
            raise ValidationError(f"a public key of another kind than RSA: {type(key).__name__}")
        return cls(key)


@lru_cache(maxsize=1024)
def parse_public_key(text: bytes) -> RSAPublicKey:
    """As `RSAPublicKey.from_bytes`; keys that are met again and again are parsed once.

    :raises ValidationError: as there
    """
    return RSAPublicKey.from_bytes(text)


class RSAPrivateKey:
    """A private key of 2048 bits. Making one takes some 0.1 s of CPU. Immutable, thread-safe, picklable."""

    _process_wide_key: RSAPrivateKey | None = None
    _process_wide_key_lock = threading.Lock()

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)

    @classmethod
    def process_wide(cls) -> RSAPrivateKey:
        """The key that this process signs with unless told otherwise; made on first use, never saved."""
        with cls._process_wide_key_lock:
            if cls._process_wide_key is None:
                cls._process_wide_key = cls()
            return cls._process_wide_key

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data`` in base64: RSASSA-PSS, SHA-256, longest salt. Takes some 1 ms."""
        return base64.b64encode(self._key.sign(data, _pss(padding.PSS.MAX_LENGTH), hashes.SHA256()))

    def get_public_key(self) -> RSAPublicKey:
        """The public half."""
        return RSAPublicKey(self._key.public_key())

    def to_bytes(self) -> bytes:
        """PKCS#1 DER, as identity files hold it."""
        return self._key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> RSAPrivateKey:
        """
        :raises ValidationError: unless ``data`` is the DER of an RSA private key
        """
        try:
            key = serialization.load_der_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValidationError("not the DER of a private key") from error
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValidationError(f"a private key of another kind than RSA: {type(key).__name__}")
        private = cls.__new__(cls)
        private._key = key
        return private

    def __getstate__(self) -> bytes:
        return self.to_bytes()

    def __setstate__(self, state: bytes) -> None:
        self._key = RSAPrivateKey.from_bytes(state)._key


class Ed25519PublicKey:
    """The public half of an Ed25519 key: verifies signatures. Immutable."""

    def __init__(self, key: ed25519.Ed25519PublicKey) -> None:
        self._key = key

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature``, in base64, is this key's of ``data``. Never raises."""
        try:
            self._key.verify(base64.b64decode(signature, validate=True), data)
        except (InvalidSignature, ValueError):
            return False
        return True

    def to_bytes(self) -> bytes:
        """The 32 bytes of the key in base64: 44 characters."""
        return base64.b64encode(self._key.public_bytes_raw())

    @classmethod
    def from_bytes(cls, data: bytes) -> Ed25519PublicKey:
        """
        :raises ValidationError: unless ``data`` is what `to_bytes` gives
        """
        try:
            return cls(ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(data, validate=True)))
        except ValueError as error:
            raise ValidationError("not the base64 of an Ed25519 public key") from error


@lru_cache(maxsize=1024)
def parse_ed25519_key(text: bytes) -> Ed25519PublicKey:
    """As `Ed25519PublicKey.from_bytes`; keys that are met again and again are parsed once.

    :raises ValidationError: as there
    """
    return Ed25519PublicKey.from_bytes(text)


class Ed25519PrivateKey:
    """An Ed25519 key. Making one, and signing, take some 0.1 ms. Immutable, thread-safe, picklable."""

    _process_wide_key: Ed25519PrivateKey | None = None
    _process_wide_key_lock = threading.Lock()

    def __init__(self) -> None:
        self._key = ed25519.Ed25519PrivateKey.generate()

    @classmethod
    def process_wide(cls) -> Ed25519PrivateKey:
        """The key that this process signs with unless told otherwise; made on first use, never saved."""
        with cls._process_wide_key_lock:
            if cls._process_wide_key is None:
                cls._process_wide_key = cls()
            return cls._process_wide_key

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data`` in base64: 88 characters."""
        return base64.b64encode(self._key.sign(data))

    def get_public_key(self) -> Ed25519PublicKey:
        """The public half."""
        return Ed25519PublicKey(self._key.public_key())

    def to_bytes(self) -> bytes:
        """The 32 bytes of the private key."""
        return self._key.private_bytes_raw()

    @classmethod
    def from_bytes(cls, data: bytes) -> Ed25519PrivateKey:
        """
        :raises ValidationError: unless ``data`` has 32 bytes
        """
        private = cls.__new__(cls)
        try:
            private._key = ed25519.Ed25519PrivateKey.from_private_bytes(data)
        except ValueError as error:
            raise ValidationError(f"an Ed25519 private key of {len(data)} bytes, it has 32") from error
        return private

    def __getstate__(self) -> bytes:
        return self.to_bytes()

    def __setstate__(self, state: bytes) -> None:
        self._key = Ed25519PrivateKey.from_bytes(state)._key
