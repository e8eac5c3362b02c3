"""The msgpack profile: golden bytes of hivemind 1.1, round trips, and bounds on what strangers send."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.dht.storage import DictionaryDHTValue
from hivemind.errors import SerializationError
from hivemind.serializer import MAX_EXT_DEPTH, MSGPackSerializer

GOLDEN = [
    ("run_progress", "ac72756e5f70726f6772657373"),
    (None, "c0"),
    (True, "c3"),
    (1.5, "cb3ff8000000000000"),
    (b"x", "c40178"),
    (-1, "ff"),
    (((1,), [2]), "c7074092d54091019102"),
    ({"a": (1, 2)}, "81a161c70340920102"),
    ((1, "a"), "d6409201a161"),
    ([1.5, 0, True, b"\x07"], "94cb3ff800000000000000c3c40107"),
]


@pytest.mark.parametrize(("value", "expected"), GOLDEN)
def test_golden_bytes(value: Any, expected: str) -> None:
    assert MSGPackSerializer.dumps(value).hex() == expected
    loaded = MSGPackSerializer.loads(bytes.fromhex(expected))
    assert loaded == value
    assert type(loaded) is type(value)


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_round_trip(value: Any) -> None:
    packed = MSGPackSerializer.dumps(value)
    assert MSGPackSerializer.loads(packed) == value
    assert MSGPackSerializer.dumps(MSGPackSerializer.loads(packed)) == packed


@given(st.binary(max_size=400))
def test_garbage_decodes_or_is_refused(raw: bytes) -> None:
    with contextlib.suppress(SerializationError):
        MSGPackSerializer.loads(raw)


@given(
    st.lists(
        st.sampled_from([b"\xc7\xff\x50", b"\xc7\x05\x40", b"\xdd\xff\xff\xff\xff", b"\x93", b"\xc0"]), max_size=80
    )
)
def test_nested_headers_decode_or_are_refused(parts: list[bytes]) -> None:
    with contextlib.suppress(SerializationError):
        MSGPackSerializer.loads(b"".join(parts))


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [Text("x"), np.float32(1), 2**64, object(), {1: "int keys"}, {"set"}, float])
def test_what_has_no_form_on_the_wire_is_refused_by_name(value: Any) -> None:
    if isinstance(value, dict):
        # such a map encodes, but no strict decoder takes it
        with pytest.raises(SerializationError):
            MSGPackSerializer.loads(MSGPackSerializer.dumps(value))
        return
    with pytest.raises(SerializationError, match=type(value).__qualname__):
        MSGPackSerializer.dumps(value)


def test_named_tuples_travel_as_tuples() -> None:
    assert MSGPackSerializer.loads(MSGPackSerializer.dumps(tuple.__new__(type("Size", (tuple,), {}), (1, 2)))) == (1, 2)


@pytest.mark.parametrize("raw", [b"", b"\xc0\xc0", b"\xc1", b"\xa5abc", b"\x81\x01\x02", b"\xa1\xff", b"\xd4\x40\x01"])
def test_malformed_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(SerializationError):
        MSGPackSerializer.loads(raw)


def test_lying_array_headers_cost_nothing() -> None:
    claims = b"\xdd\x00\x20\x00\x00" * 900 + b"\xc0" * 200_000
    with pytest.raises(SerializationError):
        MSGPackSerializer.loads(claims)


def nested(levels: int) -> bytes:
    raw = b"\x90"
    for _ in range(levels):
        raw = msgpack.packb(msgpack.ExtType(0x40, raw if raw[0] == 0x90 else b"\x91" + raw))
    return raw


def test_ext_nesting_is_bounded() -> None:
    MSGPackSerializer.loads(nested(MAX_EXT_DEPTH))
    with pytest.raises(SerializationError, match="levels"):
        MSGPackSerializer.loads(nested(MAX_EXT_DEPTH + 1))
    with pytest.raises(SerializationError):
        MSGPackSerializer.loads(nested(5000))
    # the count of levels does not stick
    MSGPackSerializer.loads(nested(MAX_EXT_DEPTH))


def test_unknown_ext_gives_its_payload() -> None:
    assert MSGPackSerializer.loads(msgpack.packb(msgpack.ExtType(0x77, b"payload"))) == b"payload"


def test_ext_codes_belong_to_one_class() -> None:
    with pytest.raises(SerializationError, match="0x50"):
        MSGPackSerializer.ext_serializable(0x50)(Text)
    with pytest.raises(SerializationError, match="0x40"):
        MSGPackSerializer.ext_serializable(0x40)
    assert MSGPackSerializer.ext_serializable(0x50)(DictionaryDHTValue) is DictionaryDHTValue
