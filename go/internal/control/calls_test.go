package control

import (
	"bytes"
	"testing"
)

func TestUnaryCallsOfAllSizes(t *testing.T) {
	a, b := startPair(t)
	b.listen("Echo.rpc_echo", ModeUnary)
	for _, size := range []int{0, 1, 1000, inlineLimit, inlineLimit + 1, MaxPayload, 1 << 20, 3 << 20} {
		request := pattern(size)
		go func() {
			id, target, got := b.acceptUnary()
			if target.name != "Echo.rpc_echo" || !bytes.Equal(target.peer, []byte(a.node.ID())) {
				t.Errorf("target %q %x", target.name, target.peer)
			}
			b.sendAnswer(id, got)
		}()
		answer, isError, fault := a.call(b.node.ID(), "Echo.rpc_echo", request)
		if fault != nil || isError || !bytes.Equal(answer, request) {
			t.Fatalf("size %d: %d bytes, error %v, fault %v", size, len(answer), isError, fault)
		}
	}
}

// sendAnswer sends an answer of any size.
func (c *client) sendAnswer(id uint32, answer []byte) {
	if len(answer) == 0 {
		c.message(id, nil, 0)
		return
	}
	c.sendAll(id, answer)
}

func TestMessagesBothWays(t *testing.T) {
	a, b := startPair(t)
	b.listen("Echo.rpc_stream", ModeMessages)
	id := a.open(b.node.ID(), "Echo.rpc_stream", ModeMessages, patience, nil)
	sizes := []int{0, 5, 70_000, 1_500_000}
	go func() {
		for _, size := range sizes {
			if size == 0 {
				a.message(id, nil, 0)
			} else {
				a.message(id, pattern(min(size, 900_000)), 0)
			}
		}
		a.send(header{kind: typeFin, stream: id}, nil)
	}()
	in, _, _ := b.accept()
	for range sizes[:3] {
		message, _, fin, fault := b.receive(in)
		if fin || fault != nil {
			t.Fatal(fin, fault)
		}
		b.message(in, message, 0)
	}
	for _, size := range sizes[:3] {
		message, _, _, fault := a.receive(id)
		if fault != nil || len(message) != size {
			t.Fatalf("%d bytes, not %d: %v", len(message), size, fault)
		}
	}
}
