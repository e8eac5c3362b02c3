package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

var (
	callID = [CallIDSize]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	callee = bytes.Repeat([]byte{0xAB}, 38)
)

const callIDHex = "000102030405060708090a0b0c0d0e0f"

// unhex reads hexadecimal text with spaces; parts in quotes are themselves.
func unhex(t *testing.T, text string) []byte {
	t.Helper()
	var out []byte
	for i, part := range strings.Split(text, `"`) {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		raw, err := hex.DecodeString(strings.ReplaceAll(part, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, raw...)
	}
	return out
}

func TestRequestGolden(t *testing.T) {
	// Captured from hivemind 1.1: length, callId, callUnary{peer, proto, data}.
	want := unhex(t, "52 0a10"+callIDHex+" 1a3e 0a26"+strings.Repeat("ab", 38)+` 120b"Foo.rpc_raw" 1a07"payload"`)
	req := Request{CallID: callID, Peer: callee, Handler: "Foo.rpc_raw"}
	got := append(AppendRequest(nil, &req, len("payload")), "payload"...)
	if !bytes.Equal(got, want) {
		t.Fatalf("\n%x\n%x", got, want)
	}
	if size := RequestSize(&req, len("payload")); size != len(want)-1 {
		t.Errorf("size %d, not %d", size, len(want)-1)
	}
	message := want[1:]
	split, used, ok := SplitRequest(message[:len(message)-3], len(message))
	if !ok || string(message[used:]) != "payload" || split.Handler != req.Handler || split.CallID != callID {
		t.Errorf("split: %+v %d %v", split, used, ok)
	}
	parsed, data, err := ParseRequest(message)
	if err != nil || string(data) != "payload" || !bytes.Equal(parsed.Peer, callee) || parsed.Handler != req.Handler {
		t.Errorf("parsed: %+v %q %v", parsed, data, err)
	}
}

func TestResponseGolden(t *testing.T) {
	for _, c := range []struct {
		isError    bool
		body, want string
	}{
		{false, "\x08\x02", "18 0a10" + callIDHex + " 2204 0a02 0802"},
		{false, "", "16 0a10" + callIDHex + " 2202 0a00"},
		{true, "ValueError('boom')", "28 0a10" + callIDHex + ` 2214 1212"ValueError('boom')"`},
	} {
		want := unhex(t, c.want)
		got := append(AppendResponse(nil, &Response{CallID: callID, IsError: c.isError}, len(c.body)), c.body...)
		if !bytes.Equal(got, want) {
			t.Errorf("%q:\n%x\n%x", c.body, got, want)
		}
		res, used, ok := SplitResponse(want[1:], len(want)-1)
		if !ok || res.IsError != c.isError || string(want[1+used:]) != c.body {
			t.Errorf("split %q: %+v %v", c.body, res, ok)
		}
		res, body, err := ParseResponse(want[1:])
		if err != nil || res.IsError != c.isError || string(body) != c.body || res.CallID != callID {
			t.Errorf("parsed %q: %+v %q %v", c.body, res, body, err)
		}
	}
}

func TestOtherFieldOrderNeedsTheWholeMessage(t *testing.T) {
	message := unhex(t, `1a11 1a07"payload" 1201"F" 0a03 010203 0a10`+callIDHex)
	if _, _, ok := SplitRequest(message, len(message)); ok {
		t.Error("split accepted data that is not the tail")
	}
	req, data, err := ParseRequest(message)
	if err != nil || string(data) != "payload" || req.Handler != "F" || !bytes.Equal(req.Peer, []byte{1, 2, 3}) {
		t.Errorf("%+v %q %v", req, data, err)
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	message := unhex(t, "7801 0a10"+callIDHex+" 7d01020304 790102030405060708 2206 1801 0a02 0802")
	res, body, err := ParseResponse(message)
	if err != nil || res.IsError || string(body) != "\x08\x02" {
		t.Errorf("%+v %x %v", res, body, err)
	}
}

func TestMalformedRequests(t *testing.T) {
	for name, text := range map[string]string{
		"empty":               "",
		"no call id":          `1a0e 0a03 010203 1201"F" 1a04"data"`,
		"short call id":       `0a02 0001 1a0e 0a03 010203 1201"F" 1a04"data"`,
		"no data":             "0a10" + callIDHex + ` 1a08 0a03 010203 1201"F"`,
		"no handler":          "0a10" + callIDHex + ` 1a0b 0a03 010203 1a04"data"`,
		"no peer":             "0a10" + callIDHex + ` 1a09 1201"F" 1a04"data"`,
		"an answer":           "0a10" + callIDHex + " 2204 0a02 0802",
		"length over the end": "0a10" + callIDHex + " 1aff01 0a",
		"huge length":         "0a10" + callIDHex + " 1affffffffffffffffff01",
		"group":               "0b",
		"field number 0":      "02 00",
		"endless varint":      "ffffffffffffffffffffffff",
	} {
		if _, _, err := ParseRequest(unhex(t, text)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := ParseResponse(unhex(t, "0a10"+callIDHex+" 2200")); !errors.Is(err, ErrMalformed) {
		t.Errorf("an answer with neither member: %v", err)
	}
}
