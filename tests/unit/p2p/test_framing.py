"""Frames: any bytes in, in any pieces, and the same frames come out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.errors import ControlFailure
from hivemind.p2p.framing import (
    HEADER_BYTES,
    MAX_FRAME,
    FrameReader,
    FrameType,
    Header,
    mode_of,
    pack_header,
    pack_target,
    unpack_header,
    unpack_target,
)
from hivemind.p2p.transport import Mode

u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))


class Recorder:
    """A sink that keeps what it is given; drops DATA of streams in ``unknown``."""

    def __init__(self, unknown: frozenset[int] = frozenset()) -> None:
        self.unknown = unknown
        self.frames: list[tuple[Header, bytes]] = []
        self.open: dict[int, bytearray] = {}

    def frame(self, header: Header, payload: memoryview) -> None:
        self.frames.append((header, bytes(payload)))

    def data_buffer(self, header: Header) -> memoryview | None:
        if header.stream in self.unknown:
            return None
        self.open[header.stream] = bytearray(header.length)
        return memoryview(self.open[header.stream])

    def data_done(self, header: Header) -> None:
        if header.stream not in self.unknown:
            self.frames.append((header, bytes(self.open.pop(header.stream))))


def feed(reader: FrameReader, data: bytes, pieces: list[int]) -> None:
    """Give ``data`` as a socket would: as much as fits the buffer, and no more than the next of ``pieces``."""
    position, turn = 0, 0
    while position < len(data):
        view = reader.get_buffer()
        assert len(view) > 0
        count = min(len(view), len(data) - position, pieces[turn % len(pieces)])
        view[:count] = data[position : position + count]
        reader.advance(count)
        position += count
        turn += 1


@st.composite
def frames(draw: st.DrawFn) -> tuple[Header, bytes]:
    size = draw(st.one_of(st.integers(0, 40), st.integers(0, MAX_FRAME), st.sampled_from([65536, 65537, MAX_FRAME])))
    kind = draw(st.sampled_from(FrameType))
    aux = size + draw(st.integers(0, 1000)) if kind is FrameType.DATA else draw(u32)
    header = Header(size, int(kind), draw(u8), draw(u16), draw(st.integers(0, 5)), aux)
    return header, draw(st.integers(0, 255)).to_bytes() * size


def packed(header: Header, payload: bytes) -> bytes:
    return (
        pack_header(header.type, header.stream, header.length, flags=header.flags, code=header.code, aux=header.aux)
        + payload
    )


@given(st.lists(frames(), max_size=6), st.lists(st.integers(1, 300_000), min_size=1, max_size=5))
def test_frames_survive_any_cutting(sent: list[tuple[Header, bytes]], pieces: list[int]) -> None:
    sink = Recorder(unknown=frozenset({3}))
    data = b"".join(packed(*frame) for frame in sent)
    feed(FrameReader(sink), data, [max(piece, len(data) // 300) for piece in pieces])
    dropped = [frame for frame in sent if frame[0].type == FrameType.DATA and frame[0].stream == 3]
    assert sink.frames == [frame for frame in sent if frame not in dropped]


@given(st.lists(frames(), max_size=3))
def test_frames_survive_byte_by_byte(sent: list[tuple[Header, bytes]]) -> None:
    small = [
        (header._replace(length=0, aux=0), b"") if header.length > 500 else (header, body) for header, body in sent
    ]
    sink = Recorder()
    feed(FrameReader(sink), b"".join(packed(*frame) for frame in small), [1])
    assert sink.frames == small


@given(st.binary(max_size=400))
def test_any_bytes_are_frames_or_a_failure(data: bytes) -> None:
    sink = Recorder()
    try:
        feed(FrameReader(sink), data, [7])
    except ControlFailure:
        return
    assert sum(HEADER_BYTES + len(body) for _, body in sink.frames) <= len(data)


def test_a_payload_goes_straight_into_its_message() -> None:
    sink = Recorder()
    reader = FrameReader(sink)
    header = pack_header(FrameType.DATA, 1, MAX_FRAME, aux=MAX_FRAME)
    reader.get_buffer()[:HEADER_BYTES] = header
    reader.advance(HEADER_BYTES)
    assert reader.get_buffer().obj is sink.open[1]


def test_the_header_is_as_the_protocol_says() -> None:
    data = pack_header(FrameType.OPEN, 7, 258, flags=2, code=1, aux=3000)
    assert data.hex() == "020100000302010007000000b80b0000"
    assert unpack_header(data) == Header(258, 3, 2, 1, 7, 3000)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (pack_header(FrameType.FIN, 1, MAX_FRAME + 1), "limit"),
        (pack_header(FrameType.DATA, 1, 10, aux=9), "to come"),
    ],
)
def test_headers_that_break_the_protocol(header: bytes, words: str) -> None:
    with pytest.raises(ControlFailure, match=words):
        unpack_header(header)


@given(st.binary(max_size=64), st.text(max_size=50), st.binary(max_size=20))
def test_targets(peer: bytes, name: str, rest: bytes) -> None:
    data = pack_target(peer, name)
    assert unpack_target(memoryview(data + rest)) == ((peer, name), len(data))
    for cut in range(len(data)):
        with pytest.raises(ControlFailure):
            unpack_target(data[:cut])


@given(st.binary(max_size=40))
def test_any_bytes_are_a_target_or_a_failure(data: bytes) -> None:
    try:
        _, used = unpack_target(data)
    except ControlFailure:
        return
    assert used <= len(data)


def test_modes() -> None:
    assert [mode_of(code) for code in (1, 2, 3)] == [Mode.UNARY, Mode.MESSAGES, Mode.RAW]
    with pytest.raises(ControlFailure):
        mode_of(4)
