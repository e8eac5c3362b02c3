"""The state of streams: messages put together, credit, numbers, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.errors import (
    ControlFailure,
    DeadlineExceeded,
    DispatchFailure,
    HivemindError,
    P2PDaemonError,
    PeerBusy,
    PeerUnreachable,
    ProtocolNotSupported,
    StreamTruncated,
)
from hivemind.p2p.calls import (
    FRAME_COST,
    PREFETCH_ALL_BYTES,
    PREFETCH_BYTES,
    Incoming,
    ItemKind,
    Numbers,
    Outgoing,
    error_of,
)
from hivemind.p2p.framing import MAX_FRAME, Flag, FrameType, Header, ResetCode

WINDOW = 1024 * 1024
LIMIT = 64 * 1024 * 1024


def put(incoming: Incoming, message: bytes, sizes: list[int], *, flags: int = 0) -> bool:
    """Bring a message in frames of these sizes; whether it is whole."""
    position, turn, whole = 0, 0, False
    while position < len(message) or not whole:
        count = min(len(message) - position, sizes[turn % len(sizes)])
        header = Header(count, FrameType.DATA, flags, 0, 1, len(message) - position)
        view = incoming.begin(header)
        assert view is not None
        view[:] = message[position : position + count]
        view.release()
        whole = incoming.end(header)
        position += count
        turn += 1
    return whole


@given(st.lists(st.integers(0, 3_000_000), max_size=4), st.lists(st.integers(1, MAX_FRAME), min_size=1, max_size=4))
def test_messages_are_put_together(lengths: list[int], sizes: list[int]) -> None:
    incoming = Incoming(WINDOW, LIMIT)
    sizes = [max(size, 10_000) for size in sizes]
    messages = [bytes([number % 256]) * length for number, length in enumerate(lengths)]
    for message in messages:
        assert put(incoming, message, sizes)
    items = [incoming.take() for _ in messages]
    assert [(item.kind, item.payload) for item in items if item] == [(ItemKind.MESSAGE, each) for each in messages]
    assert incoming.take() is None


def test_memory_grows_by_what_comes_not_by_what_is_announced() -> None:
    incoming = Incoming(WINDOW, LIMIT)
    header = Header(100, FrameType.DATA, 0, 0, 1, LIMIT)
    view = incoming.begin(header)
    assert view is not None
    assert isinstance(view.obj, bytearray)
    assert len(view.obj) <= 400


def test_errors_keep_their_place() -> None:
    incoming = Incoming(WINDOW, LIMIT)
    put(incoming, b"fine", [4])
    put(incoming, b"wrong", [2], flags=Flag.ERROR)
    incoming.put(ItemKind.FIN)
    kinds = [item.kind for item in iter(incoming.take, None)]
    assert kinds == [ItemKind.MESSAGE, ItemKind.ERROR, ItemKind.FIN]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (Header(10, FrameType.DATA, 0, 0, 1, 50), "goes on wrongly"),
        (Header(1, FrameType.DATA, 0, 0, 1, 101), "wrongly"),
    ],
)
def test_a_message_that_goes_on_wrongly(second: Header, words: str) -> None:
    incoming = Incoming(WINDOW, LIMIT)
    first = Header(10, FrameType.DATA, 0, 0, 1, 100)
    incoming.begin(first)
    incoming.end(first)
    assert incoming.truncated
    with pytest.raises(ControlFailure, match=words):
        incoming.begin(second)


def test_a_message_over_the_limit() -> None:
    with pytest.raises(ControlFailure, match="limit"):
        Incoming(WINDOW, 1000).begin(Header(1, FrameType.DATA, 0, 0, 1, 1001))


def test_credit_comes_while_a_message_is_under_way() -> None:
    incoming = Incoming(WINDOW, LIMIT)
    total, position, granted = 16 * WINDOW, 0, 0
    while position < total:
        # the sender never runs out, and never has more than the window
        assert 0 < WINDOW + granted - position <= WINDOW + MAX_FRAME
        header = Header(MAX_FRAME, FrameType.DATA, 0, 0, 1, total - position)
        incoming.begin(header)
        incoming.end(header)
        position += MAX_FRAME
        granted += incoming.grant(lambda: incoming.waiting_bytes)


def fill(incoming: Incoming, waiting_bytes: Callable[[], int]) -> tuple[int, int]:
    """Send as long as there is credit; the bytes received and granted."""
    granted = received = 0
    while received < WINDOW + granted:
        put(incoming, bytes(MAX_FRAME), [MAX_FRAME])
        received += MAX_FRAME
        granted += incoming.grant(waiting_bytes)
    return received, granted


def test_credit_is_withheld_while_much_waits_and_comes_when_it_is_read() -> None:
    incoming = Incoming(WINDOW, LIMIT)
    received, granted = fill(incoming, lambda: incoming.waiting_bytes)
    assert received <= PREFETCH_BYTES + 2 * WINDOW
    while incoming.take() is not None:
        granted += incoming.grant(lambda: incoming.waiting_bytes)
    assert granted >= received - WINDOW // 4


def test_less_waits_on_each_stream_while_much_waits_on_all() -> None:
    received, _ = fill(Incoming(WINDOW, LIMIT), lambda: PREFETCH_ALL_BYTES)
    assert received < 2 * WINDOW


def test_small_messages_are_held_back_too() -> None:
    incoming = Incoming(WINDOW, LIMIT)
    granted = received = 0
    while received < WINDOW + granted:
        put(incoming, bytes(1000), [1000])
        received += 1000
        granted += incoming.grant(lambda: incoming.waiting_bytes)
    assert received <= 3 * WINDOW


def test_empty_messages_use_credit() -> None:
    incoming = Incoming(WINDOW, LIMIT)
    granted, received = 0, 0
    while (received + 1) * FRAME_COST < WINDOW + granted:
        put(incoming, b"", [1])
        received += 1
        granted += incoming.grant(lambda: incoming.waiting_bytes)
    assert WINDOW <= received * FRAME_COST + FRAME_COST <= 2 * WINDOW
    while incoming.take() is not None:
        granted += incoming.grant(lambda: incoming.waiting_bytes)
    assert granted >= received * FRAME_COST - WINDOW // 4


def test_dropping_forgets_all_and_grants_all() -> None:
    incoming = Incoming(WINDOW, LIMIT)
    put(incoming, bytes(MAX_FRAME), [MAX_FRAME])
    incoming.drop()
    assert incoming.take() is None
    header = Header(MAX_FRAME, FrameType.DATA, 0, 0, 1, MAX_FRAME)
    assert incoming.begin(header) is None
    assert not incoming.end(header)
    incoming.put(ItemKind.FIN)
    assert incoming.take() is None
    assert incoming.grant(lambda: incoming.waiting_bytes) == 2 * (MAX_FRAME + FRAME_COST)


@given(st.lists(st.integers(0, 3 * MAX_FRAME), max_size=10))
def test_sending_never_exceeds_credit(wanted: list[int]) -> None:
    outgoing = Outgoing(WINDOW)
    frames = [outgoing.take(each) for each in wanted if outgoing.has(1)]
    assert sum(frames) + FRAME_COST * len(frames) + outgoing.credit == WINDOW
    assert outgoing.credit >= 0
    assert all(count <= MAX_FRAME for count in frames)


def test_a_whole_frame_or_none() -> None:
    outgoing = Outgoing(1000)
    assert not outgoing.take_whole(1001 - FRAME_COST)
    assert outgoing.take_whole(900 - FRAME_COST)
    assert outgoing.credit == 100
    assert outgoing.has(1)
    assert not outgoing.has(100)
    assert outgoing.take(100) == 100 - FRAME_COST
    assert not outgoing.has(0)


def test_numbers_are_odd_free_and_come_round() -> None:
    numbers = Numbers(1, 2)
    used: dict[int, object] = {3: None}
    assert [numbers.take(used) for _ in range(3)] == [1, 5, 7]
    numbers._next = 0xFFFFFFFF
    assert numbers.take(used) == 0xFFFFFFFF
    assert numbers.take({**used, 1: None}) == 5


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ResetCode.DEADLINE, DeadlineExceeded),
        (ResetCode.UNREACHABLE, PeerUnreachable),
        (ResetCode.NOT_FOUND, PeerUnreachable),
        (ResetCode.NOT_SUPPORTED, ProtocolNotSupported),
        (ResetCode.BUSY, PeerBusy),
        (ResetCode.TRUNCATED, StreamTruncated),
        (ResetCode.REMOTE_RESET, DispatchFailure),
        (ResetCode.MALFORMED, DispatchFailure),
        (ResetCode.HANDLER_TAKEN, P2PDaemonError),
        (99, ControlFailure),
    ],
)
def test_codes_are_errors(code: int, kind: type[HivemindError]) -> None:
    error = error_of(code, "because", "call of x")
    assert isinstance(error, kind)
    assert "call of x" in str(error)
    assert "because" in str(error)


def test_every_code_has_an_error() -> None:
    assert all("unknown" not in str(error_of(code, "", "x")) for code in ResetCode)


def test_words_that_callers_look_for() -> None:
    assert "protocol not supported" in str(error_of(ResetCode.NOT_SUPPORTED, "no handler", "x"))
    assert str(error_of(ResetCode.NOT_SUPPORTED, "protocol not supported: y", "x")).count("not supported") == 1
