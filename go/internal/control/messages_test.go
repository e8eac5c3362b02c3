package control

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/wire"
)

// openPair opens a stream from a to b in a mode and returns both ends.
func openPair(t *testing.T, a, b *daemon, mode Mode) (out, in uint32) {
	t.Helper()
	out = a.open(b.node.ID(), "T.stream", mode, patience, nil)
	if ev := a.next(out); ev.kind != typeOpened {
		t.Fatalf("frame type %d with %q, not OPENED", ev.kind, ev.payload)
	}
	if mode == ModeRaw || mode == ModeMessages {
		// A callee learns of a stream with its first bytes.
		a.message(out, []byte("first"), 0)
	}
	in, _, _ = b.accept()
	if message, _, _, fault := b.receive(in); string(message) != "first" {
		t.Fatalf("%q %v", message, fault)
	}
	return out, in
}

func (c *client) fin(id uint32) { c.send(header{kind: typeFin, stream: id}, nil) }

func (c *client) mustFin(id uint32) {
	c.t.Helper()
	if message, isError, fin, fault := c.receive(id); !fin {
		c.t.Fatalf("not FIN but message %q (error %v), fault %v", message, isError, fault)
	}
}

func (c *client) mustReceive(id uint32, want []byte) {
	c.t.Helper()
	message, isError, fin, fault := c.receive(id)
	if fault != nil || fin || isError || !bytes.Equal(message, want) {
		c.t.Fatalf("%d bytes, not %d; error %v, fin %v, fault %v", len(message), len(want), isError, fin, fault)
	}
}

// mustBeIdle waits until a server has no stream under way.
func mustBeIdle(t *testing.T, daemons ...*daemon) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for _, d := range daemons {
		for d.server.active.Load() > 0 {
			if time.Now().After(deadline) {
				t.Fatalf("%d streams are still under way", d.server.active.Load())
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestMessagesBothWays(t *testing.T) {
	for _, transport := range []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"} {
		listen := func(cfg *config.Config) { cfg.Listen = []string{transport} }
		a, b := startDaemon(t, listen), startDaemon(t, listen)
		a.meet(b)
		b.listen("T.stream", ModeMessages)
		out, in := openPair(t, a, b, ModeMessages)
		sizes := []int{0, 5, MaxPayload, MaxPayload + 1, 3 << 20}
		for _, size := range sizes {
			go a.sendAll(out, pattern(size))
			b.mustReceive(in, pattern(size))
		}
		a.fin(out)
		b.mustFin(in)
		for _, size := range sizes {
			go b.sendAll(in, pattern(size))
			a.mustReceive(out, pattern(size))
		}
		b.fin(in)
		a.mustFin(out)
		mustBeIdle(t, a, b)
	}
}

func TestLastAnswersArriveOverQUIC(t *testing.T) {
	listen := func(cfg *config.Config) { cfg.Listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1"} }
	a, b := startDaemon(t, listen), startDaemon(t, listen)
	a.meet(b)
	b.listen("T.stream", ModeMessages)
	for range 50 {
		out, in := openPair(t, a, b, ModeMessages)
		a.fin(out)
		b.mustFin(in)
		b.message(in, []byte("the last"), 0)
		b.fin(in)
		a.mustReceive(out, []byte("the last"))
		a.mustFin(out)
	}
}

func TestStreamErrorEndsTheCall(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeMessages)
	for _, text := range []string{"boom", ""} {
		out, in := openPair(t, a, b, ModeMessages)
		b.message(in, []byte("one"), 0)
		b.message(in, []byte(text), flagError)
		a.mustReceive(out, []byte("one"))
		message, isError, _, fault := a.receive(out)
		if !isError || string(message) != text {
			t.Fatalf("%q %v %v", message, isError, fault)
		}
		mustBeIdle(t, a, b)
	}
}

func TestHandlerThatEndsEarlyEndsTheCall(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeMessages)
	out, in := openPair(t, a, b, ModeMessages)
	b.message(in, []byte("enough"), 0)
	b.fin(in)
	b.mustFin(in)
	a.mustReceive(out, []byte("enough"))
	a.mustFin(out)
	a.message(out, []byte("too late"), 0) // dropped
	a.fin(out)
	mustBeIdle(t, a, b)
}

func TestStreamCancellationBothWays(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeMessages)
	out, in := openPair(t, a, b, ModeMessages)
	a.send(header{kind: typeReset, stream: out, code: uint16(CodeCancelled)}, nil)
	b.mustReset(in, CodeRemoteReset)

	out, in = openPair(t, a, b, ModeMessages)
	a.fin(out)
	b.mustFin(in)
	a.send(header{kind: typeReset, stream: out, code: uint16(CodeCancelled)}, nil)
	b.mustReset(in, CodeCancelled)

	out, in = openPair(t, a, b, ModeMessages)
	b.send(header{kind: typeReset, stream: in, code: uint16(CodeCancelled)}, nil)
	a.mustReset(out, CodeRemoteReset)
	mustBeIdle(t, a, b)
}

func TestMessagesBeforeAResetAreDelivered(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeMessages)
	out, in := openPair(t, a, b, ModeMessages)
	b.message(in, []byte("one"), 0)
	b.message(in, []byte("two"), 0)
	a.mustReceive(out, []byte("one"))
	a.mustReceive(out, []byte("two"))
	b.send(header{kind: typeReset, stream: in, code: uint16(CodeInternal)}, nil)
	a.mustReset(out, CodeRemoteReset)
}

func TestConnectionThatBreaksIsNoEnd(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeMessages)
	out, in := openPair(t, a, b, ModeMessages)
	b.message(in, []byte("one"), 0)
	a.mustReceive(out, []byte("one"))
	b.node.Close()
	a.mustReset(out, CodeRemoteReset)
}

// TestResetsInsideAMessage: only the peer's own end of a stream is TRUNCATED.
func TestResetsInsideAMessage(t *testing.T) {
	for name, breakOff := range map[string]func(b *daemon, in uint32){
		"reset": func(b *daemon, in uint32) {
			b.send(header{kind: typeReset, stream: in, code: uint16(CodeInternal)}, nil)
		},
		"connection": func(b *daemon, _ uint32) { b.node.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := startPair(t)
			b.listen("T.stream", ModeMessages)
			out, in := openPair(t, a, b, ModeMessages)
			b.send(header{kind: typeData, stream: in, aux: 2 * MaxPayload}, pattern(MaxPayload))
			if ev := a.next(out); ev.kind != typeData || ev.length != MaxPayload {
				t.Fatalf("frame type %d of %d bytes", ev.kind, ev.length)
			}
			breakOff(b, in)
			a.mustReset(out, CodeRemoteReset)
		})
	}
}

func TestOpeningTimeoutDoesNotBoundTheStream(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeMessages)
	out := a.open(b.node.ID(), "T.stream", ModeMessages, 300*time.Millisecond, []byte("first"))
	in, _, _ := b.accept()
	b.mustReceive(in, []byte("first"))
	time.Sleep(400 * time.Millisecond) // past the timeout: it must not end the stream
	b.message(in, []byte("still here"), 0)
	a.mustReceive(out, []byte("still here"))
}

func TestRawStreamsHalfClose(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeRaw)
	out, in := openPair(t, a, b, ModeRaw)
	a.fin(out)
	b.mustFin(in)
	b.message(in, pattern(100_000), 0)
	var got []byte
	for len(got) < 100_000 {
		piece, _, _, fault := a.receive(out)
		if fault != nil {
			t.Fatal(fault)
		}
		got = append(got, piece...)
	}
	if !bytes.Equal(got, pattern(100_000)) {
		t.Error("bytes differ")
	}
	b.fin(in)
	a.mustFin(out)
	mustBeIdle(t, a, b)
}

// TestUnreadStreamsHoldTheSender: a client that grants nothing must stop the sender, and nothing between may fill up.
func TestUnreadStreamsHoldTheSender(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeMessages)
	out, in := openPair(t, a, b, ModeMessages)
	b.mu.Lock()
	b.manual = true
	b.mu.Unlock()

	const size = 1 << 20
	sent := make(chan int, 1)
	var stop atomic.Bool
	go func() {
		total := 0
		for total < 64*size && !stop.Load() {
			n := a.takeCredit(out, MaxPayload)
			if stop.Load() {
				break
			}
			a.send(header{kind: typeData, stream: out, aux: uint32(n)}, pattern(n))
			total += n
		}
		sent <- total
	}()
	received, quiet := 0, 0
	for quiet < 20 { // until nothing has come for a while
		select {
		case ev := <-b.channel(in):
			received, quiet = received+int(ev.length), 0
		case <-time.After(50 * time.Millisecond):
			quiet++
		}
	}
	stop.Store(true)
	a.mu.Lock()
	a.spent[out] -= MaxPayload // wakes the sender, which stops
	a.granted.Broadcast()
	a.mu.Unlock()
	total := <-sent
	if received > Window {
		t.Errorf("%d bytes came with a credit of %d", received, Window)
	}
	if most := 2*Window + maxInTransit; total > most {
		t.Errorf("the sender could send %d bytes, at most %d fit between", total, most)
	}
	// With credit the rest flows.
	b.send(header{kind: typeWindow, stream: in, aux: 64 << 20}, nil)
	for received < total {
		received += int(b.next(in).length)
	}
}

// maxInTransit is what the windows of the network hold.
const maxInTransit = 6 << 20

// TestEmptyMessagesUseCredit: nothing, sent often, must not fill a client's memory.
func TestEmptyMessagesUseCredit(t *testing.T) {
	b := startDaemon(t, nil)
	b.listen("T.stream", ModeMessages)
	b.mu.Lock()
	b.manual = true
	b.mu.Unlock()
	s := rawStream(t, stranger(t, b), b, "T.stream")
	const count, most = 4 * Window / frameCost, Window / frameCost
	go func() {
		var nothing []byte
		for range 1000 {
			nothing = wire.AppendFrameHead(nothing, wire.MarkerMessage, 0)
		}
		for range count / 1000 {
			if _, err := s.Write(nothing); err != nil {
				return
			}
		}
	}()
	in, _, _ := b.accept()
	for range most {
		b.mustReceive(in, nil)
	}
	if load := b.server.Load(); load.Starved != 1 {
		t.Errorf("%+v", load)
	}
	select {
	case <-b.channel(in):
		t.Error("a message came without credit")
	case <-time.After(200 * time.Millisecond):
	}
	b.send(header{kind: typeWindow, stream: in, aux: 100 * frameCost}, nil)
	for range 100 {
		b.mustReceive(in, nil)
	}
}
