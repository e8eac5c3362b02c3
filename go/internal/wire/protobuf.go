package wire

import (
	"encoding/binary"
	"fmt"
)

// Protobuf wire types.
const (
	typeVarint = 0
	type64     = 1
	typeBytes  = 2
	type32     = 5
)

// eachField calls visit for every length-delimited field of a protobuf message and skips the others. The last of several
// fields with one number counts, as protobuf has it.
func eachField(message []byte, visit func(tag uint64, value []byte)) error {
	for len(message) > 0 {
		tag, n := binary.Uvarint(message)
		if n <= 0 || tag>>3 == 0 {
			return fmt.Errorf("%w: bad field tag", ErrMalformed)
		}
		message = message[n:]
		size, err := fieldLength(tag, &message)
		if err != nil {
			return err
		}
		if size > uint64(len(message)) {
			return fmt.Errorf("%w: a field of %d bytes, %d left", ErrMalformed, size, len(message))
		}
		if tag&7 == typeBytes {
			visit(tag, message[:size:size])
		}
		message = message[size:]
	}
	return nil
}

// fieldLength returns how many bytes the value after a tag has, and moves message to it.
func fieldLength(tag uint64, message *[]byte) (uint64, error) {
	switch tag & 7 {
	case typeVarint:
		_, n := binary.Uvarint(*message)
		if n <= 0 {
			return 0, fmt.Errorf("%w: bad varint", ErrMalformed)
		}
		return uint64(n), nil
	case type64:
		return 8, nil
	case type32:
		return 4, nil
	case typeBytes:
		size, n := binary.Uvarint(*message)
		if n <= 0 {
			return 0, fmt.Errorf("%w: bad length", ErrMalformed)
		}
		*message = (*message)[n:]
		return size, nil
	}
	return 0, fmt.Errorf("%w: wire type %d", ErrMalformed, tag&7)
}

// cursor reads the canonical order of an envelope from its first bytes. Its methods return false when the bytes are not
// canonical or end too early; the cursor is then unusable, but for a failed tail, which does not move it.
type cursor struct {
	buf []byte // the first bytes of a message
	end int    // size of the whole message
	pos int
}

func (c *cursor) lengthAfter(tag byte) (size, pos int, ok bool) {
	if c.pos >= len(c.buf) || c.buf[c.pos] != tag {
		return 0, 0, false
	}
	value, n := binary.Uvarint(c.buf[c.pos+1:])
	if n <= 0 || value > uint64(c.end) {
		return 0, 0, false
	}
	return int(value), c.pos + 1 + n, true
}

func (c *cursor) bytes(tag byte) ([]byte, bool) {
	size, pos, ok := c.lengthAfter(tag)
	if !ok || size > len(c.buf)-pos {
		return nil, false
	}
	c.pos = pos + size
	return c.buf[pos:c.pos:c.pos], true
}

func (c *cursor) callID(id *[CallIDSize]byte) bool {
	value, ok := c.bytes(tagCallID)
	return ok && copy(id[:], value) == CallIDSize && len(value) == CallIDSize
}

// tail accepts a field that reaches to the very end of the message, and moves to its first byte.
func (c *cursor) tail(tag byte) bool {
	size, pos, ok := c.lengthAfter(tag)
	if !ok || size != c.end-pos {
		return false
	}
	c.pos = pos
	return true
}
