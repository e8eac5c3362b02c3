package control

import (
	"bytes"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/node"
)

// echo answers a number of calls with their requests.
func (d *daemon) echo(calls int) {
	for range calls {
		id, _, got := d.acceptUnary()
		d.sendAll(id, got)
	}
}

func (d *daemon) idleStreams() int {
	d.server.idle.mu.Lock()
	defer d.server.idle.mu.Unlock()
	return d.server.idle.total
}

// callsServed is how often the unary handlers of d were called, by its own count.
func (d *daemon) callsServed(name string) int64 {
	readings, _ := d.node.Meter().Protocols()
	return readings[name].In.Calls
}

func TestCallsFollowEachOtherOnOneStream(t *testing.T) {
	for _, transport := range []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"} {
		listen := func(cfg *config.Config) { cfg.Listen = []string{transport} }
		a, b := startDaemon(t, listen), startDaemon(t, listen)
		a.meet(b)
		b.listen("T.rpc_a", ModeUnary)
		b.listen("T.rpc_b", ModeUnary)
		go b.echo(20)
		for i := range 20 {
			name := []string{"T.rpc_a", "T.rpc_b"}[i%2]
			request := pattern(i * 10_000) // some in one piece, some not
			answer, _, fault := a.call(b.node.ID(), name, request)
			if fault != nil || !bytes.Equal(answer, request) {
				t.Fatalf("call %d: %d bytes, %v", i, len(answer), fault)
			}
			until(t, "the stream is kept", func() bool { return a.idleStreams() == 1 })
		}
		mustBeIdle(t, a, b)
		if got := b.callsServed("T.rpc_a"); got != 10 {
			t.Errorf("%d calls were counted", got)
		}
	}
}

func TestIdleStreamsAreClosed(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_a", ModeUnary)
	go b.echo(5)
	ids := make([]uint32, 5)
	for i := range ids {
		ids[i] = a.open(b.node.ID(), "T.rpc_a", ModeUnary, patience, []byte("x"))
	}
	for _, id := range ids {
		a.mustReceive(id, []byte("x"))
	}
	mustBeIdle(t, a)
	a.server.idle.sweep()
	if a.idleStreams() == 0 {
		t.Error("closed before their time")
	}
	a.server.idle.mu.Lock()
	for _, streams := range a.server.idle.peers {
		for i := range streams {
			streams[i].since = time.Now().Add(-idleTime - time.Second)
		}
	}
	a.server.idle.mu.Unlock()
	a.server.idle.sweep()
	a.server.idle.mu.Lock()
	if a.server.idle.total != 0 || len(a.server.idle.peers) != 0 {
		t.Errorf("%d streams are kept, of %d peers", a.server.idle.total, len(a.server.idle.peers))
	}
	a.server.idle.mu.Unlock()
	go b.echo(1)
	if _, _, fault := a.call(b.node.ID(), "T.rpc_a", nil); fault != nil {
		t.Error(fault)
	}
}

// TestIdleStreamsOfLostConnections: the next call makes a new connection.
func TestIdleStreamsOfLostConnections(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_a", ModeUnary)
	go b.echo(2)
	if _, _, fault := a.call(b.node.ID(), "T.rpc_a", nil); fault != nil {
		t.Fatal(fault)
	}
	until(t, "the stream is kept", func() bool { return a.idleStreams() == 1 })
	if err := a.node.Disconnect(b.node.ID()); err != nil {
		t.Fatal(err)
	}
	if _, _, fault := a.call(b.node.ID(), "T.rpc_a", nil); fault != nil {
		t.Error(fault)
	}
}

// TestStreamsOfFailedCallsAreNotKept: their other side may still send.
func TestStreamsOfFailedCallsAreNotKept(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_a", ModeUnary)
	for range 3 {
		id := a.open(b.node.ID(), "T.rpc_a", ModeUnary, patience, []byte("x"))
		in, _, _ := b.acceptUnary()
		a.send(header{kind: typeReset, stream: id, code: uint16(CodeCancelled)}, nil)
		b.mustReset(in, CodeCancelled)
		b.message(in, []byte("too late"), 0)
	}
	a.mustReset(a.open(b.node.ID(), "T.rpc_none", ModeUnary, patience, []byte("x")), CodeNotSupported)
	mustBeIdle(t, a, b)
	if left := a.idleStreams(); left != 0 {
		t.Errorf("%d streams are kept", left)
	}
}

// TestPeersWithoutCallStreams: those of hivemind 1.1 take one call a stream.
func TestPeersWithoutCallStreams(t *testing.T) {
	a := startDaemon(t, nil)
	other := echoPeer(t, a)
	for range 2 {
		answer, _, fault := a.call(other.ID(), echoNames[ModeUnary], []byte("x"))
		if fault != nil || string(answer) != "x" {
			t.Fatalf("%q %v", answer, fault)
		}
	}
	if left := a.idleStreams(); left != 0 {
		t.Errorf("%d streams are kept", left)
	}
}

// TestCallsThatDoNotWait: a request before the answer to the last one is a cancellation, as every byte is.
func TestCallsThatDoNotWait(t *testing.T) {
	b := startDaemon(t, nil)
	b.listen("T.rpc_a", ModeUnary)
	s := rawStream(t, stranger(t, b), b, node.CallsProtocol)
	request := envelope("T.rpc_a", []byte("x"))
	write(t, s, append(request, request...))
	in, _, _ := b.acceptUnary()
	b.mustReset(in, CodeCancelled)
	whyReset(t, s)
	mustBeIdle(t, b)
}

func TestUnknownHandlersOnCallStreams(t *testing.T) {
	b, from := limited(t, nil)
	for b.node.Guard().Counts().Dropped == 0 {
		s, err := from.Open(t.Context(), b.node.ID(), node.CallsProtocol)
		if err != nil {
			break // refused, as it was dropped
		}
		if _, err := s.Write(envelope("T.rpc_none", nil)); err != nil {
			continue
		}
		if b.node.Guard().Counts().Slowed == 0 {
			if code := whyReset(t, s); code != network.StreamProtocolNegotiationFailed {
				t.Fatalf("reset with %d", code)
			}
		}
	}
	until(t, "dropped", func() bool { return b.node.Guard().Counts().Dropped > 0 })
	if names, _ := b.node.Meter().Protocols(); len(names) > 0 {
		t.Errorf("a peer's words are counted as protocols: %v", names)
	}
}

// TestCancelledCallsMakeRoom: calls that were cancelled a moment ago do not stand in the way of others.
func TestCancelledCallsMakeRoom(t *testing.T) {
	b := startDaemon(t, func(cfg *config.Config) { cfg.PeerCalls = 8 })
	a := startDaemon(t, nil)
	a.meet(b)
	b.listen("T.rpc_a", ModeUnary)
	for range 50 {
		ids := make([]uint32, 8)
		for i := range ids {
			ids[i] = a.open(b.node.ID(), "T.rpc_a", ModeUnary, patience, []byte("x"))
		}
		for range ids {
			b.acceptUnary() // none was refused
		}
		for _, id := range ids {
			a.send(header{kind: typeReset, stream: id, code: uint16(CodeCancelled)}, nil)
		}
	}
	if refused := b.node.Guard().Counts().Refused["calls"]; refused > 0 {
		t.Errorf("%d calls were refused", refused)
	}
}
