"""Schemas of records, by models of pydantic 2 and of pydantic 1."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import pydantic
import pytest

from hivemind.crypto import RSAPrivateKey
from hivemind.dht import DHTID, CompositeValidator, DHTRecord, RSASignatureValidator, SchemaValidator
from hivemind.dht.records import IS_REGULAR_VALUE
from hivemind.dht.schema import BytesWithPublicKey, conbytes
from hivemind.errors import ConfigError
from hivemind.serializer import MSGPackSerializer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic.v1 warns on Python 3.14
    import pydantic.v1


class Metrics2(pydantic.BaseModel):
    count: pydantic.StrictInt
    loss: dict[str, pydantic.StrictFloat]
    by_owner: dict[BytesWithPublicKey, str]  # type: ignore[valid-type]
    even: dict[str, int] = {}

    @pydantic.field_validator("even")
    @classmethod
    def all_even(cls, value: dict[str, int]) -> dict[str, int]:
        if any(number % 2 for number in value.values()):
            raise ValueError("odd")
        return value


class Metrics1(pydantic.v1.BaseModel):
    count: pydantic.v1.StrictInt
    loss: dict[str, pydantic.v1.StrictFloat]
    by_owner: dict[BytesWithPublicKey, str]  # type: ignore[valid-type]
    even: dict[str, int] = {}

    @pydantic.v1.validator("even")
    def all_even(cls, value: dict[str, int]) -> dict[str, int]:
        if any(number % 2 for number in value.values()):
            raise ValueError("odd")
        return value


class Other(pydantic.BaseModel):
    loss: dict[str, str]


@pytest.fixture(params=[Metrics1, Metrics2])
def schema(request: pytest.FixtureRequest) -> Any:
    return request.param


OWNER = b"[owner:ssh-rsa AAAA]"


def record(key: str, value: Any, subkey: Any = None) -> DHTRecord:
    raw = IS_REGULAR_VALUE if subkey is None else MSGPackSerializer.dumps(subkey)
    return DHTRecord(DHTID.generate(key).to_bytes(), raw, MSGPackSerializer.dumps(value), 4e9)


@pytest.mark.parametrize(
    "fits",
    [
        record("count", 3),
        record("loss", 0.5, "peer"),
        record("loss", float("nan"), "peer"),
        record("by_owner", "text", OWNER),
        record("by_owner", "text", b"name" + b"[ed25519:AAAA]"),
        record("even", 4, "peer"),
        record("unknown", {"any": "thing"}),
    ],
)
def test_what_fits(schema: Any, fits: DHTRecord) -> None:
    assert SchemaValidator(schema).validate(fits)


@pytest.mark.parametrize(
    "wrong",
    [
        record("count", "3"),
        record("count", 3.0),
        record("count", True),
        record("count", 3, "peer"),
        record("loss", 1, "peer"),
        record("loss", "0.5", "peer"),
        record("loss", 0.5),
        record("loss", 0.5, 7),
        record("loss", 0.5, b"peer"),
        record("by_owner", "text", "no bytes"),
        record("by_owner", "text", b"nobody's"),
        record("by_owner", b"text", OWNER),
        record("even", 3, "peer"),
        record("even", 4.0, "peer"),
        DHTRecord(DHTID.generate("count").to_bytes(), IS_REGULAR_VALUE, b"\xff\xff no msgpack", 4e9),
        DHTRecord(DHTID.generate("loss").to_bytes(), b"\xc1", MSGPackSerializer.dumps(0.5), 4e9),
        DHTRecord(DHTID.generate("loss").to_bytes(), MSGPackSerializer.dumps([1]), MSGPackSerializer.dumps(0.5), 4e9),
    ],
)
def test_what_does_not(schema: Any, wrong: DHTRecord) -> None:
    assert not SchemaValidator(schema).validate(wrong)


def test_extra_keys_and_prefix(schema: Any) -> None:
    strict = SchemaValidator(schema, allow_extra_keys=False, prefix="run")
    assert strict.validate(record("run_count", 3))
    assert not strict.validate(record("run_count", "3"))
    assert not strict.validate(record("count", 3))
    assert SchemaValidator(schema, prefix="run").validate(record("count", "anything"))


def test_one_of_merged_schemas_is_enough(schema: Any) -> None:
    both = CompositeValidator([SchemaValidator(schema, allow_extra_keys=False), SchemaValidator(Other, False)])
    assert both.validate(record("loss", 0.5, "peer"))
    assert both.validate(record("loss", "text", "peer"))
    assert not both.validate(record("loss", 1, "peer"))
    assert not both.validate(record("unknown", 1))
    both.extend([SchemaValidator(Other, allow_extra_keys=True)])
    assert both.validate(record("unknown", 1))


def test_signed_records_fit_without_their_signature(schema: Any) -> None:
    signer = RSASignatureValidator(RSAPrivateKey())
    both = CompositeValidator([signer, SchemaValidator(schema)])
    plain = record("by_owner", "text", signer.local_public_key)
    value = both.sign_value(plain)
    assert value != plain.value
    assert both.validate(DHTRecord(plain.key, plain.subkey, value, plain.expiration_time))
    assert not both.validate(plain), "not signed"


def test_validators_are_pickled(schema: Any) -> None:
    copy = pickle.loads(pickle.dumps(SchemaValidator(schema)))
    assert copy.validate(record("count", 3))
    assert not copy.validate(record("count", "3"))


def test_what_is_no_schema() -> None:
    for wrong in (dict, None, Metrics2(count=1, loss={}, by_owner={}), type("Empty", (pydantic.BaseModel,), {})):
        with pytest.raises(ConfigError, match="pydantic"):
            SchemaValidator(wrong)
    with pytest.raises(ConfigError, match="regular expression"):
        conbytes(regex="(")


def test_bounds_of_bytes() -> None:
    class Bounded(pydantic.BaseModel):
        entry: dict[conbytes(regex=rb"a+", min_length=2, max_length=3), int]  # type: ignore[misc]

    validator = SchemaValidator(Bounded)
    verdicts = {name: validator.validate(record("entry", 1, name)) for name in (b"a", b"aa", b"aaa", b"aaaa", b"ba")}
    assert verdicts == {b"a": False, b"aa": True, b"aaa": True, b"aaaa": False, b"ba": False}


class Raising(pydantic.BaseModel):
    field: int

    @pydantic.field_validator("field", mode="before")
    @classmethod
    def raises(cls, value: int) -> int:
        raise RuntimeError("a fault of the user's code")


def test_a_schema_that_raises_refuses() -> None:
    assert not SchemaValidator(Raising).validate(record("field", 1))
