package wire

import (
	"bytes"
	"errors"
	"testing"
)

func TestStreamFramesGolden(t *testing.T) {
	// Captured from hivemind 1.1: two requests number=1, number=2, and their end.
	want := unhex(t, "00 0000000000000002 0801 00 0000000000000002 0802 01 0000000000000000")
	var got []byte
	for _, message := range []string{"\x08\x01", "\x08\x02"} {
		got = append(AppendFrameHead(got, MarkerMessage, uint64(len(message))), message...)
	}
	got = append(got, EndOfRequests[:]...)
	if !bytes.Equal(got, want) {
		t.Fatalf("\n%x\n%x", got, want)
	}
	marker, size, err := ParseFrameHead([FrameHeadSize]byte(want))
	if marker != MarkerMessage || size != 2 || err != nil {
		t.Errorf("%d %d %v", marker, size, err)
	}
}

func TestErrorFrameGolden(t *testing.T) {
	for text, want := range map[string]string{
		"":     "01 0000000000000002 0a00",
		"boom": `01 0000000000000006 0a04"boom"`,
	} {
		got := append(AppendErrorHead(nil, len(text)), text...)
		if !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("%q: %x", text, got)
		}
		marker, size, err := ParseFrameHead([FrameHeadSize]byte(got))
		if marker != MarkerError || int(size) != len(got)-FrameHeadSize || err != nil {
			t.Errorf("%q: %d %d %v", text, marker, size, err)
		}
		parsed, err := ParseError(got[FrameHeadSize:])
		if err != nil || parsed != text {
			t.Errorf("%q: %q %v", text, parsed, err)
		}
	}
}

func TestUnknownMarkerIsMalformed(t *testing.T) {
	if _, _, err := ParseFrameHead([FrameHeadSize]byte{2}); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}
