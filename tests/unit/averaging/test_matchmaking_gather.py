"""What members tell each other, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.averaging.gather import MAX_GATHER_BYTES, Gathered, pack_gather, unpack_gather
from hivemind.averaging.modes import AveragingMode
from hivemind.errors import ConfigError, ProtocolViolation
from hivemind.serializer import MSGPackSerializer


@pytest.mark.parametrize(
    ("told", "blob"),
    [
        (Gathered(None, AveragingMode.NODE, None), "93c000c401c0"),
        (Gathered(1.5, AveragingMode.CLIENT, 7), "93cb3ff800000000000001c40107"),
        (Gathered(None, AveragingMode.AUX, None), "93c002c401c0"),
    ],
)
def test_golden_bytes(told: Gathered, blob: str) -> None:
    assert pack_gather(told.bandwidth, told.mode, told.user).hex() == blob
    assert unpack_gather(bytes.fromhex(blob)) == told


def test_whole_numbers_are_bandwidths_too() -> None:
    assert unpack_gather(MSGPackSerializer.dumps([2, 0, b"\xc0"])).bandwidth == 2.0


@pytest.mark.parametrize(
    "value",
    [
        [None, 0],
        [None, 3, b"\xc0"],
        [None, "0", b"\xc0"],
        [-1.0, 0, b"\xc0"],
        [float("inf"), 0, b"\xc0"],
        [float("nan"), 0, b"\xc0"],
        ["1", 0, b"\xc0"],
        [True, 0, b"\xc0"],
        [None, 0, b""],
        [None, 0, None],
        [None, [], b"\xc0"],
        {"a": 1},
        7,
    ],
)
def test_malformed_data_is_refused(value: object) -> None:
    with pytest.raises(ProtocolViolation):
        unpack_gather(MSGPackSerializer.dumps(value))


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(blob: bytes) -> None:
    try:
        unpack_gather(blob)
    except ProtocolViolation:
        return


def test_bounds() -> None:
    with pytest.raises(ProtocolViolation, match="bytes"):
        unpack_gather(bytes(MAX_GATHER_BYTES + 1))
    with pytest.raises(ConfigError, match="gather"):
        pack_gather(None, AveragingMode.NODE, b"x" * MAX_GATHER_BYTES)
    with pytest.raises(ConfigError, match="gather"):
        pack_gather(None, AveragingMode.NODE, object())
