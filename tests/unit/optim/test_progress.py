"""Progress reports: their bytes, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.dht import DHTID, CompositeValidator, DHTRecord, RSAPrivateKey, RSASignatureValidator
from hivemind.errors import SerializationError
from hivemind.optim.epoch import LocalTrainingProgress
from hivemind.optim.progress import (
    ProgressValidator,
    Report,
    parse_record,
    progress_key,
    read_reports,
    record_value,
)
from hivemind.serializer import MSGPackSerializer

NOW = 1_700_000_000.0
PROGRESS = LocalTrainingProgress(b"pid", 1, 2, 3.0, NOW, False)
KEY = DHTID.generate(source="run_progress").to_bytes()
OWNED = b"[owner:ssh-rsa AAAA]"


@dataclass
class Entry:
    value: Any
    expiration_time: float = NOW + 60


def test_golden_bytes():
    assert MSGPackSerializer.dumps(record_value(PROGRESS)).hex() == (
        "86a7706565725f6964c403706964a565706f636801b373616d706c65735f616363756d756c6174656402"
        "b273616d706c65735f7065725f7365636f6e64cb4008000000000000a474696d65cb"
        + struct.pack(">d", NOW).hex()
        + "ab636c69656e745f6d6f6465c2"
    )


def test_golden_key():
    assert progress_key("run") == "run_progress"
    assert KEY.hex() == "238ce237adb7607e7230e2f38e3399674e67f1b7"


def test_record_comes_back():
    assert parse_record(MSGPackSerializer.loads(MSGPackSerializer.dumps(record_value(PROGRESS)))) == PROGRESS
    assert parse_record(None) is None


WRONG = [
    {"peer_id": "text"},
    {"peer_id": b""},
    {"peer_id": b"x" * 65},
    {"epoch": -1},
    {"epoch": 1.0},
    {"epoch": True},
    {"epoch": 2**63},
    {"samples_accumulated": -1},
    {"samples_accumulated": 2.0},
    {"samples_accumulated": 2**60},
    {"samples_per_second": 3},
    {"samples_per_second": -1.0},
    {"samples_per_second": float("nan")},
    {"samples_per_second": float("inf")},
    {"time": 7},
    {"time": float("nan")},
    {"client_mode": 0},
    {"client_mode": None},
    {"more": 1},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_wrong_fields_are_refused(change: dict[str, Any]):
    with pytest.raises(SerializationError):
        parse_record({**record_value(PROGRESS), **change})


@pytest.mark.parametrize("field", list(record_value(PROGRESS)))
def test_missing_field_is_refused(field: str):
    value = record_value(PROGRESS)
    del value[field]
    with pytest.raises(SerializationError):
        parse_record(value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=9) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(anything)
def test_any_value_is_parsed_or_refused(value: Any):
    if value is None:
        return
    with pytest.raises(SerializationError):
        parse_record(value)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(list(record_value(PROGRESS))), anything))
def test_any_fields_are_parsed_or_refused(change: dict[str, Any]):
    try:
        parsed = parse_record({**record_value(PROGRESS), **change})
    except SerializationError:
        return
    assert parsed is not None
    assert record_value(parsed) == {**record_value(PROGRESS), **change}


def record(value: object, *, key: bytes = KEY, subkey: object = OWNED) -> DHTRecord:
    return DHTRecord(key, MSGPackSerializer.dumps(subkey), MSGPackSerializer.dumps(value), NOW + 60)


def test_validator():
    validator = ProgressValidator("run")
    assert validator.validate(record(record_value(PROGRESS)))
    assert validator.validate(record(None))
    assert not validator.validate(record({**record_value(PROGRESS), "epoch": 1.5}))
    assert not validator.validate(record("garbage"))
    assert not validator.validate(DHTRecord(KEY, b"\xc1", b"", NOW))
    assert not validator.validate(DHTRecord(KEY, MSGPackSerializer.dumps(OWNED), b"\xc1\xc1", NOW))
    # unowned entries, and a plain value in place of the dictionary
    for subkey in (b"peer", "[owner:ssh-rsa AAAA]", 7, None):
        assert not validator.validate(record(record_value(PROGRESS), subkey=subkey))


def test_other_keys_are_not_its_business():
    other = DHTID.generate(source="other_progress").to_bytes()
    assert ProgressValidator("run").validate(record("garbage", key=other))


def test_validators_of_two_runs_merge():
    validator = ProgressValidator("run")
    assert validator.merge_with(ProgressValidator("other"))
    assert not validator.merge_with(RSASignatureValidator())
    other = DHTID.generate(source="other_progress").to_bytes()
    assert not validator.validate(record("garbage", key=other))
    assert not validator.validate(record("garbage"))


def test_signed_record_passes_both_validators_and_a_forged_one_does_not():
    mine, theirs = RSASignatureValidator(RSAPrivateKey()), RSASignatureValidator(RSAPrivateKey())
    composite = CompositeValidator([ProgressValidator("run"), mine])
    plain = record(record_value(PROGRESS), subkey=mine.local_public_key)
    signed = DHTRecord(plain.key, plain.subkey, composite.sign_value(plain), plain.expiration_time)
    assert composite.validate(signed)
    assert composite.strip_value(signed) == plain.value
    assert not composite.validate(plain)
    forged = DHTRecord(plain.key, plain.subkey, theirs.sign_value(plain), plain.expiration_time)
    assert not composite.validate(forged)


def test_reports_of_a_record():
    entries = {
        b"a": Entry(record_value(PROGRESS)),
        b"b": Entry(None),
        b"c": Entry("garbage"),
        b"d": Entry({**record_value(PROGRESS), "time": NOW + 4}),
        "e": Entry(record_value(PROGRESS)),
    }
    reports, refused = read_reports(entries, now=NOW)
    assert reports == {b"a": Report(PROGRESS, NOW + 60), b"b": None}
    assert refused == 3
