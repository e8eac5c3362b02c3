"""Records that only the owner of a key can write (hivemind 1.1 wire format, section 3.6).

A key or subkey that contains ``[owner:ssh-rsa …]`` belongs to that RSA key; values stored under it end in
``[signature:…]``. As keys are hashed, in practice subkeys are owned.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from typing import Any, Final

from hivemind.crypto import RSAPrivateKey, parse_public_key
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.errors import ValidationError
from hivemind.serializer import MSGPackSerializer

__all__ = ["RSASignatureValidator"]

_OWNER: Final = re.compile(rb"\[owner:(.+?)\]")
_SIGNATURE: Final = re.compile(rb"\[signature:(.+?)\]")


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
            verdict = parse_public_key(owner).verify(data, signature)
        except ValidationError:
            verdict = False
        with self._lock:
            self._known[digest] = verdict
            if len(self._known) > self._MOST:
                self._known.popitem(last=False)
        return verdict


def _marker(key: RSAPrivateKey) -> bytes:
    return b"[owner:" + key.get_public_key().to_bytes() + b"]"


def _owners(record: DHTRecord) -> set[bytes]:
    return {*_OWNER.findall(record.key), *_OWNER.findall(record.subkey)}


def _signed_bytes(record: DHTRecord) -> bytes:
    """What is signed: key, subkey, value without signature, expiration."""
    value = _SIGNATURE.sub(b"", record.value)
    return MSGPackSerializer.dumps((record.key, record.subkey, value, record.expiration_time))
