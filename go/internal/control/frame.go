package control

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the protocol.
const (
	// Version is the protocol's; both sides are built together, so any difference is an error.
	Version = 2
	// headSize is the size of a frame's header.
	headSize = 16
	// MaxPayload bounds the payload of a frame: 256 KiB of a user, and what stands around them in their message.
	MaxPayload = 260 << 10
	// Window is how much credit a side has on a stream before it waits for WINDOW: enough for a message of 1 MiB, with what it costs.
	Window = 1<<20 + 32<<10
	// frameCost is what a DATA frame, or a first message inside OPEN or ACCEPT, costs besides its payload: what it takes to keep it, so
	// that empty messages are bounded too.
	frameCost = 64
	// leastPart: no smaller part of a message is sent for want of credit, as small frames cost more than the wait.
	leastPart = MaxPayload / 4
	// portion is how much credit is granted anew at least: a frame for each would be too many.
	portion = 192 << 10
)

type frameType uint8

const (
	typeRequest  frameType = 1
	typeResponse frameType = 2
	typeOpen     frameType = 3
	typeOpened   frameType = 4
	typeAccept   frameType = 5
	typeData     frameType = 6
	typeFin      frameType = 7
	typeReset    frameType = 8
	typeWindow   frameType = 9
	typeEvent    frameType = 10
)

const (
	flagError uint8 = 1 // RESPONSE, DATA: the payload is an error
	flagFirst uint8 = 2 // OPEN, ACCEPT: the first message is inside
)

// Mode is how the bytes of a stream are messages.
type Mode uint16

// Modes of streams.
const (
	ModeUnary    Mode = 1
	ModeMessages Mode = 2
	ModeRaw      Mode = 3
)

func (m Mode) valid() bool { return m >= ModeUnary && m <= ModeRaw }

// header is a frame without its payload.
type header struct {
	length uint32
	kind   frameType
	flags  uint8
	code   uint16
	stream uint32
	aux    uint32
}

func (h *header) put(dst *[headSize]byte) {
	binary.LittleEndian.PutUint32(dst[0:], h.length)
	dst[4], dst[5] = byte(h.kind), h.flags
	binary.LittleEndian.PutUint16(dst[6:], h.code)
	binary.LittleEndian.PutUint32(dst[8:], h.stream)
	binary.LittleEndian.PutUint32(dst[12:], h.aux)
}

func parseHeader(src *[headSize]byte) (header, error) {
	h := header{
		length: binary.LittleEndian.Uint32(src[0:]),
		kind:   frameType(src[4]),
		flags:  src[5],
		code:   binary.LittleEndian.Uint16(src[6:]),
		stream: binary.LittleEndian.Uint32(src[8:]),
		aux:    binary.LittleEndian.Uint32(src[12:]),
	}
	if h.length > MaxPayload {
		return h, fmt.Errorf("%w: a payload of %d bytes", errProtocol, h.length)
	}
	if h.kind == typeData && h.aux < h.length {
		return h, fmt.Errorf("%w: DATA with %d bytes, %d to come", errProtocol, h.length, h.aux)
	}
	return h, nil
}

// target is who and what a stream is opened for.
type target struct {
	peer []byte
	name string
}

func targetSize(t *target) int { return 4 + len(t.peer) + len(t.name) }

func appendTarget(dst []byte, t *target) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(t.peer)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(t.name)))
	dst = append(dst, t.peer...)
	return append(dst, t.name...)
}

// parseTarget returns the target and the bytes after it; peer shares memory with payload.
func parseTarget(payload []byte) (t target, rest []byte, err error) {
	if len(payload) < 4 {
		return t, nil, fmt.Errorf("%w: a target of %d bytes", errProtocol, len(payload))
	}
	peerSize := int(binary.LittleEndian.Uint16(payload))
	nameSize := int(binary.LittleEndian.Uint16(payload[2:]))
	payload = payload[4:]
	if peerSize+nameSize > len(payload) {
		return t, nil, fmt.Errorf("%w: a target cut short", errProtocol)
	}
	t.peer = payload[:peerSize:peerSize]
	t.name = string(payload[peerSize : peerSize+nameSize])
	return t, payload[peerSize+nameSize:], nil
}
