package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/node"
	"hivemind/p2pd/internal/wire"
)

// echoNames are the handlers of echoPeer by mode; modes 0 and 4 do not exist.
var echoNames = [...]string{"F.nobody", "F.unary", "F.messages", "F.raw", "F.silent"}

// echoPeer is a node without the control side that gives back what it gets; "F.silent" only takes.
func echoPeer(t testing.TB, of *daemon) *node.Node {
	t.Helper()
	n := startNode(t, testConfig())
	n.Handle(echoNames[ModeUnary], func(s network.Stream) {
		defer s.Close()
		ns := newNetStream(s, meter.New().Begin(meter.Out, s.Conn().RemotePeer(), "echo"), "echo")
		size, err := readSize(ns, 4<<20)
		if err != nil {
			return
		}
		message, err := readWhole(ns.in, size)
		if err != nil {
			return
		}
		if req, data, err := wire.ParseRequest(message); err == nil {
			_, _ = s.Write(append(wire.AppendResponse(nil, &wire.Response{CallID: req.CallID}, len(data)), data...))
		}
	})
	n.Handle(echoNames[ModeMessages], func(s network.Stream) {
		defer s.Close()
		ns := newNetStream(s, meter.New().Begin(meter.Out, s.Conn().RemotePeer(), "echo"), "echo")
		for {
			marker, size, err := readFrameHead(ns)
			if err != nil || marker == wire.MarkerError {
				return
			}
			_, _ = s.Write(wire.AppendFrameHead(nil, marker, size))
			if _, err := io.CopyN(s, ns.in, int64(size)); err != nil {
				_ = s.Reset()
				return
			}
		}
	})
	n.Handle(echoNames[ModeRaw], func(s network.Stream) {
		_, _ = io.Copy(s, s)
		_ = s.Close()
	})
	n.Handle(echoNames[4], func(s network.Stream) {
		_, _ = io.Copy(io.Discard, s)
		_ = s.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Connect(ctx, peerAddr(of)); err != nil {
		t.Fatal(err)
	}
	return n
}

// probe is a client of good will without goroutines and tables: it makes one call at a time.
type probe struct {
	sock net.Conn
	next uint32
}

func newProbe(t testing.TB, d *daemon) *probe {
	t.Helper()
	ours, theirs := socketPair(t)
	t.Cleanup(func() { ours.Close() })
	go d.server.ServeConn(theirs, false)
	p := &probe{sock: ours, next: 1}
	p.ask(t, helloText)
	return p
}

func (p *probe) send(t testing.TB, head header, payload []byte) {
	t.Helper()
	var raw [headSize]byte
	head.length = uint32(len(payload))
	head.put(&raw)
	if _, err := p.sock.Write(append(raw[:], payload...)); err != nil {
		t.Fatal(err)
	}
}

// receiveAny returns the next frame.
func (p *probe) receiveAny(t testing.TB) event {
	t.Helper()
	var raw [headSize]byte
	if _, err := io.ReadFull(p.sock, raw[:]); err != nil {
		t.Fatal(err)
	}
	head, err := parseHeader(&raw)
	if err != nil {
		t.Fatal(err)
	}
	ev := event{header: head, payload: make([]byte, head.length)}
	if _, err := io.ReadFull(p.sock, ev.payload); err != nil {
		t.Fatal(err)
	}
	return ev
}

// receive returns the next frame of a stream; others are dropped.
func (p *probe) receive(t testing.TB, stream uint32) event {
	t.Helper()
	for {
		ev := p.receiveAny(t)
		if ev.stream == stream && ev.kind != typeEvent && ev.kind != typeResponse {
			return ev
		}
	}
}

// ask makes a request and waits for its answer; stray is the last ACCEPT that came before, for which nobody has waited.
func (p *probe) ask(t testing.TB, request string) (stray event, found bool) {
	t.Helper()
	_ = p.sock.SetDeadline(time.Now().Add(patience))
	p.next += 2
	number := p.next
	p.send(t, header{kind: typeRequest, stream: number}, []byte(request))
	for {
		switch ev := p.receiveAny(t); {
		case ev.kind == typeResponse && ev.stream == number:
			return stray, found
		case ev.kind == typeAccept:
			stray, found = ev, true
		}
	}
}

// echo calls the unary handler of an echoPeer.
func (p *probe) echo(t testing.TB, n *node.Node) {
	t.Helper()
	request := binary.LittleEndian.AppendUint32(nil, p.next)
	ev := p.receive(t, p.open(t, n, echoNames[ModeUnary], ModeUnary, request))
	if ev.kind != typeData || !bytes.Equal(ev.payload, request) {
		t.Fatalf("a call of good will: frame %d, %q", ev.kind, ev.payload)
	}
}

// open opens a stream, with its first message if that is not nil.
func (p *probe) open(t testing.TB, to *node.Node, name string, mode Mode, first []byte) (stream uint32) {
	t.Helper()
	_ = p.sock.SetDeadline(time.Now().Add(patience))
	head := header{kind: typeOpen, code: uint16(mode), stream: p.next}
	if first != nil {
		head.flags = flagFirst
	}
	p.next += 2
	p.send(t, head, append(appendTarget(nil, &target{peer: []byte(to.ID()), name: name}), first...))
	return head.stream
}

func wait(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("no sign of %s", what)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for pause := 50 * time.Microsecond; !holds(); pause = min(2*pause, 10*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
		time.Sleep(pause)
	}
}

// size is how many handlers there are.
func (r *registry) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.handlers)
}
