package wire

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// field is what a parser of protobuf finds.
type field struct {
	tag   uint64
	value []byte
}

// reference parses with Google's parser; groups is set if the message has any, which hivemind's messages have not.
func reference(message []byte) (fields []field, groups bool, err error) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil, groups, protowire.ParseError(n)
		}
		groups = groups || kind == protowire.StartGroupType || kind == protowire.EndGroupType
		size := protowire.ConsumeFieldValue(number, kind, message[n:])
		if size < 0 {
			return nil, groups, protowire.ParseError(size)
		}
		if kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message[n:])
			fields = append(fields, field{protowire.EncodeTag(number, kind), value})
		}
		message = message[n+size:]
	}
	return fields, groups, nil
}

// FuzzProtobuf compares the parser with Google's.
func FuzzProtobuf(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x0a\x02hi\x10\x96\x01\x1d1234\x2112345678"))
	f.Add([]byte("\x0a\x05hi"))
	f.Add([]byte("\x0b\x0c"))
	f.Add([]byte("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, message []byte) {
		var found []field
		err := eachField(message, func(tag uint64, value []byte) { found = append(found, field{tag, value}) })
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("an error of another kind: %v", err)
		}
		want, groups, wantErr := reference(message)
		switch {
		case wantErr == nil && !groups && err != nil:
			t.Fatalf("refused what is right: %v", err)
		case err == nil && wantErr != nil:
			// Numbers beyond protobuf's 29 bits are no field of ours, and skipped.
			if !hasLargeNumber(message) {
				t.Fatalf("accepted what is wrong: %v", wantErr)
			}
		case err == nil && wantErr == nil:
			if len(found) != len(want) {
				t.Fatalf("%d fields, not %d", len(found), len(want))
			}
			for i := range want {
				if found[i].tag != want[i].tag || !bytes.Equal(found[i].value, want[i].value) {
					t.Fatalf("field %d: %+v, not %+v", i, found[i], want[i])
				}
			}
		}
	})
}

func hasLargeNumber(message []byte) bool {
	large := false
	for len(message) > 0 {
		tag, n := protowire.ConsumeVarint(message)
		if n < 0 {
			return large
		}
		large = large || tag>>3 > uint64(protowire.MaxValidNumber)
		message = message[n:]
		size, err := fieldLength(tag, &message)
		if err != nil || size > uint64(len(message)) {
			return large
		}
		message = message[size:]
	}
	return large
}

// FuzzRequest: the two ways to read an envelope agree, and what is read can be written again.
func FuzzRequest(f *testing.F) {
	req := Request{CallID: [CallIDSize]byte{1, 2}, Peer: []byte("peer"), Handler: "T.rpc_x"}
	envelope := append(AppendRequest(nil, &req, 4), "data"...)
	f.Add(envelope[1:], uint16(0))
	f.Add(envelope[1:len(envelope)-2], uint16(3))
	f.Add([]byte("\x1a\x11\x1a\x02hi\x12\x07T.rpc_a\x0a\x01p"), uint16(0))
	f.Fuzz(func(t *testing.T, message []byte, cut uint16) {
		whole, data, err := ParseRequest(message)
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("an error of another kind: %v", err)
		}
		head := message[:max(0, len(message)-int(cut))]
		quick, used, ok := SplitRequest(head, len(message))
		if ok {
			if err != nil {
				t.Fatalf("the quick way accepts what the other refuses: %v", err)
			}
			if used > len(head) || !bytes.Equal(message[used:], data) {
				t.Fatalf("data begins at %d of %d: %q, not %q", used, len(head), message[used:], data)
			}
			if quick.CallID != whole.CallID || quick.Handler != whole.Handler || !bytes.Equal(quick.Peer, whole.Peer) {
				t.Fatalf("%+v, not %+v", quick, whole)
			}
		}
		if err != nil {
			return
		}
		again := append(AppendRequest(nil, &whole, len(data)), data...)
		body, n := protowire.ConsumeBytes(again)
		if n != len(again) || len(body) != RequestSize(&whole, len(data)) {
			t.Fatalf("%d bytes with a length of %d, RequestSize says %d", len(again), len(body), RequestSize(&whole, len(data)))
		}
		second, dataAgain, err := ParseRequest(body)
		if err != nil || second.Handler != whole.Handler || !bytes.Equal(second.Peer, whole.Peer) || !bytes.Equal(dataAgain, data) {
			t.Fatalf("written and read again: %+v %q, %v", second, dataAgain, err)
		}
		if _, used, ok := SplitRequest(body, len(body)); !ok || !bytes.Equal(body[used:], data) {
			t.Fatal("what was written is not read the quick way")
		}
	})
}

// FuzzResponse is FuzzRequest for answers.
func FuzzResponse(f *testing.F) {
	answer := append(AppendResponse(nil, &Response{CallID: [CallIDSize]byte{1, 2}}, 4), "data"...)
	failed := append(AppendResponse(nil, &Response{IsError: true}, 3), "why"...)
	f.Add(answer[1:], uint16(0))
	f.Add(failed[1:], uint16(1))
	f.Add(failed[1:len(failed)-1], uint16(0))
	f.Fuzz(func(t *testing.T, message []byte, cut uint16) {
		whole, body, err := ParseResponse(message)
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("an error of another kind: %v", err)
		}
		head := message[:max(0, len(message)-int(cut))]
		quick, used, ok := SplitResponse(head, len(message))
		if ok && (err != nil || quick != whole || used > len(head) || !bytes.Equal(message[used:], body)) {
			t.Fatalf("the quick way: %+v, body from %d; the other: %+v, %q, %v", quick, used, whole, body, err)
		}
		if err != nil {
			return
		}
		again, n := protowire.ConsumeBytes(append(AppendResponse(nil, &whole, len(body)), body...))
		second, bodyAgain, err := ParseResponse(again)
		if n < 0 || len(again) != ResponseSize(len(body)) || err != nil || second != whole || !bytes.Equal(bodyAgain, body) {
			t.Fatalf("written and read again: %+v %q, %v", second, bodyAgain, err)
		}
	})
}

// FuzzStreamFrames: heads of frames, and the errors in them.
func FuzzStreamFrames(f *testing.F) {
	f.Add(append(AppendErrorHead(nil, 3), "why"...))
	f.Add(EndOfRequests[:])
	f.Add(AppendFrameHead(nil, MarkerMessage, 1<<63))
	f.Add([]byte("\x02\x00\x00\x00\x00\x00\x00\x00\x01x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < FrameHeadSize {
			return
		}
		head := [FrameHeadSize]byte(data)
		marker, size, err := ParseFrameHead(head)
		if known := head[0] <= MarkerError; known != (err == nil) {
			t.Fatalf("marker %d: %v", head[0], err)
		}
		if err != nil {
			return
		}
		if again := AppendFrameHead(nil, marker, size); !bytes.Equal(again, head[:]) {
			t.Fatalf("%x, not %x", again, head)
		}
		text, err := ParseError(data[FrameHeadSize:])
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		written := append(AppendErrorHead(nil, len(text)), text...)
		if again, err := ParseError(written[FrameHeadSize:]); err != nil || again != text {
			t.Fatalf("written and read again: %q, %v", again, err)
		}
	})
}
