"""Names of experts, and which records they have."""

from __future__ import annotations

from typing import Any

import pytest

from hivemind.errors import ConfigError
from hivemind.moe.declare import check_uids, read_entry, read_owner
from hivemind.moe.uid import MAX_UID_LENGTH, ExpertInfo, is_valid_prefix, is_valid_uid, prefixes_of, split_uid
from hivemind.p2p import PeerID
from hivemind.timed_storage import ValueWithExpiration

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))


@pytest.mark.parametrize("uid", ["e.1", "e.1.2", "e.0.10", "my expert é-[1].3", "1.2.3"])
def test_full_names(uid: str) -> None:
    assert is_valid_uid(uid)
    assert not is_valid_prefix(uid)
    assert is_valid_prefix(uid + ".")


@pytest.mark.parametrize(
    "uid", ["", "e", "e.", ".1", "e.01", "e.-1", "e.1.", "e..1", "e.1 ", "e.1\n", "e.x", None, 3, b"e.1", "e.1" * 999]
)
def test_what_is_no_full_name(uid: Any) -> None:
    assert not is_valid_uid(uid)


@pytest.mark.parametrize("prefix", ["e.", "e.1.", "e.1.2.", "an e."])
def test_prefixes(prefix: str) -> None:
    assert is_valid_prefix(prefix)
    assert not is_valid_uid(prefix)


def test_length_is_bounded() -> None:
    assert is_valid_uid("e" * (MAX_UID_LENGTH - 2) + ".1")
    assert not is_valid_uid("e" * (MAX_UID_LENGTH - 1) + ".1")


def test_split() -> None:
    assert split_uid("e.1.2") == ("e.1.", 2)
    assert split_uid("e.1.") == ("e.", 1)
    for wrong in ("e.", "e", "", "e.x", "e.-1"):
        with pytest.raises(ConfigError, match="one coordinate"):
            split_uid(wrong)


@pytest.mark.parametrize(
    ("uid", "records"),
    [
        ("e.3", [("e.3.", -1)]),
        ("e.3.5", [("e.3.", 5)]),
        ("e.3.5.7", [("e.3.5.", 7), ("e.3.", 5)]),
    ],
)
def test_prefixes_under_which_an_expert_stands(uid: str, records: list[tuple[str, int]]) -> None:
    assert prefixes_of(uid) == records


@pytest.mark.parametrize("uids", ["e.1", None, {"e.1"}, iter(["e.1"])])
def test_one_name_where_several_belong(uids: Any) -> None:
    with pytest.raises(TypeError, match="uids"):
        check_uids(uids)


def test_malformed_names_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"uids: got 'bad'"):
        check_uids(["e.1", "bad"])


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1, "", "e.3.5", ("e.3.5",), ("e.3.5", 1), ("e.3", "?"), ["e.3.5", str(PEER)], (b"e.3.5", str(PEER))),
        *(("e", str(PEER)), ("e.3.5", "1" * 4000), ("e.3.5", "0O")),
    ],
)
def test_malformed_records_are_no_experts(value: Any) -> None:
    assert read_entry(value) is None
    assert read_owner(ValueWithExpiration(value, 1.0)) is None


def test_records() -> None:
    assert read_entry(("e.3.5", str(PEER))) == ExpertInfo("e.3.5", PEER)
    assert read_owner(ValueWithExpiration(str(PEER), 1.0)) == PEER
    assert read_owner(None) is None
