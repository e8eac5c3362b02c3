package control

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/node"
	"hivemind/p2pd/internal/wire"
)

// limited is a daemon with small limits, and a stranger that is connected to it.
func limited(t *testing.T, change func(*config.Config)) (*daemon, *node.Node) {
	t.Helper()
	b := startDaemon(t, func(cfg *config.Config) {
		cfg.PeerCalls, cfg.PeerStreams, cfg.PeerBytes, cfg.FloodLimit = 10, 40, 1<<20, 100
		if change != nil {
			change(cfg)
		}
	})
	return b, stranger(t, b)
}

// whyReset reads a stream until it is reset, and returns the code.
func whyReset(t *testing.T, s network.Stream) network.StreamErrorCode {
	t.Helper()
	for buf := make([]byte, 100); ; {
		_, err := s.Read(buf)
		var reset *network.StreamError
		if errors.As(err, &reset) {
			return reset.ErrorCode
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCallsOfOnePeer(t *testing.T) {
	b, from := limited(t, nil)
	b.listen("T.rpc_a", ModeUnary)
	call := func() network.Stream {
		s := rawStream(t, from, b, "T.rpc_a")
		write(t, s, envelope("T.rpc_a", []byte("hi")))
		return s
	}
	first := call()
	in, _, _ := b.acceptUnary()
	for range 9 {
		call()
		b.acceptUnary()
	}
	if code := whyReset(t, call()); code != node.CodeBusy {
		t.Errorf("reset with %d, not busy", code)
	}
	other := stranger(t, b)
	s := rawStream(t, other, b, "T.rpc_a")
	write(t, s, envelope("T.rpc_a", []byte("hi")))
	if _, target, _ := b.acceptUnary(); target.name != "T.rpc_a" {
		t.Error("another peer pays")
	}
	b.message(in, []byte("yes"), 0)
	if _, body := readAnswer(t, first); body != "yes" {
		t.Error(body)
	}
	_ = first.Close()
	untilAdmitted(t, b, from)
}

// untilAdmitted calls until a call is let through, which is soon after one has ended.
func untilAdmitted(t *testing.T, b *daemon, from *node.Node) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		s := rawStream(t, from, b, "T.rpc_a")
		write(t, s, envelope("T.rpc_a", []byte("again")))
		refused := make(chan struct{})
		go func() {
			defer close(refused)
			_, _ = s.Read(make([]byte, 1))
		}()
		select {
		case <-b.accepts:
			return
		case <-refused:
		}
		if time.Now().After(deadline) {
			t.Fatal("not admitted again")
		}
	}
}

func TestStreamsOfOnePeer(t *testing.T) {
	b, from := limited(t, func(cfg *config.Config) { cfg.PeerCalls = 100 })
	b.listen("T.stream", ModeMessages)
	for range 40 {
		write(t, rawStream(t, from, b, "T.stream"), []byte{0})
	}
	// those of the library's own services may have been among the first
	for range 20 {
		s := rawStream(t, from, b, "T.stream")
		if _, err := s.Write([]byte{0}); err == nil && b.node.Guard().Counts().Refused["streams"] == 0 {
			continue
		}
		break
	}
	until(t, "a stream was refused", func() bool { return b.node.Guard().Counts().Refused["streams"] > 0 })
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: " + what)
		}
	}
}

// TestBytesOfOnePeer: requests over the budget wait until those before them are answered; small ones do not.
func TestBytesOfOnePeer(t *testing.T) {
	b, from := limited(t, nil)
	b.listen("T.rpc_a", ModeUnary)
	send := func(size int) network.Stream {
		s := rawStream(t, from, b, "T.rpc_a")
		go func() { _, _ = s.Write(envelope("T.rpc_a", pattern(size))) }()
		return s
	}
	large := send(900 << 10)
	in, _, _ := b.acceptUnary()
	send(800 << 10)
	send(100)
	if _, _, request := b.acceptUnary(); len(request) != 100 {
		t.Errorf("a request of %d bytes was let through", len(request))
	}
	b.message(in, nil, 0)
	readAnswer(t, large)
	if _, _, request := b.acceptUnary(); len(request) != 800<<10 {
		t.Errorf("a request of %d bytes", len(request))
	}
	// larger than the whole budget: alone
	huge := send(2 << 20)
	_ = huge
	if len(b.accepts) != 0 {
		t.Error("let through beside another")
	}
}

// TestMessagesShareTheBudget: a long message that comes slowly holds back other long ones of its peer only.
func TestMessagesShareTheBudget(t *testing.T) {
	b, from := limited(t, nil)
	b.listen("T.stream", ModeMessages)
	slow, fast := rawStream(t, from, b, "T.stream"), rawStream(t, from, b, "T.stream")
	write(t, slow, append(wire.AppendFrameHead(nil, wire.MarkerMessage, 1<<20), pattern(100)...))
	b.accept()
	write(t, fast, append(wire.AppendFrameHead(nil, wire.MarkerMessage, 3), "yes"...))
	in, _, _ := b.accept()
	b.mustReceive(in, []byte("yes"))
	write(t, fast, append(wire.AppendFrameHead(nil, wire.MarkerMessage, 200<<10), pattern(200<<10)...))
	write(t, slow, pattern(1<<20-100))
	b.mustReceive(in, pattern(200<<10))
}

// TestUnreadMessagesHoldTheBudget: until their client grants their credit anew, or their stream ends.
func TestUnreadMessagesHoldTheBudget(t *testing.T) {
	b, from := limited(t, nil)
	b.listen("T.stream", ModeMessages)
	b.mu.Lock()
	b.manual = true // as a client that does not read
	b.mu.Unlock()
	send := func(size int) (network.Stream, uint32) {
		s := rawStream(t, from, b, "T.stream")
		go func() {
			_, _ = s.Write(append(wire.AppendFrameHead(nil, wire.MarkerMessage, uint64(size)), pattern(size)...))
		}()
		in, _, _ := b.accept()
		return s, in
	}
	withheld := func(in uint32) {
		t.Helper()
		select {
		case <-b.channel(in):
			t.Fatal("a message came beside those that are unread")
		case <-time.After(100 * time.Millisecond):
		}
	}
	const first, second, third = 800 << 10, 400 << 10, 900 << 10
	_, one := send(first)
	b.mustReceive(one, pattern(first))
	stream, other := send(second)
	withheld(other)
	b.send(header{kind: typeWindow, stream: one, aux: first}, nil)
	b.mustReceive(other, pattern(second))
	_, last := send(third)
	withheld(last)
	_ = stream.Reset()
	b.mustReceive(last, pattern(third))
}

// TestWhoFloodsIsDropped: by calls over the limit, by unknown protocols, by garbage.
func TestWhoFloodsIsDropped(t *testing.T) {
	for name, attack := range map[string]func(s network.Stream) error{
		"T.rpc_a": func(s network.Stream) error {
			_, err := s.Write(envelope("T.rpc_a", []byte("hi")))
			return err
		},
		"T.rpc_unknown": func(s network.Stream) error { _, err := s.Write([]byte{1}); return err },
		"T.rpc_b": func(s network.Stream) error {
			_, err := s.Write([]byte{5, 0xff, 0xff, 0xff, 0xff, 0xff})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, from := limited(t, func(cfg *config.Config) { cfg.FloodBan = 2 })
			b.listen("T.rpc_a", ModeUnary)
			b.listen("T.rpc_b", ModeUnary)
			victim, own := b.node.ID(), from.ID()
			deadline := time.Now().Add(patience)
			for b.node.Guard().Counts().Dropped == 0 {
				if time.Now().After(deadline) {
					t.Fatalf("never dropped: %+v", b.node.Guard().Counts())
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				s, err := from.Open(ctx, victim, name)
				cancel()
				if err == nil {
					_ = attack(s)
				}
			}
			if b.node.Guard().Counts().Slowed == 0 {
				t.Error("dropped without having been slowed down")
			}
			until(t, "the connection is closed", func() bool { return !b.node.Connected(own) })
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			until(t, "it is let in after the ban", func() bool {
				_ = from.Connect(ctx, peerAddr(b))
				return b.node.Guard().Banned(own) == 0 && b.node.Connected(own)
			})
		})
	}
}

func TestBanAndUnban(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_a", ModeUnary)
	pending := a.open(b.node.ID(), "T.rpc_a", ModeUnary, patience, []byte("hi"))
	b.acceptUnary()
	b.must(map[string]any{"op": "ban", "peer": a.node.ID().String(), "seconds": 60})
	a.mustReset(pending, CodeRemoteReset)
	bans, _ := b.must(map[string]any{"op": "bans"})["bans"].(map[string]any)
	if left, _ := bans[a.node.ID().String()].(float64); left <= 50 || left > 60 {
		t.Errorf("bans: %v", bans)
	}
	if _, _, fault := b.call(a.node.ID(), "T.rpc_a", nil); fault == nil || fault.Code != CodeUnreachable {
		t.Errorf("a call to one who is banned: %v", fault)
	}
	if _, _, fault := a.call(b.node.ID(), "T.rpc_a", nil); fault == nil {
		t.Error("one who is banned has called")
	}
	unbanned := b.must(map[string]any{"op": "unban", "peer": a.node.ID().String()})
	if unbanned["banned"] != true {
		t.Error(unbanned)
	}
	b.meet(a)
	answer := b.must(map[string]any{"op": "ping", "peer": a.node.ID().String(), "timeout": 10})
	if seconds, _ := answer["seconds"].(float64); seconds <= 0 || seconds > 10 {
		t.Error(answer)
	}
	for _, wrong := range []map[string]any{
		{"op": "ban", "peer": a.node.ID().String()}, {"op": "ban", "peer": a.node.ID().String(), "seconds": -1},
		{"op": "ban", "peer": "nobody", "seconds": 1}, {"op": "unban", "peer": ""},
	} {
		if _, fault := b.request(wrong); fault == nil || fault.Code != CodeBadRequest {
			t.Errorf("%v: %v", wrong, fault)
		}
	}
	if _, fault := b.request(map[string]any{"op": "ban", "peer": b.node.ID().String(), "seconds": 1}); fault == nil {
		t.Error("banned itself")
	}
}

// TestOwnCallsWait: more calls to one peer than it takes wait for their turn instead of being refused.
func TestOwnCallsWait(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_a", ModeUnary)
	ids := make([]uint32, maxCallsOut+100)
	for i := range ids {
		ids[i] = a.open(b.node.ID(), "T.rpc_a", ModeUnary, patience, []byte("hi"))
	}
	for range ids {
		in, _, _ := b.acceptUnary()
		b.message(in, []byte("yes"), 0)
	}
	for _, id := range ids {
		a.mustReceive(id, []byte("yes"))
	}
	mustBeIdle(t, a, b)
	if len(a.server.out.gates) != 0 || len(b.server.registry.budgets) != 0 {
		t.Errorf("%d gates, %d budgets left", len(a.server.out.gates), len(b.server.registry.budgets))
	}
}
