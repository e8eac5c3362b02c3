package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/node"
	"hivemind/p2pd/internal/wire"
)

// Limits of the daemon under the fuzzer, within reach of its inputs.
const (
	fuzzMaxMessage = 3000
	fuzzMaxUnary   = 3000
)

func startFuzzed(f *testing.F) (*daemon, *probe, *node.Node) {
	victim := startDaemon(f, func(cfg *config.Config) {
		cfg.MaxMessage, cfg.MaxUnary = fuzzMaxMessage, fuzzMaxUnary
		cfg.FloodLimit = 0 // or the fuzzer would soon be refused all
	})
	client := newProbe(f, victim)
	from := startNode(f, testConfig())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := from.Connect(ctx, peerAddr(victim)); err != nil {
		f.Fatal(err)
	}
	return victim, client, from
}

// openTo opens a stream of a stranger to the daemon and writes to it; the daemon may refuse the rest at any time.
func openTo(t *testing.T, from *node.Node, victim *daemon, name string, data []byte) network.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := from.Open(ctx, victim.node.ID(), name)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.SetDeadline(time.Now().Add(patience))
	_, _ = s.Write(data)
	return s
}

// incoming is what a client is given of one stream: whole messages, and how it ended.
type incoming struct {
	messages [][]byte
	failed   bool // the last message is an error
	fin      bool
	fault    Code
}

// accept waits for the stream of the next call.
func (p *probe) accept(t *testing.T) event {
	t.Helper()
	_ = p.sock.SetDeadline(time.Now().Add(patience))
	for {
		ev := p.receiveAny(t)
		if ev.kind == typeAccept {
			return ev
		}
	}
}

// collect reads a stream until FIN, RESET or an error, or its first message if once is set.
func (p *probe) collect(t *testing.T, stream uint32, once bool) (got incoming) {
	t.Helper()
	_ = p.sock.SetDeadline(time.Now().Add(patience))
	var message []byte
	for got.fault == 0 && !got.fin && !got.failed && !(once && len(got.messages) > 0) {
		ev := p.receive(t, stream)
		switch ev.kind {
		case typeData:
			message = append(message, ev.payload...)
			if ev.aux == ev.length {
				got.messages, message = append(got.messages, message), nil
				got.failed = ev.flags&flagError != 0
			}
			p.send(t, header{kind: typeWindow, stream: stream, aux: ev.length + frameCost}, nil)
		case typeFin:
			got.fin = true
		case typeReset:
			got.fault = Code(ev.code)
		case typeOpened, typeWindow:
		default:
			t.Fatalf("frame type %d", ev.kind)
		}
	}
	return got
}

// parsedStream is what the bytes of a stream mean.
type parsedStream struct {
	messages [][]byte
	whole    bool // all bytes are frames
	ended    bool // an error frame came: from a caller the end of its requests
	readable bool // it is an RPCError
	text     string
	rest     []byte // after the error frame
}

func parseStream(data []byte) (p parsedStream) {
	for len(data) >= wire.FrameHeadSize {
		size := binary.BigEndian.Uint64(data[1:])
		body := data[wire.FrameHeadSize:]
		if data[0] > 1 || data[0] == 0 && size > fuzzMaxMessage || size > uint64(len(body)) {
			return p
		}
		if data[0] == 1 {
			text, err := wire.ParseError(body[:size])
			p.ended, p.readable, p.text, p.rest = true, err == nil, text, body[size:]
			return p
		}
		p.messages = append(p.messages, body[:size])
		data = body[size:]
	}
	p.whole = len(data) == 0
	return p
}

func sameMessages(t *testing.T, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d messages, not %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("message %d is %q, not %q", i, got[i], want[i])
		}
	}
}

func streamSeeds(f *testing.F) {
	message := append(wire.AppendFrameHead(nil, wire.MarkerMessage, 2), "hi"...)
	f.Add([]byte{}, false)
	f.Add(append(bytes.Repeat(message, 3), wire.EndOfRequests[:]...), true)
	f.Add(append(append(message, wire.EndOfRequests[:]...), 0), true)
	f.Add(append(append([]byte{}, message...), append(wire.AppendErrorHead(nil, 3), "why"...)...), true)
	f.Add(wire.AppendFrameHead(nil, wire.MarkerMessage, 9), true)
	f.Add(append(wire.AppendFrameHead(nil, wire.MarkerMessage, 0), wire.AppendFrameHead(nil, wire.MarkerMessage, 1<<63)...), false)
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff"), true)
}

// FuzzPeerStream: a peer's bytes for a handler of streams arrive as the messages that they are, and no others.
func FuzzPeerStream(f *testing.F) {
	victim, client, from := startFuzzed(f)
	client.ask(f, `{"op":"listen","name":"F.in","mode":2}`)
	streamSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, patient bool) {
		want := parseStream(data)
		inOrder := patient && want.ended && len(want.rest) == 0
		s := openTo(t, from, victim, "F.in", data)
		if !inOrder {
			_ = s.CloseWrite() // the daemon may have reset the stream already
		}
		stream := client.accept(t).stream
		got := client.collect(t, stream, false)
		sameMessages(t, got.messages, want.messages)
		if got.failed || got.fin && !want.ended {
			t.Fatalf("an end that did not come: %+v", got)
		}
		if inOrder && !got.fin {
			t.Fatalf("RESET %d instead of the end", got.fault)
		}
		if got.fin {
			client.send(t, header{kind: typeFin, stream: stream}, nil)
		}
		answer, err := io.ReadAll(s) // until the daemon has ended the stream, well or not
		if len(answer) > 0 || inOrder && err != nil {
			t.Fatalf("the peer was told %q, %v", answer, err)
		}
		_ = s.Close()
		eventually(t, "nothing is under way", func() bool { return victim.server.active.Load() == 0 })
	})
}

// answering makes a peer answer each stream with what comes from the channel, byte for byte.
func answering(from *node.Node) chan<- []byte {
	answers := make(chan []byte, 1)
	from.Handle("F.out", func(s network.Stream) {
		_ = s.SetDeadline(time.Now().Add(patience))
		_, _ = s.Write(<-answers)
		_ = s.CloseWrite()
		_, _ = io.Copy(io.Discard, s)
		_ = s.Close()
	})
	return answers
}

// FuzzPeerAnswers: what a called peer sends on a stream arrives as the messages and the end that it is.
func FuzzPeerAnswers(f *testing.F) {
	victim, client, from := startFuzzed(f)
	answers := answering(from)
	streamSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, _ bool) {
		want := parseStream(data)
		answers <- data
		stream := client.open(t, from, "F.out", ModeMessages, nil)
		got := client.collect(t, stream, false)
		messages := want.messages
		switch {
		case want.ended && want.readable:
			if !got.failed {
				t.Fatalf("no error, but %+v", got)
			}
			messages = append(messages, []byte(want.text))
		case got.failed:
			t.Fatal("an error that did not come")
		case got.fin != (want.whole && !want.ended):
			t.Fatalf("an end in order: %t; RESET %d", got.fin, got.fault)
		}
		sameMessages(t, got.messages, messages)
		if got.fin {
			client.send(t, header{kind: typeFin, stream: stream}, nil)
		}
		eventually(t, "nothing is under way", func() bool { return victim.server.active.Load() == 0 })
	})
}

// envelopeOf returns the first envelope in data, and whether it is all there; limit and length are checked as the daemon should.
func envelopeOf(data []byte) (message []byte, whole bool) {
	size, n := binary.Uvarint(data)
	if n <= 0 || n > 5 || size == 0 || size > fuzzMaxUnary || size > uint64(len(data)-n) {
		return nil, false
	}
	return data[n : n+int(size)], n+int(size) == len(data)
}

func unarySeeds(f *testing.F) {
	answer := append(wire.AppendResponse(nil, &wire.Response{}, 2), "yo"...)
	f.Add(envelope("F.in", []byte("hi")), true)
	f.Add(envelope("F.in", make([]byte, 2500)), true)
	f.Add(append(envelope("F.in", nil), 0), true)
	f.Add(envelope("F.other", []byte("hi")), true)
	f.Add(envelope("F.in", []byte("hi"))[:20], false)
	f.Add([]byte("\x14\x1a\x10\x1a\x02hi\x12\x04F.in\x0a\x04peer"), false)
	f.Add(answer, true)
	f.Add(answer[:len(answer)-1], true)
	f.Add(append(wire.AppendResponse(nil, &wire.Response{IsError: true}, 3), "why"...), true)
	f.Add([]byte{0}, true)
	f.Add(bytes.Repeat([]byte{0xff}, 12), true)
}

// FuzzPeerRequest: a peer's bytes for a handler of unary calls are the call that they are, or none.
func FuzzPeerRequest(f *testing.F) {
	victim, client, from := startFuzzed(f)
	client.ask(f, `{"op":"listen","name":"F.in","mode":1}`)
	unarySeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, patient bool) {
		message, alone := envelopeOf(data)
		req, request, err := wire.ParseRequest(message)
		isCall, patient := err == nil, patient && alone && err == nil
		s := openTo(t, from, victim, "F.in", data)
		if !patient {
			_ = s.CloseWrite() // as above
		}
		if isCall && req.Handler == "F.in" {
			ev := client.accept(t)
			_, first, err := parseTarget(ev.payload)
			if err != nil || ev.flags&flagFirst == 0 || !bytes.Equal(first, request) {
				t.Fatalf("%q arrived, not %q: %v", first, request, err)
			}
			if patient {
				client.send(t, header{kind: typeData, stream: ev.stream, aux: uint32(len(request))}, request)
			}
		}
		told, err := readTold(s, patient)
		answer, alone := envelopeOf(told)
		switch {
		case !patient && len(told) > 0 && !(isCall && req.Handler != "F.in"):
			t.Fatalf("what is no call was answered: %q", told)
		case patient:
			res, body, parseErr := wire.ParseResponse(answer)
			if err != nil || parseErr != nil || !alone || res.CallID != req.CallID {
				t.Fatalf("answered by %q: %v, %v", told, err, parseErr)
			}
			if known := req.Handler == "F.in"; res.IsError == known || known && !bytes.Equal(body, request) {
				t.Fatalf("answered by %+v %q", res, body)
			}
		}
		_ = s.Close()
		eventually(t, "nothing is under way", func() bool { return victim.server.active.Load() == 0 })
		// what the daemon had sent before an answer is there when that comes
		if ev, stray := client.ask(t, `{"op":"addrs"}`); stray {
			t.Fatalf("a call out of nothing: %+v", ev)
		}
	})
}

// FuzzCallStream: so are those that follow a call on the same stream.
func FuzzCallStream(f *testing.F) {
	victim, client, from := startFuzzed(f)
	client.ask(f, `{"op":"listen","name":"F.in","mode":1}`)
	unarySeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, patient bool) {
		message, alone := envelopeOf(data)
		req, request, err := wire.ParseRequest(message)
		isCall := err == nil && req.Handler == "F.in"
		patient = patient && alone && isCall
		reply := func(want []byte, answered bool) {
			ev := client.accept(t)
			if _, first, err := parseTarget(ev.payload); err != nil || !bytes.Equal(first, want) {
				t.Fatalf("%q arrived, not %q: %v", first, want, err)
			}
			if answered {
				client.send(t, header{kind: typeData, stream: ev.stream, aux: uint32(len(want))}, want)
			}
		}
		s := openTo(t, from, victim, node.CallsProtocol, envelope("F.in", []byte("first")))
		reply([]byte("first"), true)
		if _, err := readTold(s, true); err != nil {
			t.Fatal(err)
		}
		_, _ = s.Write(data)
		if !patient {
			_ = s.CloseWrite() // as above
		}
		if isCall {
			reply(request, patient)
		}
		told, err := readTold(s, patient)
		if answer, _ := envelopeOf(told); patient {
			res, body, parseErr := wire.ParseResponse(answer)
			if err != nil || parseErr != nil || res.IsError || res.CallID != req.CallID || !bytes.Equal(body, request) {
				t.Fatalf("answered by %q: %v, %v", told, err, parseErr)
			}
		} else if len(told) > 0 {
			t.Fatalf("what is no call was answered: %q", told)
		}
		_ = s.Close()
		eventually(t, "nothing is under way", func() bool { return victim.server.active.Load() == 0 })
		if ev, stray := client.ask(t, `{"op":"addrs"}`); stray {
			t.Fatalf("a call out of nothing: %+v", ev)
		}
	})
}

// readTold reads an answer if there must be one, as a caller does, or else all until the daemon has ended the stream.
func readTold(s network.Stream, answered bool) ([]byte, error) {
	if !answered {
		return io.ReadAll(s)
	}
	in := bufio.NewReader(s)
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, err
	}
	message := make([]byte, min(size, 2*fuzzMaxUnary))
	_, err = io.ReadFull(in, message)
	return append(binary.AppendUvarint(nil, size), message...), err
}

// FuzzPeerAnswer: what a called peer answers is the answer that it is, or a RESET.
func FuzzPeerAnswer(f *testing.F) {
	victim, client, from := startFuzzed(f)
	answers := answering(from)
	unarySeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, _ bool) {
		message, _ := envelopeOf(data)
		res, body, err := wire.ParseResponse(message)
		answers <- data
		got := client.collect(t, client.open(t, from, "F.out", ModeUnary, []byte("request")), true)
		if err != nil {
			if got.fault == 0 {
				t.Fatalf("what is no answer arrived: %+v", got)
			}
			return
		}
		if got.fault != 0 || got.failed != res.IsError {
			t.Fatalf("%+v instead of %+v %q", got, res, body)
		}
		sameMessages(t, got.messages, [][]byte{body})
		eventually(t, "nothing is under way", func() bool { return victim.server.active.Load() == 0 })
	})
}
