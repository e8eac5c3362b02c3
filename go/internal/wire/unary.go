// Package wire holds the network formats shared with hivemind 1.1: the envelope of unary calls and the frames of
// streaming calls. It is pure: bytes in, values out, no stream, no clock.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed is the root of every complaint about a peer's bytes.
var ErrMalformed = errors.New("malformed message")

// CallIDSize is the size of a call's identifier, a UUID. The callee drops envelopes with any other size.
const CallIDSize = 16

// MaxEnvelopeHead bounds the part of an envelope before its data: call id, peer id, handler name and the lengths.
const MaxEnvelopeHead = 2048

// Protobuf tags of the envelope (field number << 3 | wire type 2).
const (
	tagCallID        = 1<<3 | 2 // PersistentConnectionRequest.callId
	tagCallUnary     = 3<<3 | 2 // PersistentConnectionRequest.callUnary
	tagUnaryResponse = 4<<3 | 2 // PersistentConnectionRequest.unaryResponse
	tagPeer          = 1<<3 | 2 // CallUnaryRequest.peer
	tagProto         = 2<<3 | 2 // CallUnaryRequest.proto
	tagData          = 3<<3 | 2 // CallUnaryRequest.data
	tagResponse      = 1<<3 | 2 // CallUnaryResponse.response
	tagError         = 2<<3 | 2 // CallUnaryResponse.error
)

// Request is the head of a unary call: everything but its data.
type Request struct {
	CallID [CallIDSize]byte
	// Peer is the callee as the caller sees it; the callee takes the authenticated caller instead.
	Peer []byte
	// Handler is the name that decides who runs the call; it equals the stream's protocol id for honest callers.
	Handler string
}

// Response is the head of an answer: everything but its body.
type Response struct {
	CallID [CallIDSize]byte
	// IsError tells whether the body is the text of an error.
	IsError bool
}

// RequestSize is the size of an envelope without its length prefix.
func RequestSize(req *Request, dataSize int) int {
	call := requestCallSize(req, dataSize)
	return fieldSize(CallIDSize) + fieldSize(call)
}

// AppendRequest appends the length prefix and the envelope up to its data, dataSize bytes that must follow.
func AppendRequest(dst []byte, req *Request, dataSize int) []byte {
	call := requestCallSize(req, dataSize)
	dst = binary.AppendUvarint(dst, uint64(fieldSize(CallIDSize)+fieldSize(call)))
	dst = appendBytes(dst, tagCallID, req.CallID[:])
	dst = appendTag(dst, tagCallUnary, call)
	dst = appendBytes(dst, tagPeer, req.Peer)
	dst = appendTag(dst, tagProto, len(req.Handler))
	dst = append(dst, req.Handler...)
	return appendTag(dst, tagData, dataSize)
}

// ResponseSize is the size of an answer without its length prefix.
func ResponseSize(bodySize int) int {
	return fieldSize(CallIDSize) + fieldSize(fieldSize(bodySize))
}

// AppendResponse appends the length prefix and the answer up to its body, bodySize bytes that must follow. An empty body
// is still present on the wire: an answer with neither member set leaves hivemind 1.1 callers hanging.
func AppendResponse(dst []byte, res *Response, bodySize int) []byte {
	dst = binary.AppendUvarint(dst, uint64(ResponseSize(bodySize)))
	dst = appendBytes(dst, tagCallID, res.CallID[:])
	dst = appendTag(dst, tagUnaryResponse, fieldSize(bodySize))
	if res.IsError {
		return appendTag(dst, tagError, bodySize)
	}
	return appendTag(dst, tagResponse, bodySize)
}

// SplitRequest reads the head of an envelope of size bytes from its first bytes. ok is true if the envelope has the
// canonical order, in which the data is its tail: the data is then the bytes from head[used:] to the end of the envelope.
// Other encoders may order fields differently; ParseRequest reads those from the whole envelope.
func SplitRequest(head []byte, size int) (req Request, used int, ok bool) {
	c := cursor{buf: head, end: size}
	if !c.callID(&req.CallID) || !c.tail(tagCallUnary) {
		return Request{}, 0, false
	}
	peerID, ok1 := c.bytes(tagPeer)
	name, ok2 := c.bytes(tagProto)
	if !ok1 || !ok2 || !c.tail(tagData) {
		return Request{}, 0, false
	}
	req.Peer, req.Handler = peerID, string(name)
	return req, c.pos, true
}

// SplitResponse is SplitRequest for an answer.
func SplitResponse(head []byte, size int) (res Response, used int, ok bool) {
	c := cursor{buf: head, end: size}
	if !c.callID(&res.CallID) || !c.tail(tagUnaryResponse) {
		return Response{}, 0, false
	}
	if c.tail(tagResponse) {
		return res, c.pos, true
	}
	if c.tail(tagError) {
		res.IsError = true
		return res, c.pos, true
	}
	return Response{}, 0, false
}

// ParseRequest reads a whole envelope with its fields in any order; data shares memory with message.
func ParseRequest(message []byte) (req Request, data []byte, err error) {
	call, id, err := parseEnvelope(message, tagCallUnary)
	if err != nil {
		return Request{}, nil, err
	}
	var hasPeer, hasName, hasData bool
	err = eachField(call, func(tag uint64, value []byte) {
		switch tag {
		case tagPeer:
			req.Peer, hasPeer = value, true
		case tagProto:
			req.Handler, hasName = string(value), true
		case tagData:
			data, hasData = value, true
		}
	})
	if err != nil {
		return Request{}, nil, err
	}
	if !hasPeer || !hasName || !hasData {
		return Request{}, nil, fmt.Errorf("%w: a unary call lacks a required field", ErrMalformed)
	}
	req.CallID = id
	return req, data, nil
}

// ParseResponse reads a whole answer with its fields in any order; body shares memory with message.
func ParseResponse(message []byte) (res Response, body []byte, err error) {
	answer, id, err := parseEnvelope(message, tagUnaryResponse)
	if err != nil {
		return Response{}, nil, err
	}
	found := false
	err = eachField(answer, func(tag uint64, value []byte) {
		switch tag {
		case tagResponse:
			body, found, res.IsError = value, true, false
		case tagError:
			body, found, res.IsError = value, true, true
		}
	})
	if err != nil {
		return Response{}, nil, err
	}
	if !found {
		return Response{}, nil, fmt.Errorf("%w: an answer without response and error", ErrMalformed)
	}
	res.CallID = id
	return res, body, nil
}

func parseEnvelope(message []byte, want uint64) (inner []byte, id [CallIDSize]byte, err error) {
	hasID, hasInner := false, false
	idOK := true
	err = eachField(message, func(tag uint64, value []byte) {
		switch tag {
		case tagCallID:
			hasID, idOK = true, len(value) == CallIDSize
			copy(id[:], value)
		case want:
			inner, hasInner = value, true
		}
	})
	switch {
	case err != nil:
		return nil, id, err
	case !hasID || !idOK:
		return nil, id, fmt.Errorf("%w: the call id must have %d bytes", ErrMalformed, CallIDSize)
	case !hasInner:
		return nil, id, fmt.Errorf("%w: not the expected kind of envelope", ErrMalformed)
	}
	return inner, id, nil
}

func requestCallSize(req *Request, dataSize int) int {
	return fieldSize(len(req.Peer)) + fieldSize(len(req.Handler)) + fieldSize(dataSize)
}

// fieldSize is the size of a length-delimited field whose number is below 16.
func fieldSize(n int) int { return 1 + uvarintSize(uint64(n)) + n }

func uvarintSize(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

func appendTag(dst []byte, tag byte, size int) []byte {
	return binary.AppendUvarint(append(dst, tag), uint64(size))
}

func appendBytes(dst []byte, tag byte, value []byte) []byte {
	return append(appendTag(dst, tag, len(value)), value...)
}
