package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/node"
	"hivemind/p2pd/internal/wire"
)

// stranger is a node without the control side, which may send anything.
func stranger(t *testing.T, victim *daemon) *node.Node {
	t.Helper()
	n := startNode(t, testConfig())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Connect(ctx, peerAddr(victim)); err != nil {
		t.Fatal(err)
	}
	return n
}

func rawStream(t *testing.T, from *node.Node, to *daemon, name string) network.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := from.Open(ctx, to.node.ID(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Reset() })
	return s
}

func write(t *testing.T, s network.Stream, data []byte) {
	t.Helper()
	if _, err := s.Write(data); err != nil {
		t.Fatal(err)
	}
}

func envelope(name string, data []byte) []byte {
	req := wire.Request{Peer: []byte("callee"), Handler: name, CallID: [16]byte{1, 2, 3}}
	return append(wire.AppendRequest(nil, &req, len(data)), data...)
}

// readAnswer reads a whole answer as the reference's peers send it.
func readAnswer(t *testing.T, s network.Stream) (wire.Response, string) {
	t.Helper()
	ns := newNetStream(s, meter.New().Begin(meter.Out, s.Conn().RemotePeer(), "test"), "test")
	size, err := readSize(ns, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	message, err := readWhole(ns.in, size)
	if err != nil {
		t.Fatal(err)
	}
	res, body, err := wire.ParseResponse(message)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func TestUnaryQuirksOfTheReference(t *testing.T) {
	b := startDaemon(t, nil)
	b.listen("T.rpc_a", ModeUnary)
	b.listen("T.rpc_b", ModeUnary)
	from := stranger(t, b)

	t.Run("the name in the envelope decides", func(t *testing.T) {
		s := rawStream(t, from, b, "T.rpc_a")
		write(t, s, envelope("T.rpc_b", []byte("hi")))
		in, target, _ := b.acceptUnary()
		if target.name != "T.rpc_b" || !bytes.Equal(target.peer, []byte(from.ID())) {
			t.Errorf("%q %x", target.name, target.peer)
		}
		b.message(in, nil, 0)
		if res, body := readAnswer(t, s); res.IsError || body != "" || res.CallID != [16]byte{1, 2, 3} {
			t.Errorf("%+v %q", res, body)
		}
	})
	t.Run("an unknown name in the envelope is answered", func(t *testing.T) {
		s := rawStream(t, from, b, "T.rpc_a")
		write(t, s, envelope("T.rpc_unknown", nil))
		if res, body := readAnswer(t, s); !res.IsError || !strings.Contains(body, "protocol not supported") {
			t.Errorf("%+v %q", res, body)
		}
	})
	t.Run("fields in another order", func(t *testing.T) {
		s := rawStream(t, from, b, "T.rpc_a")
		inner := append([]byte("\x1a\x02hi\x12\x07T.rpc_a\x0a\x01p"), 0x28, 0x01)
		message := append([]byte{0x1a, byte(len(inner))}, inner...)
		message = append(append(message, 0x0a, 16), bytes.Repeat([]byte{7}, 16)...)
		write(t, s, append(binary.AppendUvarint(nil, uint64(len(message))), message...))
		in, _, request := b.acceptUnary()
		if string(request) != "hi" {
			t.Errorf("%q", request)
		}
		b.message(in, []byte("yes"), 0)
		if res, body := readAnswer(t, s); body != "yes" || res.CallID[0] != 7 {
			t.Errorf("%+v %q", res, body)
		}
	})
	for name, giveUp := range map[string]func(network.Stream) error{
		"half-close cancels":  network.Stream.CloseWrite,
		"close cancels":       network.Stream.Close,
		"reset cancels":       network.Stream.Reset,
		"extra bytes cancel ": func(s network.Stream) error { _, err := s.Write([]byte{0}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			s := rawStream(t, from, b, "T.rpc_a")
			write(t, s, envelope("T.rpc_a", []byte("hi")))
			in, _, _ := b.acceptUnary()
			if err := giveUp(s); err != nil {
				t.Fatal(err)
			}
			b.mustReset(in, CodeCancelled)
		})
	}
}

func TestStreamsThatEndWrongly(t *testing.T) {
	b := startDaemon(t, nil)
	b.listen("T.stream", ModeMessages)
	from := stranger(t, b)
	message := append(wire.AppendFrameHead(nil, wire.MarkerMessage, 2), "hi"...)
	for name, c := range map[string]struct {
		tail []byte
		code Code
	}{
		"end without marker":  {nil, CodeCancelled},
		"end in a head":       {[]byte{0, 0, 0}, CodeTruncated},
		"end in a message":    {wire.AppendFrameHead(nil, wire.MarkerMessage, 9), CodeTruncated},
		"unknown marker":      {bytes.Repeat([]byte{2}, 20), CodeMalformed},
		"message of 1 GiB":    {wire.AppendFrameHead(nil, wire.MarkerMessage, 1<<30), CodeTooLarge},
		"message of 2^63":     {wire.AppendFrameHead(nil, wire.MarkerMessage, 1<<63), CodeTooLarge},
		"error of 1 GiB":      {wire.AppendFrameHead(nil, wire.MarkerError, 1<<30), CodeTooLarge},
		"bytes after the end": {append(wire.EndOfRequests[:], 0), CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			s := rawStream(t, from, b, "T.stream")
			write(t, s, append(append([]byte{}, message...), c.tail...))
			in, _, _ := b.accept()
			b.mustReceive(in, []byte("hi"))
			if name == "bytes after the end" {
				b.mustFin(in)
			} else {
				_ = s.CloseWrite() // the daemon may have reset the stream already
			}
			b.mustReset(in, c.code)
		})
	}
	t.Run("an error of the caller is only the end", func(t *testing.T) {
		s := rawStream(t, from, b, "T.stream")
		write(t, s, append(message, "\x01\x00\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff"...))
		in, _, _ := b.accept()
		b.mustReceive(in, []byte("hi"))
		b.mustFin(in)
		b.message(in, []byte("yes"), 0)
		b.fin(in)
		got, err := io.ReadAll(s)
		if want := append(wire.AppendFrameHead(nil, wire.MarkerMessage, 3), "yes"...); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%x %v", got, err)
		}
	})
}

// TestGarbageCostsOnlyItsCall floods unary handlers with what is no call; the daemon's memory must not follow.
func TestGarbageCostsOnlyItsCall(t *testing.T) {
	b := startDaemon(t, nil)
	b.listen("T.rpc_a", ModeUnary)
	from := stranger(t, b)
	random := rand.New(rand.NewPCG(1, 2))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 300 {
		var data []byte
		switch i % 4 {
		case 0: // random bytes
			data = make([]byte, random.IntN(2000)+1)
			for i := range data {
				data[i] = byte(random.Uint32())
			}
		case 1: // a call cut short
			data = envelope("T.rpc_a", pattern(500))
			data = data[:random.IntN(len(data)-1)+1]
		case 2: // 1 GiB to come
			data = binary.AppendUvarint(nil, 1<<30)
		case 3: // 4 MiB to come in no known form
			data = append(binary.AppendUvarint(nil, 4<<20-1), pattern(3000)...)
		}
		s := rawStream(t, from, b, "T.rpc_a")
		write(t, s, data)
		_ = s.CloseWrite() // the daemon may have reset the stream already
		if answer, err := io.ReadAll(s); err == nil && len(answer) > 0 {
			t.Fatalf("garbage %d was answered: %x", i, answer)
		}
	}
	mustBeIdle(t, b)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}

	s := rawStream(t, from, b, "T.rpc_a")
	write(t, s, envelope("T.rpc_a", []byte("still there?")))
	in, _, _ := b.acceptUnary()
	b.message(in, []byte("yes"), 0)
	if _, body := readAnswer(t, s); body != "yes" {
		t.Errorf("%q", body)
	}
}

// TestAnswersThatAreNoAnswers: the callee is hostile.
func TestAnswersThatAreNoAnswers(t *testing.T) {
	a := startDaemon(t, nil)
	from := stranger(t, a)
	answers := map[string]struct {
		bytes []byte
		code  Code
	}{
		"nothing":          {nil, CodeRemoteReset},
		"huge":             {binary.AppendUvarint(nil, 1<<30), CodeTooLarge},
		"empty":            {[]byte{0}, CodeMalformed},
		"random":           {append([]byte{20}, pattern(20)...), CodeMalformed},
		"cut short":        {wire.AppendResponse(nil, &wire.Response{}, 100), CodeTruncated},
		"a request, sure":  {envelope("x", []byte("y")), CodeMalformed},
		"neither member":   {append([]byte{20, 0x0a, 16}, append(make([]byte, 16), 0x22, 0)...), CodeMalformed},
		"endless length ":  {bytes.Repeat([]byte{0xff}, 12), CodeTooLarge},
		"cut in its head ": {[]byte{30, 0x0a, 16, 1, 2}, CodeTruncated},
	}
	for name, c := range answers {
		from.Handle("T.rpc_"+name, func(s network.Stream) {
			_, _ = s.Read(make([]byte, 1000))
			_, _ = s.Write(c.bytes)
			_ = s.Close()
		})
		t.Run(name, func(t *testing.T) {
			a.mustReset(a.open(from.ID(), "T.rpc_"+name, ModeUnary, patience, []byte("x")), c.code)
		})
	}
}
