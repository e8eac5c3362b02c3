package control

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"hivemind/p2pd/internal/config"
)

// mustReset fails the test unless the stream's next frame of weight is a RESET with that code; it returns the text.
func (c *client) mustReset(id uint32, code Code) string {
	c.t.Helper()
	message, isError, fin, fault := c.receive(id)
	if fault == nil || fault.Code != code {
		c.t.Fatalf("not RESET(%d) but message %q (error %v), fin %v, fault %+v", code, message, isError, fin, fault)
	}
	return fault.Text
}

func TestUnaryCallsOfAllSizes(t *testing.T) {
	for _, transport := range []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"} {
		listen := func(cfg *config.Config) { cfg.Listen = []string{transport} }
		a, b := startDaemon(t, listen), startDaemon(t, listen)
		a.meet(b)
		b.listen("Echo.rpc_echo", ModeUnary)
		for _, size := range []int{0, 1, 1000, inlineLimit, inlineLimit + 1, MaxPayload, 1 << 20, 3 << 20} {
			request := pattern(size)
			go func() {
				id, target, got := b.acceptUnary()
				if target.name != "Echo.rpc_echo" || !bytes.Equal(target.peer, []byte(a.node.ID())) {
					t.Errorf("target %q %x", target.name, target.peer)
				}
				b.sendAll(id, got)
			}()
			answer, isError, fault := a.call(b.node.ID(), "Echo.rpc_echo", request)
			if fault != nil || isError || !bytes.Equal(answer, request) {
				t.Fatalf("%s size %d: %d bytes, error %v, fault %v", transport, size, len(answer), isError, fault)
			}
		}
	}
}

func TestManyCallsAtOnce(t *testing.T) {
	a, b := startPair(t)
	b.listen("Echo.rpc_echo", ModeUnary)
	const calls = 300
	go func() {
		for range calls {
			id, _, got := b.acceptUnary()
			b.sendAll(id, got)
		}
	}()
	ids := make([]uint32, calls)
	for i := range ids {
		ids[i] = a.open(b.node.ID(), "Echo.rpc_echo", ModeUnary, patience, pattern(i))
	}
	for i, id := range ids {
		answer, _, _, fault := a.receive(id)
		if fault != nil || !bytes.Equal(answer, pattern(i)) {
			t.Fatalf("call %d: %d bytes, %v", i, len(answer), fault)
		}
	}
}

func TestHandlerErrorIsItsText(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_fail", ModeUnary)
	go func() {
		id, _, _ := b.acceptUnary()
		b.message(id, []byte("ValueError('boom')"), flagError)
	}()
	answer, isError, fault := a.call(b.node.ID(), "T.rpc_fail", []byte("x"))
	if fault != nil || !isError || string(answer) != "ValueError('boom')" {
		t.Fatalf("%q %v %v", answer, isError, fault)
	}
}

func TestCallsThatReachNobody(t *testing.T) {
	a, b := startPair(t)
	if text := a.mustReset(a.open(b.node.ID(), "No.rpc_such", ModeUnary, patience, []byte("x")), CodeNotSupported); !strings.Contains(text, "protocol not supported") {
		t.Error(text)
	}
	a.mustReset(a.open(b.node.ID(), "No.rpc_such", ModeMessages, patience, nil), CodeNotSupported)
	a.mustReset(a.open(a.node.ID(), "No.rpc_such", ModeUnary, patience, []byte("x")), CodeNotSupported)
	a.mustReset(a.open(a.node.ID(), "No.rpc_such", ModeMessages, patience, nil), CodeNotSupported)
	stranger := startNode(t, testConfig()).ID()
	if text := a.mustReset(a.open(stranger, "T.rpc_x", ModeUnary, patience, []byte("x")), CodeNotFound); !strings.Contains(text, "routing: not found") {
		t.Error(text)
	}
	a.mustReset(a.open("not a peer id", "T.rpc_x", ModeUnary, patience, []byte("x")), CodeBadRequest)
	a.mustReset(a.open(b.node.ID(), "", ModeUnary, patience, []byte("x")), CodeBadRequest)
}

func TestHandlerThatIsGoneIsNotSupported(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_x", ModeUnary)
	go func() {
		id, _, _ := b.acceptUnary()
		b.message(id, nil, 0)
	}()
	if _, _, fault := a.call(b.node.ID(), "T.rpc_x", nil); fault != nil {
		t.Fatal(fault)
	}
	b.must(map[string]any{"op": "unlisten", "name": "T.rpc_x"})
	// a may still believe that b has the handler, and finds out when it calls.
	a.mustReset(a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x")), CodeNotSupported)
	a.mustReset(a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x")), CodeNotSupported)
}

func TestOversizeRequestIsRefusedHere(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_x", ModeUnary)
	id := a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, nil)
	a.send(header{kind: typeData, stream: id, aux: 4 << 20}, pattern(1000))
	a.mustReset(id, CodeTooLarge)
}

func TestOversizeResponseIsAnError(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_x", ModeUnary)
	callee := make(chan string, 1)
	go func() {
		id, _, _ := b.acceptUnary()
		b.send(header{kind: typeData, stream: id, aux: 4 << 20}, pattern(1000))
		callee <- b.mustReset(id, CodeTooLarge)
	}()
	answer, isError, fault := a.call(b.node.ID(), "T.rpc_x", []byte("x"))
	if !isError || string(answer) != "response size exceeds message size limit" {
		t.Errorf("%q %v %v", answer, isError, fault)
	}
	<-callee
}

func TestCallerCancels(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_x", ModeUnary)
	id := a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x"))
	in, _, _ := b.acceptUnary()
	a.send(header{kind: typeReset, stream: id, code: uint16(CodeCancelled)}, nil)
	b.mustReset(in, CodeCancelled)
}

func TestDeadlineEndsBothSides(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_x", ModeUnary)
	id := a.open(b.node.ID(), "T.rpc_x", ModeUnary, 200*time.Millisecond, []byte("x"))
	in, _, _ := b.acceptUnary()
	a.mustReset(id, CodeDeadline)
	b.mustReset(in, CodeCancelled)
}

func TestHandlerResetsItsCall(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_x", ModeUnary)
	id := a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x"))
	in, _, _ := b.acceptUnary()
	b.send(header{kind: typeReset, stream: in, code: uint16(CodeInternal)}, nil)
	a.mustReset(id, CodeRemoteReset)
}

// TestHandlerIsBusy: the caller of either kind is told so, as by the daemon's own limits.
func TestHandlerIsBusy(t *testing.T) {
	a, b := startPair(t)
	b.listen("call", ModeUnary)
	b.listen("stream", ModeMessages)
	for name, mode := range map[string]Mode{"call": ModeUnary, "stream": ModeMessages} {
		out := a.open(b.node.ID(), name, mode, patience, []byte("x"))
		in, _, _ := b.accept()
		b.send(header{kind: typeReset, stream: in, code: uint16(CodeBusy)}, nil)
		for {
			_, _, _, fault := a.receive(out)
			if fault == nil {
				continue
			}
			if fault.Code != CodeBusy {
				t.Errorf("%s: %d %s", name, fault.Code, fault)
			}
			break
		}
	}
}

func TestClientsThatDieEndTheirCalls(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_kept", ModeUnary)
	guest := b.connect(t, false)
	guest.listen("T.rpc_x", ModeUnary)
	id := a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x"))
	guest.acceptUnary()
	guest.sock.Close()
	a.mustReset(id, CodeRemoteReset)
	a.mustReset(a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x")), CodeNotSupported)

	caller := a.connect(t, false)
	caller.open(b.node.ID(), "T.rpc_kept", ModeUnary, 0, []byte("x"))
	in, _, _ := b.acceptUnary()
	caller.sock.Close()
	b.mustReset(in, CodeCancelled)
}

func TestInFlightLimitIsBusy(t *testing.T) {
	a, b := startPair(t)
	b.must(map[string]any{"op": "listen", "name": "T.rpc_x", "mode": ModeUnary, "max_in_flight": 1})
	first := a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x"))
	in, _, _ := b.acceptUnary()
	a.mustReset(a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("y")), CodeBusy)
	b.message(in, []byte("done"), 0)
	if answer, _, _, fault := a.receive(first); string(answer) != "done" {
		t.Fatal(fault)
	}
	go func() {
		in, _, _ := b.acceptUnary()
		b.message(in, nil, 0)
	}()
	if _, _, fault := a.call(b.node.ID(), "T.rpc_x", nil); fault != nil {
		t.Fatal(fault)
	}
}

func TestBalancedHandlersShareCalls(t *testing.T) {
	a, b := startPair(t)
	guest := b.connect(t, false)
	listen := map[string]any{"op": "listen", "name": "T.rpc_x", "mode": ModeUnary, "balanced": true}
	b.must(listen)
	guest.must(listen)
	for range 4 {
		a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x"))
	}
	for range 2 { // the least in flight takes the next: two each
		b.acceptUnary()
		guest.acceptUnary()
	}
	guest.sock.Close()
	id := a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("y"))
	for {
		in, _, request := b.acceptUnary()
		if string(request) == "y" {
			b.message(in, []byte("z"), 0)
			break
		}
	}
	if answer, _, _, fault := a.receive(id); string(answer) != "z" {
		t.Fatal(fault)
	}
}

func TestStopRefusesAndEndsCalls(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_x", ModeUnary)
	mine := a.open(b.node.ID(), "T.rpc_x", ModeUnary, patience, []byte("x"))
	b.acceptUnary()
	a.server.Close()
	if text := a.mustReset(mine, CodeClosing); text == "" {
		t.Error("no reason given")
	}
	select {
	case <-a.ended:
	case <-time.After(patience):
		t.Error("the connection is still open")
	}
}
