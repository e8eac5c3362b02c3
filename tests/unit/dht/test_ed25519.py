"""Records owned by Ed25519 keys: keys and layout, what is refused, and both kinds of owners in one swarm."""

from __future__ import annotations

import base64
import pickle
from dataclasses import replace

import pytest

from hivemind.crypto import Ed25519PrivateKey, Ed25519PublicKey, RSAPrivateKey
from hivemind.dht import DHTID, CompositeValidator, DHTRecord, Ed25519SignatureValidator, RSASignatureValidator
from hivemind.dht.validation import RecordValidatorBase
from hivemind.errors import ValidationError
from hivemind.serializer import MSGPackSerializer

# RFC 8032, section 7.1, test 2
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = base64.b64encode(bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"))
MESSAGE = bytes.fromhex("72")
SIGNATURE = base64.b64encode(
    bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
)


def record_of(owner: Ed25519SignatureValidator | RSASignatureValidator, value: bytes = b"\x01") -> DHTRecord:
    return DHTRecord(DHTID.generate("key").to_bytes(), MSGPackSerializer.dumps(owner.local_public_key), value, 4e9)


def signed(record: DHTRecord, by: RecordValidatorBase) -> DHTRecord:
    return replace(record, value=by.sign_value(record))


def test_keys_of_the_rfc() -> None:
    key = Ed25519PrivateKey.from_bytes(SECRET)
    assert key.to_bytes() == SECRET
    assert key.get_public_key().to_bytes() == PUBLIC
    assert key.sign(MESSAGE) == SIGNATURE
    public = Ed25519PublicKey.from_bytes(PUBLIC)
    assert public.verify(MESSAGE, SIGNATURE)
    assert not public.verify(b"\x73", SIGNATURE)
    assert not public.verify(MESSAGE, SIGNATURE[:-4])
    assert not public.verify(MESSAGE, b"no base64")


def test_what_is_no_key() -> None:
    for text in (b"", PUBLIC[:-4], b"ssh-rsa AAAA", PUBLIC + PUBLIC):
        with pytest.raises(ValidationError, match="Ed25519 public key"):
            Ed25519PublicKey.from_bytes(text)
    with pytest.raises(ValidationError, match="3 bytes"):
        Ed25519PrivateKey.from_bytes(b"key")


def test_keys_are_pickled_and_kept_for_the_process() -> None:
    key = Ed25519PrivateKey.from_bytes(SECRET)
    assert pickle.loads(pickle.dumps(key)).to_bytes() == SECRET
    assert Ed25519PrivateKey.process_wide() is Ed25519PrivateKey.process_wide()
    copy = pickle.loads(pickle.dumps(Ed25519SignatureValidator(key)))
    record = signed(record_of(copy), copy)
    assert Ed25519SignatureValidator().validate(record)


def test_layout() -> None:
    owner = Ed25519SignatureValidator(Ed25519PrivateKey.from_bytes(SECRET))
    assert owner.local_public_key == b"[ed25519:" + PUBLIC + b"]"
    record = signed(record_of(owner), owner)
    assert record.value.startswith(b"\x01[ed25519-signature:")
    assert len(record.value) == 1 + 108
    assert owner.strip_value(record) == b"\x01"


def test_what_the_owner_has_not_signed_is_refused() -> None:
    owner, other = Ed25519SignatureValidator(Ed25519PrivateKey()), Ed25519SignatureValidator(Ed25519PrivateKey())
    record = signed(record_of(owner), owner)
    assert other.validate(record)
    for changed in (
        replace(record, value=b"\x02" + record.value[1:]),
        replace(record, expiration_time=record.expiration_time + 1),
        replace(record, key=DHTID.generate("other").to_bytes()),
        replace(record, value=b"\x01"),
        replace(record, value=record.value + record.value[1:]),
        signed(record_of(owner), other),
    ):
        assert not other.validate(changed)
    twice = replace(record, subkey=record.subkey + MSGPackSerializer.dumps(other.local_public_key))
    assert not other.validate(signed(twice, owner)), "two owners"
    free = replace(record, subkey=MSGPackSerializer.dumps("free"), value=b"\x01")
    assert other.validate(free)
    assert other.sign_value(free) == b"\x01"


def test_both_kinds_of_owners_live_together() -> None:
    rsa, ed = RSASignatureValidator(RSAPrivateKey()), Ed25519SignatureValidator(Ed25519PrivateKey())
    both = CompositeValidator([rsa, ed])
    for owner in (rsa, ed):
        record = signed(record_of(owner), both)
        assert both.validate(record)
        assert both.strip_value(record) == b"\x01"
    owned_twice = replace(record_of(rsa), subkey=MSGPackSerializer.dumps(rsa.local_public_key + ed.local_public_key))
    record = signed(owned_twice, both)
    assert both.validate(record)
    assert both.strip_value(record) == b"\x01"
    assert not both.validate(signed(owned_twice, rsa))


def test_a_validator_of_rsa_leaves_ed25519_alone() -> None:
    rsa, ed = RSASignatureValidator(RSAPrivateKey()), Ed25519SignatureValidator(Ed25519PrivateKey())
    record = signed(record_of(ed), ed)
    assert rsa.validate(record)
    assert rsa.strip_value(record) == record.value
    assert not rsa.merge_with(ed)
    assert not ed.merge_with(rsa)
    one = Ed25519SignatureValidator(Ed25519PrivateKey())
    assert one.merge_with(ed)
    assert one.validate(signed(record_of(ed), one)), "signed with the key that was merged in"
