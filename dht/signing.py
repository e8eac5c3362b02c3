"""Records that only the owner of a key can write (hivemind 1.1 wire format, section 3.6).

A key or subkey that contains ``[owner:ssh-rsa …]`` belongs to that RSA key; values stored under it end in
``[signature:…]``. As keys are hashed, in practice subkeys are owned.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.errors import ValidationError
from hivemind.serializer import MSGPackSerializer

__all__ = ["RSAPrivateKey", "RSAPublicKey", "RSASignatureValidator"]

_KEY_BITS: Final = 2048
#: Text of a public key of 4096 bits; longer ones cost too much to check.
_MAX_PUBLIC_KEY_BYTES: Final = 768
_OWNER: Final = re.compile(rb"\[owner:(.+?)\]")
_SIGNATURE: Final = re.compile(rb"\[signature:(.+?)\]")


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


class RSASignatureValidator(RecordValidatorBase):
    """Refuses records of an owned key or subkey that its owner has not signed; signs own ones.

    :param private_key: signs the records that are its own; by default the process-wide one
    """

    def __init__(self, private_key: RSAPrivateKey | None = None) -> None:
        key = private_key if private_key is not None else RSAPrivateKey.process_wide()
        self._local_public_key = _marker(key)
        self._private_keys = {self._local_public_key: key}
        self._verdicts = _Verdicts()

    @property
    def local_public_key(self) -> bytes:
        """The marker to put in a subkey that only this process may write: ``[owner:ssh-rsa …]``."""
        return self._local_public_key

    @property
    def priority(self) -> int:
        return 10

    def validate(self, record: DHTRecord) -> bool:
        owners = _owners(record)
        if not owners:
            return True
        signatures = _SIGNATURE.findall(record.value)
        if len(owners) != 1 or len(signatures) != 1:
            return False
        return self._verdicts.verify(owners.pop(), _signed_bytes(record), signatures[0])

    def sign_value(self, record: DHTRecord) -> bytes:
        for owner in _owners(record):
            key = self._private_keys.get(b"[owner:" + owner + b"]")
            if key is not None:
                return record.value + b"[signature:" + key.sign(_signed_bytes(record)) + b"]"
        return record.value

    def strip_value(self, record: DHTRecord) -> bytes:
        return _SIGNATURE.sub(b"", record.value) if _owners(record) else record.value

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """Another validator of this kind adds its private keys."""
        if not isinstance(other, RSASignatureValidator):
            return False
        self._private_keys = {**other._private_keys, **self._private_keys}
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {"keys": self._private_keys, "local": self._local_public_key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._private_keys, self._local_public_key = state["keys"], state["local"]
        self._verdicts = _Verdicts()


class _Verdicts:
    """Remembers what was verified: each record is met at several replicas and again with each fetch. Thread-safe."""

    _MOST = 4096

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, bool] = OrderedDict()

    def verify(self, owner: bytes, data: bytes, signature: bytes) -> bool:
        """Whether the key with the text ``owner`` has signed ``data``."""
        parts = (owner, signature, data)
        digest = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
        try:
            verdict = _public_key(owner).verify(data, signature)
        except ValidationError:
            verdict = False
        with self._lock:
            self._known[digest] = verdict
            if len(self._known) > self._MOST:
                self._known.popitem(last=False)
        return verdict


@lru_cache(maxsize=1024)
def _public_key(text: bytes) -> RSAPublicKey:
    return RSAPublicKey.from_bytes(text)


def _marker(key: RSAPrivateKey) -> bytes:
    return b"[owner:" + key.get_public_key().to_bytes() + b"]"


def _owners(record: DHTRecord) -> set[bytes]:
    return {*_OWNER.findall(record.key), *_OWNER.findall(record.subkey)}


def _signed_bytes(record: DHTRecord) -> bytes:
    """What is signed: key, subkey, value without signature, expiration."""
    value = _SIGNATURE.sub(b"", record.value)
    return MSGPackSerializer.dumps((record.key, record.subkey, value, record.expiration_time))
