"""Records that only the owner of a key can write.

A key or subkey that contains an owner's marker belongs to the owner's key, and values stored under it end in its
signature. As keys are hashed, in practice subkeys are owned. Two kinds of keys serve:

* RSA (hivemind 1.1 wire format, section 3.6): ``[owner:ssh-rsa …]`` and ``[signature:…]``;
* Ed25519: ``[ed25519:…]`` and ``[ed25519-signature:…]``, which peers of hivemind 1.1 store and pass on as any bytes.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar, Final

from hivemind.crypto import (
    Ed25519PrivateKey,
    PrivateKey,
    PublicKey,
    RSAPrivateKey,
    parse_ed25519_key,
    parse_public_key,
)
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.errors import ValidationError
from hivemind.serializer import MSGPackSerializer

__all__ = ["OWNED_SUBKEY", "Ed25519SignatureValidator", "RSASignatureValidator", "SignatureValidator"]

#: Bytes that contain an owner's marker of either kind.
OWNED_SUBKEY: Final = rb".*\[(?:owner|ed25519):.+?\]"


class SignatureValidator(RecordValidatorBase):
    """Refuses records of an owned key or subkey that its owner has not signed; signs own ones.

    :param private_key: signs the records that are its own
    """

    #: how the marker of an owner and the signature begin; both end with a bracket
    owner_tag: ClassVar[bytes]
    signature_tag: ClassVar[bytes]
    #: the public key of a marker's text; raises `ValidationError`
    parse_owner: ClassVar[Callable[[bytes], PublicKey]]
    _owner: ClassVar[re.Pattern[bytes]]
    _signature: ClassVar[re.Pattern[bytes]]

    def __init_subclass__(cls) -> None:
        cls._owner = re.compile(re.escape(cls.owner_tag) + rb"(.+?)\]")
        cls._signature = re.compile(re.escape(cls.signature_tag) + rb"(.+?)\]")

    def __init__(self, private_key: PrivateKey) -> None:
        self._local_public_key = self.owner_tag + private_key.get_public_key().to_bytes() + b"]"
        self._private_keys = {self._local_public_key: private_key}
        self._verdicts = _Verdicts()

    @property
    def local_public_key(self) -> bytes:
        """The marker to put in a subkey that only this process may write."""
        return self._local_public_key

    @property
    def priority(self) -> int:
        return 10

    def validate(self, record: DHTRecord) -> bool:
        owners = self._owners(record)
        if not owners:
            return True
        signatures = self._signature.findall(record.value)
        if len(owners) != 1 or len(signatures) != 1:
            return False
        return self._verdicts.verify(type(self).parse_owner, owners.pop(), self._signed_bytes(record), signatures[0])

    def sign_value(self, record: DHTRecord) -> bytes:
        for owner in self._owners(record):
            key = self._private_keys.get(self.owner_tag + owner + b"]")
            if key is not None:
                return record.value + self.signature_tag + key.sign(self._signed_bytes(record)) + b"]"
        return record.value

    def strip_value(self, record: DHTRecord) -> bytes:
        return self._signature.sub(b"", record.value) if self._owners(record) else record.value

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """Another validator of this kind adds its private keys."""
        if not isinstance(other, SignatureValidator) or other.owner_tag != self.owner_tag:
            return False
        self._private_keys = {**other._private_keys, **self._private_keys}
        return True

    def _owners(self, record: DHTRecord) -> set[bytes]:
        return {*self._owner.findall(record.key), *self._owner.findall(record.subkey)}

    def _signed_bytes(self, record: DHTRecord) -> bytes:
        """What is signed: key, subkey, value without signature, expiration."""
        value = self._signature.sub(b"", record.value)
        return MSGPackSerializer.dumps((record.key, record.subkey, value, record.expiration_time))

    def __getstate__(self) -> dict[str, Any]:
        return {"keys": self._private_keys, "local": self._local_public_key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._private_keys, self._local_public_key = state["keys"], state["local"]
        self._verdicts = _Verdicts()


class RSASignatureValidator(SignatureValidator):
    """Records signed by RSA keys, as hivemind 1.1 has them: a marker of 388 bytes, a signature of 356.

    :param private_key: signs the records that are its own; by default the process-wide one
    """

    owner_tag = b"[owner:"
    signature_tag = b"[signature:"
    parse_owner = staticmethod(parse_public_key)

    def __init__(self, private_key: RSAPrivateKey | None = None) -> None:
        super().__init__(private_key if private_key is not None else RSAPrivateKey.process_wide())


class Ed25519SignatureValidator(SignatureValidator):
    """Records signed by Ed25519 keys: a marker of 54 bytes, a signature of 108. Not known to hivemind 1.1.

    :param private_key: signs the records that are its own; by default the process-wide one
    """

    owner_tag = b"[ed25519:"
    signature_tag = b"[ed25519-signature:"
    parse_owner = staticmethod(parse_ed25519_key)

    def __init__(self, private_key: Ed25519PrivateKey | None = None) -> None:
        super().__init__(private_key if private_key is not None else Ed25519PrivateKey.process_wide())


class _Verdicts:
    """Remembers what was verified: each record is met at several replicas and again with each fetch. Thread-safe."""

    _MOST = 4096

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, bool] = OrderedDict()

    def verify(self, parse: Callable[[bytes], PublicKey], owner: bytes, data: bytes, signature: bytes) -> bool:
        """Whether the key with the text ``owner`` has signed ``data``."""
        parts = (owner, signature, data)
        digest = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
        try:
            verdict = parse(owner).verify(data, signature)
        except ValidationError:
            verdict = False
        with self._lock:
            self._known[digest] = verdict
            if len(self._known) > self._MOST:
                self._known.popitem(last=False)
        return verdict
