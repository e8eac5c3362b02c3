"""Owned records: formats of hivemind 1.1, what is refused, and how validators combine."""

from __future__ import annotations

import base64
import pickle
import re
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from hivemind.crypto import RSAPrivateKey, RSAPublicKey
from hivemind.dht.routing import DHTID
from hivemind.dht.signing import RSASignatureValidator
from hivemind.dht.validation import CompositeValidator, DHTRecord, RecordValidatorBase
from hivemind.errors import ValidationError
from hivemind.serializer import MSGPackSerializer

#: A record that hivemind 1.1.12 has signed: ``[1, "a"]`` under the key "key", until 4e9.
GOLDEN_KEY = (
    "AAAAB3NzaC1yc2EAAAADAQABAAABAQCTWnS4+/FJ3MAhp7uoSFO1f3tjl7l+frsISZrJ24zdsrJnZ5DOIVFzTIdkpfDgMo73aYU+"
    "vQjP+t7gMSacmv0dQNPwk/DDdlSsN89BMvDKUPzdRthI5QN82g9VfWcLt0KxNeqdWsu8Puoyw9aSMsxWEgkhBbwF556sp5JKwEC+"
    "2VqQazBagdZt3+L8v7jJ8dP1VysqM251RKDe/C0TNBKt6p1SMdYgniwS3WCDt4ns+FdiOrMh7Hlxw4fpjeU9CzSzyxi7yN6Yllww"
    "563PUdHLupnKYon1BgBU6hKIAlY2x58gJkHJ3Tqai4XnCck/7810h3TeY3xSi6Spbx3KZWpN"
)
GOLDEN_SIGNATURE = (
    "gxsa02c2HCjuBPIDSV1Ryz2y4uu/Pn0gQSrraNTFJ42iIvNl9fupw/FtVOdlhmvfvRi6MHRkYsC30pDQpKc4uXbKE1Nprhi0IuQj"
    "tgJ/CwtYKwuGcY9rY+ODyNqzi/bzFe2cjU8q4eT/91x1z0EYApa5HnrdzcnVZYLj4Mf9+RO6OqvYq4qcmL+1LyX/8zM95z94S7ae"
    "G6eGMCktHtxLNPpSzGBcWeiMx9jIsrLBv5N1J2vdQjyrXskJ3dhZs159tC2dKL7yVMFTrXEE8WVvFievoEKaQI4nKi6IQQ77P5IR"
    "dmi7ssTSpvYCE9EMzWWPNaJ2do+dcesmWjW1ko+/yA=="
)


@pytest.fixture(scope="module")
def ours() -> RSASignatureValidator:
    return RSASignatureValidator(RSAPrivateKey())


@pytest.fixture(scope="module")
def theirs() -> RSASignatureValidator:
    return RSASignatureValidator(RSAPrivateKey())


def record_of(owner: RSASignatureValidator, value: bytes = b"\x01") -> DHTRecord:
    subkey = MSGPackSerializer.dumps(owner.local_public_key)
    return DHTRecord(DHTID.generate("key").to_bytes(), subkey, value, 4e9)


def signed(record: DHTRecord, by: RecordValidatorBase) -> DHTRecord:
    return replace(record, value=by.sign_value(record))


def test_layout_of_a_signed_record(ours: RSASignatureValidator) -> None:
    record = record_of(ours)
    assert re.fullmatch(rb"\[owner:ssh-rsa [A-Za-z0-9+/=]+\]", ours.local_public_key)
    assert len(ours.local_public_key) == 388
    assert record.subkey[:3].hex() == "c50184"
    value = ours.sign_value(record)
    assert len(value) == 357
    assert value.startswith(b"\x01[signature:")
    assert len(base64.b64decode(value[len(b"\x01[signature:") : -1], validate=True)) == 256


def test_layout_of_what_is_signed(ours: RSASignatureValidator) -> None:
    record = record_of(ours)
    data = ours._signed_bytes(signed(record, ours))
    assert data == ours._signed_bytes(record)
    body = (
        b"\x94\xc4\x14"
        + record.key
        + b"\xc5\x01\x87"
        + record.subkey
        + b"\xc4\x01\x01"
        + bytes.fromhex("cb41edcd6500000000")
    )
    assert data == b"\xc8" + len(body).to_bytes(2, "big") + b"\x40" + body


def test_golden_record_of_hivemind_1(ours: RSASignatureValidator) -> None:
    subkey = MSGPackSerializer.dumps(f"[owner:ssh-rsa {GOLDEN_KEY}]".encode())
    value = bytes.fromhex("9201a161") + f"[signature:{GOLDEN_SIGNATURE}]".encode()
    record = DHTRecord(DHTID.generate("key").to_bytes(), subkey, value, 4e9)
    assert ours.validate(record)
    assert ours.strip_value(record) == MSGPackSerializer.dumps([1, "a"])
    for place in (0, 3, 20, 300):
        forged = bytearray(value)
        forged[place] ^= 1
        assert not ours.validate(replace(record, value=bytes(forged)))
    assert not ours.validate(replace(record, expiration_time=4e9 + 1))


def test_owner_writes_and_others_do_not(ours: RSASignatureValidator, theirs: RSASignatureValidator) -> None:
    mine = signed(record_of(ours), ours)
    for validator in (ours, theirs):
        assert validator.validate(mine)
        assert validator.strip_value(mine) == b"\x01"
    unsigned = record_of(ours)
    assert theirs.sign_value(unsigned) == unsigned.value, "only owners sign"
    assert not theirs.validate(unsigned)
    forged = replace(unsigned, value=theirs.sign_value(record_of(theirs)))
    assert not ours.validate(forged)


@pytest.mark.parametrize(
    "change",
    [
        {"value": b"\x02"},
        {"key": bytes(20)},
        {"expiration_time": 4e9 + 1},
    ],
)
def test_signature_covers_all(ours: RSASignatureValidator, change: dict[str, object]) -> None:
    mine = signed(record_of(ours), ours)
    if "value" in change:
        change = {"value": mine.value.replace(b"\x01[", b"\x02[")}
    assert not ours.validate(replace(mine, **change))  # type: ignore[arg-type]


def test_two_owners_or_two_signatures_are_refused(ours: RSASignatureValidator, theirs: RSASignatureValidator) -> None:
    both = replace(record_of(ours), subkey=MSGPackSerializer.dumps(ours.local_public_key + theirs.local_public_key))
    assert not ours.validate(signed(both, ours))
    mine = signed(record_of(ours), ours)
    assert not ours.validate(replace(mine, value=mine.value + mine.value[1:]))


def test_what_nobody_owns_is_left_as_it_is(ours: RSASignatureValidator) -> None:
    plain = DHTRecord(bytes(20), b"\xc0", b"a [signature:of nothing]", 4e9)
    assert ours.validate(plain)
    assert ours.sign_value(plain) == ours.strip_value(plain) == plain.value


@pytest.mark.parametrize("owner", [b"garbage", b"ssh-rsa AAAA", b"ssh-rsa " + b"A" * 5000])
def test_bad_owners_are_refused(ours: RSASignatureValidator, owner: bytes) -> None:
    subkey = MSGPackSerializer.dumps(b"[owner:" + owner + b"]")
    assert not ours.validate(DHTRecord(bytes(20), subkey, b"\x01[signature:AAAA]", 4e9))


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_validation_never_raises(key: bytes, owner: bytes, signature: bytes) -> None:
    validator = RSASignatureValidator()
    record = DHTRecord(key, b"[owner:" + owner + b"]", b"v[signature:" + signature + b"]", 4e9)
    # an owner of no characters, or of several lines, is none
    assert not validator.validate(record) or not owner or b"\n" in owner
    assert isinstance(validator.strip_value(record), bytes)


def test_public_keys_of_other_kinds_are_refused() -> None:
    ssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    curve = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*ssh)
    with pytest.raises(ValidationError, match="RSA"):
        RSAPublicKey.from_bytes(curve)
    with pytest.raises(ValidationError, match="at most"):
        RSAPublicKey.from_bytes(b"ssh-rsa " + b"A" * 2000)


def test_keys_survive_pickling_and_der() -> None:
    key = RSAPrivateKey()
    copy = pickle.loads(pickle.dumps(key))
    assert copy.to_bytes() == key.to_bytes()
    public = RSAPublicKey.from_bytes(key.get_public_key().to_bytes())
    assert public.verify(b"data", copy.sign(b"data"))
    assert not public.verify(b"other", copy.sign(b"data"))
    assert not public.verify(b"data", b"not base64!")
    assert RSAPrivateKey.from_bytes(key.to_bytes()).sign(b"x")
    with pytest.raises(ValidationError):
        RSAPrivateKey.from_bytes(b"garbage")


def test_process_wide_key_is_one() -> None:
    assert RSAPrivateKey.process_wide() is RSAPrivateKey.process_wide()
    assert RSASignatureValidator().local_public_key == RSASignatureValidator().local_public_key


def test_validator_survives_pickling(ours: RSASignatureValidator) -> None:
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.local_public_key == ours.local_public_key
    assert ours.validate(signed(record_of(ours), copy))


def test_verdicts_are_remembered(ours: RSASignatureValidator, monkeypatch: pytest.MonkeyPatch) -> None:
    validator = RSASignatureValidator(RSAPrivateKey())
    mine = signed(record_of(ours), ours)
    assert validator.validate(mine)
    calls = []
    monkeypatch.setattr(RSAPublicKey, "verify", lambda *args: calls.append(args) or False)
    assert validator.validate(mine)
    assert not calls
    assert not validator.validate(replace(mine, expiration_time=4e9 + 1))
    assert len(calls) == 1


class Suffix(RecordValidatorBase):
    """Appends a letter and wants it there."""

    def __init__(self, letter: bytes, priority: int) -> None:
        self.letter = letter
        self._priority = priority

    def validate(self, record: DHTRecord) -> bool:
        return record.value.endswith(self.letter)

    def sign_value(self, record: DHTRecord) -> bytes:
        return record.value + self.letter

    def strip_value(self, record: DHTRecord) -> bytes:
        return record.value.removesuffix(self.letter)

    @property
    def priority(self) -> int:
        return self._priority


def test_composite_signs_upwards_and_strips_downwards(ours: RSASignatureValidator) -> None:
    both = CompositeValidator([Suffix(b"B", 2), Suffix(b"A", 1)])
    assert both
    assert not CompositeValidator()
    record = DHTRecord(b"", b"\xc0", b"v", 4e9)
    assert both.sign_value(record) == b"vAB"
    assert both.validate(replace(record, value=b"vAB"))
    assert not both.validate(replace(record, value=b"vBA"))
    assert both.strip_value(replace(record, value=b"vAB")) == b"v"
    both.extend([Suffix(b"C", 0)])
    assert both.sign_value(record) == b"vCAB"


def test_composite_signs_with_each_of_several_keys(ours: RSASignatureValidator, theirs: RSASignatureValidator) -> None:
    """In hivemind 1.1 a second validator's key is ignored."""
    first, second = RSASignatureValidator(RSAPrivateKey()), RSASignatureValidator(RSAPrivateKey())
    both = CompositeValidator([first, second])
    for owner in (first, second):
        assert ours.validate(signed(record_of(owner), both))
