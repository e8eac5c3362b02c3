"""Whom a round waits for."""

from __future__ import annotations

from hivemind.averaging.attendance import MAX_REMEMBERED, MEMORY_SECONDS, Attendance, SwarmView
from hivemind.identity import PeerID

OWN, A, B, C = (PeerID(bytes([0x12, 0x20, *([n] * 32)])) for n in range(4))
NOBODY = frozenset[PeerID]()


def expected(attendance: Attendance, view: SwarmView, now: float = 100.0) -> frozenset[PeerID] | None:
    return attendance.expected(view, None, NOBODY, now)


def test_those_that_declared_themselves_and_those_that_look_now() -> None:
    attendance = Attendance(OWN)
    view = SwarmView(looking={A: 105.0}, declared={B: 130.0, OWN: 130.0})
    assert expected(attendance, view) == {A, B}
    # they said no when asked: that they look tells nothing, that they live still counts
    assert attendance.expected(view, None, frozenset({A, B}), 100.0) == {B}


def test_in_a_grid_of_keys_nobody_knows_who_comes() -> None:
    view = SwarmView(looking={A: 105.0}, declared=None)
    assert expected(Attendance(OWN), view) is None
    assert Attendance(OWN).expected(view, frozenset({B}), NOBODY, 100.0) == {A, B}


def test_a_hint_stands_for_the_declarations() -> None:
    view = SwarmView(looking={}, declared={A: 130.0, B: 130.0})
    assert Attendance(OWN).expected(view, frozenset({A, C, OWN}), NOBODY, 100.0) == {A, C}


def test_peers_that_never_declare_themselves_are_remembered_for_a_while() -> None:
    attendance = Attendance(OWN)
    attendance.showed_up([OWN, C], 100.0)
    view = SwarmView(looking={}, declared={})
    assert expected(attendance, view, 101.0) == {C}
    assert expected(attendance, view, 100.0 + MEMORY_SECONDS + 1) == NOBODY


def test_one_that_stayed_away_is_waited_for_only_after_a_new_sign_of_life() -> None:
    attendance = Attendance(OWN)
    view = SwarmView(looking={A: 105.0}, declared={A: 120.0, B: 130.0})
    attendance.stayed_away([A], view, 106.0)
    assert attendance.absentees(110.0) == 1
    assert attendance.doubtful(view.looking) == {A}
    assert attendance.doubtful({A: 110.0}) == NOBODY
    assert expected(attendance, view) == {B}
    assert expected(attendance, SwarmView({A: 110.0}, view.declared)) == {A, B}
    assert expected(attendance, SwarmView({}, {A: 150.0})) == {A}
    attendance.showed_up([A], 107.0)
    assert expected(attendance, view) == {A, B}
    assert attendance.absentees(110.0) == 0


def test_one_that_declares_but_never_comes_costs_ever_fewer_windows() -> None:
    attendance, now, windows = Attendance(OWN, period=30.0), 0.0, 0
    for minute in range(240):
        now = minute * 30.0
        view = SwarmView({}, {A: now + 30.0})
        if expected(attendance, view, now):
            windows += 1
            attendance.stayed_away([A], view, now)
    assert windows <= 8


def test_one_that_broke_off_comes_back_with_what_it_declares_afterwards() -> None:
    attendance = Attendance(OWN, period=30.0)
    view = SwarmView(looking={A: 104.0}, declared={A: 120.0})
    attendance.failed([A, C], view, 100.0, window=5.0)
    assert expected(attendance, view, 101.0) == NOBODY
    # C was not to be seen in the DHT: what it had declared before 100.0 holds until 130.0 at the most
    assert expected(attendance, SwarmView({}, {C: 129.0}), 101.0) == NOBODY
    assert expected(attendance, SwarmView({}, {C: 131.0}), 101.0) == {C}
    assert expected(attendance, SwarmView({A: 104.5}, {}), 101.0) == {A}
    assert expected(attendance, SwarmView({C: 104.5}, {}), 101.0) == NOBODY
    assert expected(attendance, SwarmView({C: 105.5}, {}), 101.0) == {C}


def test_a_goodbye_ends_the_waiting_for_a_peer_that_was_seen_before() -> None:
    attendance = Attendance(OWN, period=30.0)
    attendance.showed_up([A], 100.0)
    attendance.departed(A, 129.0)  # said at 99.0: it has been seen since
    assert expected(attendance, SwarmView({}, {}), 101.0) == {A}
    attendance.departed(A, 131.0)
    assert expected(attendance, SwarmView({}, {}), 102.0) == NOBODY


def test_memory_is_bounded() -> None:
    attendance = Attendance(OWN)
    many = [PeerID(number.to_bytes(4, "big")) for number in range(1, MAX_REMEMBERED + 100)]
    attendance.showed_up(many, 100.0)
    found = expected(attendance, SwarmView({}, {}), 101.0)
    assert found is not None
    assert len(found) == MAX_REMEMBERED
    assert many[-1] in found
    attendance.stayed_away(many, SwarmView({}, {}), 101.0)
    assert attendance.absentees(102.0) == MAX_REMEMBERED
