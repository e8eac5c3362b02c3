"""Who leads, who is taken in, when a group begins."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.averaging.group_state import (
    Action,
    Answer,
    Declaration,
    JoinView,
    Reason,
    Refusal,
    begin_decision,
    check_join,
    leads,
    on_answer,
)
from hivemind.identity import PeerID
from hivemind.proto.averaging_pb2 import JoinRequest, MessageCode, MessageFromLeader

A, B, C, D = (PeerID(bytes([0x12, 0x20, *([n] * 32)])) for n in range(4))


def test_order_is_by_expiration_then_by_binary_id() -> None:
    assert leads(Declaration(B, 1.0), Declaration(A, 2.0))
    assert leads(Declaration(A, 1.0), Declaration(B, 1.0))
    assert not leads(Declaration(B, 1.0), Declaration(A, 1.0))
    assert leads(Declaration(B, 1e18), Declaration(A, math.inf))


def test_binary_order_is_not_the_order_of_the_texts() -> None:
    short, long = PeerID(b"\x12\x20" + b"\x01" * 32), PeerID(b"\x00\x24\x08\x01\x12\x20" + b"\x02" * 32)
    assert leads(Declaration(long, 1.0), Declaration(short, 1.0))


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 40)), min_size=2, unique_by=lambda pair: pair[1]))
def test_leading_is_a_strict_order_so_no_two_lead_each_other(pairs: list[tuple[float, int]]) -> None:
    peers = [Declaration(PeerID(bytes([number + 1])), expiration) for expiration, number in pairs]
    for left in peers:
        for right in peers:
            assert leads(left, right) + leads(right, left) == (left is not right)
    first = min(peers, key=lambda peer: peer.rank)
    assert all(leads(first, other) for other in peers if other is not first)


VIEW = {
    "own": A,
    "looking": True,
    "client_mode": False,
    "schema_hash": b"schema",
    "group_key": "pre.0b",
    "declared": 100.0,
    "leader": None,
    "followers": frozenset[PeerID](),
    "target": None,
}
REQUEST = {"schema_hash": b"schema", "expiration": 101.0, "gather": b"", "client_mode": False, "group_key": "pre.0b"}


@pytest.mark.parametrize(
    ("view", "request_fields", "refusal", "code"),
    [
        ({"looking": False}, {}, Refusal.NOT_LOOKING_FOR_GROUP, 13),
        ({"client_mode": True}, {}, Refusal.PROTOCOL_VIOLATION, 14),
        ({}, {"schema_hash": b""}, Refusal.PROTOCOL_VIOLATION, 14),
        ({}, {"expiration": math.inf}, Refusal.PROTOCOL_VIOLATION, 14),
        ({}, {"expiration": math.nan}, Refusal.PROTOCOL_VIOLATION, 14),
        ({}, {"schema_hash": b"other"}, Refusal.BAD_SCHEMA_HASH, 9),
        ({}, {"group_key": "pre.0b1"}, Refusal.BAD_GROUP_KEY, 18),
        ({"declared": None}, {}, Refusal.NOT_DECLARED, 6),
        ({}, {"expiration": 99.0}, Refusal.BAD_EXPIRATION_TIME, 8),
        ({"leader": C}, {}, Refusal.NOT_A_LEADER, 7),
        ({"followers": frozenset({B})}, {}, Refusal.DUPLICATE_PEER_ID, 11),
        ({"own": B}, {}, Refusal.DUPLICATE_PEER_ID, 11),
        ({"followers": frozenset({C}), "target": 2}, {}, Refusal.GROUP_IS_FULL, 12),
    ],
)
def test_refusals_and_their_codes(
    view: dict[str, object], request_fields: dict[str, object], refusal: Refusal, code: int
) -> None:
    outcome = check_join(JoinView(**{**VIEW, **view}), JoinRequest(**{**REQUEST, **request_fields}), B)
    assert outcome is refusal
    assert refusal.value == code


def test_checks_stand_in_the_order_of_the_wire_format() -> None:
    wrong = dict(VIEW, looking=False, client_mode=True, declared=None, leader=C, followers=frozenset({B}), target=2)
    request = JoinRequest(schema_hash=b"other", group_key="other", expiration=1.0)
    repairs: list[tuple[Refusal, dict[str, object], dict[str, object]]] = [
        (Refusal.NOT_LOOKING_FOR_GROUP, {"looking": True}, {}),
        (Refusal.PROTOCOL_VIOLATION, {"client_mode": False}, {}),
        (Refusal.BAD_SCHEMA_HASH, {}, {"schema_hash": b"schema"}),
        (Refusal.BAD_GROUP_KEY, {}, {"group_key": "pre.0b"}),
        (Refusal.NOT_DECLARED, {"declared": 100.0}, {}),
        (Refusal.BAD_EXPIRATION_TIME, {}, {"expiration": 100.0}),
        (Refusal.NOT_A_LEADER, {"leader": None}, {}),
        (Refusal.DUPLICATE_PEER_ID, {"followers": frozenset({C})}, {}),
        (Refusal.GROUP_IS_FULL, {"target": None}, {}),
    ]
    for refusal, view_repair, request_repair in repairs:
        assert check_join(JoinView(**wrong), request, B) is refusal
        wrong.update(view_repair)
        for name, value in request_repair.items():
            setattr(request, name, value)
    assert check_join(JoinView(**wrong), request, B) is None


@given(st.lists(st.integers(1, 3), min_size=2, max_size=6), st.data())
def test_whoever_asks_whom_nobody_ends_in_a_circle(expirations: list[int], data: st.DataObject) -> None:
    """Each peer asks any other, as with old declarations: who follows the accepted requests comes to one that leads."""
    peers = [Declaration(PeerID(bytes([number + 1])), float(when)) for number, when in enumerate(expirations)]
    leader: dict[PeerID, Declaration] = {}
    for peer in peers:
        other = data.draw(st.sampled_from(peers))
        request = JoinRequest(**{**REQUEST, "expiration": peer.expiration})
        view = JoinView(**{**VIEW, "own": other.peer_id, "declared": other.expiration})
        if check_join(view, request, peer.peer_id) is None:
            leader[peer.peer_id] = other
    for peer in peers:
        steps = 0
        while (above := leader.get(peer.peer_id)) is not None:
            peer, steps = above, steps + 1
            assert steps < len(peers)


def test_of_two_that_declared_the_same_time_the_lower_id_leads() -> None:
    request = JoinRequest(**{**REQUEST, "expiration": 100.0})
    assert check_join(JoinView(**VIEW), request, B) is None
    assert check_join(JoinView(**{**VIEW, "own": C}), request, B) is Refusal.BAD_EXPIRATION_TIME
    request.client_mode = True  # it cannot lead, so it may follow anybody
    assert check_join(JoinView(**{**VIEW, "own": C}), request, B) is None


def test_an_absent_expiration_counts_as_infinite() -> None:
    assert check_join(JoinView(**VIEW), JoinRequest(schema_hash=b"schema", group_key="pre.0b"), B) is None


def decide(**changes: object) -> tuple[Action, Reason]:
    arguments: dict[str, object] = {
        "now": 10.0,
        "window_end": 15.0,
        "followers": frozenset({B}),
        "follows": None,
        "expected": frozenset({B, C}),
        "expected_size": None,
        "target": None,
        "minimum": 2,
    }
    verdict = begin_decision(**{**arguments, **changes})
    return verdict.action, verdict.reason


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({}, Action.WAIT, Reason.AWAITING_PEERS),
        ({"followers": {B, C}}, Action.BEGIN, Reason.EVERYBODY_IS_HERE),
        ({"followers": {B, C, D}}, Action.BEGIN, Reason.EVERYBODY_IS_HERE),
        ({"followers": {B, C}, "follows": D}, Action.WAIT, Reason.FOLLOWS_ANOTHER),
        ({"follows": D, "now": 15.0}, Action.WAIT, Reason.FOLLOWS_ANOTHER),
        ({"expected": None}, Action.WAIT, Reason.UNKNOWN_WHO_COMES),
        ({"now": 15.0}, Action.BEGIN, Reason.WINDOW_ENDED),
        ({"now": 15.0, "minimum": 3}, Action.DISBAND, Reason.NOT_ENOUGH_PEERS),
        ({"now": 15.0, "followers": set(), "expected": set()}, Action.DISBAND, Reason.NOT_ENOUGH_PEERS),
        # alone, and nobody else known: others may still come
        ({"followers": set(), "expected": set()}, Action.WAIT, Reason.AWAITING_PEERS),
        ({"target": 2}, Action.BEGIN, Reason.TARGET_REACHED),
        ({"target": 2, "expected": None}, Action.BEGIN, Reason.TARGET_REACHED),
        ({"target": 4, "followers": {B, C}}, Action.BEGIN, Reason.EVERYBODY_IS_HERE),
        # a client-mode peer declares nothing: only the number tells that it will come
        ({"followers": {B, C}, "expected_size": 4}, Action.WAIT, Reason.AWAITING_PEERS),
        ({"followers": {B, C, D}, "expected_size": 4}, Action.BEGIN, Reason.EVERYBODY_IS_HERE),
        ({"followers": {B, C}, "expected_size": 4, "now": 15.0}, Action.BEGIN, Reason.WINDOW_ENDED),
        ({"followers": {B, C}, "minimum": 4}, Action.WAIT, Reason.AWAITING_PEERS),
    ],
)
def test_when_a_group_begins(changes: dict[str, object], action: Action, reason: Reason) -> None:
    assert decide(**changes) == (action, reason)


def test_a_verdict_names_who_is_missing() -> None:
    verdict = begin_decision(
        now=15.0,
        window_end=15.0,
        followers={B},
        follows=None,
        expected={B, C},
        expected_size=None,
        target=None,
        minimum=2,
    )
    assert verdict.missing == {C}


@given(
    now=st.floats(0, 20),
    followers=st.sets(st.sampled_from([B, C, D])),
    expected=st.none() | st.sets(st.sampled_from([B, C, D])),
    size=st.none() | st.integers(1, 5),
    target=st.none() | st.integers(2, 4),
    minimum=st.integers(2, 4),
)
def test_a_decision_is_never_put_off_beyond_the_window(
    now: float,
    followers: set[PeerID],
    expected: set[PeerID] | None,
    size: int | None,
    target: int | None,
    minimum: int,
) -> None:
    verdict = begin_decision(
        now=now,
        window_end=10.0,
        followers=followers,
        follows=None,
        expected=expected,
        expected_size=size,
        target=target,
        minimum=minimum,
    )
    if now >= 10.0:
        assert verdict.action is not Action.WAIT
    if verdict.action is Action.BEGIN:
        assert len(followers) + 1 >= min(minimum, target or minimum)
    else:
        assert target is None or len(followers) + 1 < target


@pytest.mark.parametrize(
    ("message", "accepted", "answer"),
    [
        ({"code": MessageCode.ACCEPTED}, False, Answer.STAY),
        ({"code": MessageCode.ACCEPTED}, True, Answer.NEXT),
        ({"code": MessageCode.BEGIN_ALLREDUCE}, True, Answer.JOIN),
        ({"code": MessageCode.BEGIN_ALLREDUCE}, False, Answer.NEXT),
        ({"code": MessageCode.GROUP_DISBANDED}, True, Answer.NEXT),
        ({"code": MessageCode.GROUP_DISBANDED, "suggested_leader": C.to_bytes()}, True, Answer.REDIRECT),
        ({"code": MessageCode.GROUP_DISBANDED, "suggested_leader": A.to_bytes()}, True, Answer.NEXT),
        ({"code": MessageCode.NOT_A_LEADER, "suggested_leader": C.to_bytes()}, False, Answer.REDIRECT),
        ({"code": MessageCode.NOT_A_LEADER}, False, Answer.NEXT),
        ({"code": MessageCode.GROUP_IS_FULL}, False, Answer.NEXT),
        ({"code": MessageCode.NOT_DECLARED}, False, Answer.RETRY),
        ({"code": MessageCode.DUPLICATE_PEER_ID}, False, Answer.RETRY),
        ({"code": MessageCode.INTERNAL_ERROR}, True, Answer.NEXT),
        ({}, False, Answer.NEXT),
        ({}, True, Answer.NEXT),
    ],
)
def test_what_a_follower_does(message: dict[str, object], accepted: bool, answer: Answer) -> None:
    assert on_answer(MessageFromLeader(**message), accepted=accepted, own=A) is answer
