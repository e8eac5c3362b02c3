package wire

import (
	"encoding/binary"
	"fmt"
)

// A streaming call is a sequence of frames: marker byte, length as 8 bytes big-endian, payload.
const (
	// MarkerMessage begins a frame that holds one message.
	MarkerMessage = 0
	// MarkerError begins a frame with an RPCError. From the caller it only means the end of its requests, whatever it holds.
	MarkerError = 1
	// FrameHeadSize is the size of marker and length.
	FrameHeadSize = 9
	// MaxErrorSize bounds the RPCError of a peer.
	MaxErrorSize = 1 << 20
)

// EndOfRequests is the frame that ends a caller's requests; the stream stays open after it.
var EndOfRequests = [FrameHeadSize]byte{MarkerError}

// AppendFrameHead appends marker and length of a frame.
func AppendFrameHead(dst []byte, marker byte, size uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, marker), size)
}

// ParseFrameHead reads marker and length; other markers than the two known ones are malformed.
func ParseFrameHead(head [FrameHeadSize]byte) (marker byte, size uint64, err error) {
	if head[0] != MarkerMessage && head[0] != MarkerError {
		return 0, 0, fmt.Errorf("%w: stream frame with marker %d", ErrMalformed, head[0])
	}
	return head[0], binary.BigEndian.Uint64(head[1:]), nil
}

// AppendErrorHead appends the head of the frame that ends a failed call, up to the text of textSize bytes that must follow.
// An empty text is present on the wire as well.
func AppendErrorHead(dst []byte, textSize int) []byte {
	const tagMessage = 1<<3 | 2 // RPCError.message
	dst = AppendFrameHead(dst, MarkerError, uint64(fieldSize(textSize)))
	return appendTag(dst, tagMessage, textSize)
}

// ParseError reads an RPCError and returns its text.
func ParseError(message []byte) (string, error) {
	const tagMessage = 1<<3 | 2
	text := ""
	err := eachField(message, func(tag uint64, value []byte) {
		if tag == tagMessage {
			text = string(value)
		}
	})
	return text, err
}
