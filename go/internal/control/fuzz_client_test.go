package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/node"
	"hivemind/p2pd/internal/wire"
)

// script reads decisions from a fuzzer's bytes; at their end everything is zero.
type script struct{ data []byte }

func (s *script) byte() byte {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return b
}

func (s *script) bytes(n int) []byte {
	n = min(n, len(s.data))
	taken := s.data[:n]
	s.data = s.data[n:]
	return taken
}

func (s *script) pick(of ...uint32) uint32 { return of[int(s.byte())%len(of)] }

// hostileClient is a control connection whose client does what a script says, and looks at whatever comes.
type hostileClient struct {
	sock   net.Conn
	peer   *node.Node // another peer, which echoes calls and streams
	victim *daemon
	calls  sync.WaitGroup // of the other peer to this client

	mu       sync.Mutex
	sendable map[uint32]int    // mu: bytes that the daemon may have sent by stream, at most
	toCome   map[uint32]uint32 // mu: of messages under way; streams that were reset from here are not looked at any more
	quit     map[uint32]bool   // mu: reset from here, after which numbers may be used anew
	fault    error             // mu: the daemon broke the protocol
	ended    chan struct{}
}

func (h *hostileClient) send(head header, payload []byte) {
	head.length = uint32(len(payload))
	h.write(head, payload)
}

func (h *hostileClient) write(head header, payload []byte) {
	var raw [headSize]byte
	head.put(&raw)
	h.mu.Lock()
	switch head.kind {
	case typeWindow:
		h.sendable[head.stream] += int(head.aux)
	case typeOpen:
		h.sendable[head.stream] += Window
	case typeReset:
		h.quit[head.stream] = true
	}
	h.mu.Unlock()
	_, _ = h.sock.Write(append(raw[:], payload...)) // the daemon may have ended the connection
}

func (h *hostileClient) read() {
	defer close(h.ended)
	for {
		var raw [headSize]byte
		if _, err := io.ReadFull(h.sock, raw[:]); err != nil {
			return
		}
		head, err := parseHeader(&raw)
		payload := make([]byte, min(head.length, MaxPayload))
		if err == nil {
			if _, err := io.ReadFull(h.sock, payload); err != nil {
				return
			}
			err = h.look(head, payload)
		}
		if err != nil {
			h.mu.Lock()
			h.fault = err
			h.mu.Unlock()
			h.sock.Close()
			return
		}
	}
}

// look checks a frame of the daemon.
func (h *hostileClient) look(head header, payload []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch head.kind {
	case typeData:
		return h.lookAtData(head)
	case typeAccept:
		_, rest, err := parseTarget(payload)
		if err != nil {
			return err
		}
		h.sendable[head.stream] += Window
		if head.flags&flagFirst != 0 {
			h.sendable[head.stream] -= len(rest) + frameCost
		}
		delete(h.toCome, head.stream)
	case typeReset:
		delete(h.toCome, head.stream)
		if head.code == 0 || Code(head.code) > CodeBadRequest {
			return fmt.Errorf("RESET for reason %d", head.code)
		}
	case typeResponse, typeEvent:
		if !json.Valid(payload) {
			return fmt.Errorf("not JSON: %q", payload)
		}
	case typeOpened, typeFin, typeWindow:
	default:
		return fmt.Errorf("a frame of type %d", head.kind)
	}
	return nil
}

func (h *hostileClient) lookAtData(head header) error {
	if h.sendable[head.stream] -= int(head.length) + frameCost; h.sendable[head.stream] < 0 {
		return fmt.Errorf("stream %d: %d bytes over the credit", head.stream, -h.sendable[head.stream])
	}
	if h.quit[head.stream] {
		return nil
	}
	if want, under := h.toCome[head.stream]; under && want != head.aux {
		return fmt.Errorf("stream %d: %d bytes to come, not %d", head.stream, head.aux, want)
	}
	if head.aux == head.length {
		delete(h.toCome, head.stream)
	} else {
		h.toCome[head.stream] = head.aux - head.length
	}
	return nil
}

// helloText is the first request of a client.
var helloText = fmt.Sprintf(`{"op":"hello","version":%d}`, Version)

var hostileRequests = []string{
	helloText, `{"op":"hello","version":99}`, `{"op":"listen","name":"F.mine","mode":1}`,
	`{"op":"listen","name":"F.mine","mode":2,"balanced":true}`, `{"op":"listen","name":"F.raw","mode":3}`,
	`{"op":"listen","name":"","mode":9,"max_in_flight":-1}`, `{"op":"unlisten","name":"F.mine"}`, `{"op":"peers"}`, `{"op":"addrs"}`,
	`{"op":"stats"}`, `{"op":"reachability"}`, `{"op":"shutdown"}`, `{"op":"find_peer","peer":"x"}`, `{"op":"connect","timeout":-1}`,
	`{"op":"disconnect","peer":"12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"}`, `{"op":"listen","name":"/ipfs/id/1.0.0","mode":1}`, `[]`, `{`,
}

// step does one thing; it returns false where the script ends.
func (h *hostileClient) step(s *script) bool {
	if len(s.data) == 0 {
		return false
	}
	kind := s.byte() % 10
	stream := s.pick(1, 2, 3, 4, 5, 7, 0, 0xFFFFFFFF)
	switch kind {
	case 0:
		_, _ = h.sock.Write(s.bytes(int(s.byte()))) // as above
	case 1:
		h.send(header{kind: typeRequest, stream: stream}, []byte(hostileRequests[int(s.byte())%len(hostileRequests)]))
	case 2:
		h.open(s, stream)
	case 3:
		size := int(s.pick(0, 1, 17, 1000, MaxPayload))
		more := s.pick(0, 0, 0, 1, 5000, 1<<20, 1<<31, 0xFFFFFFFF)
		h.send(header{kind: typeData, flags: s.byte() & 1, stream: stream, aux: uint32(size) + more}, make([]byte, size))
	case 4:
		h.send(header{kind: typeFin, stream: stream}, s.bytes(int(s.byte())%4))
	case 5:
		h.send(header{kind: typeReset, stream: stream, code: uint16(s.byte())}, s.bytes(int(s.byte())%9))
	case 6:
		h.send(header{kind: typeWindow, stream: stream, aux: s.pick(0, 1, 1000, 1<<20, 1<<30, 0xFFFFFFFF)}, nil)
	case 7: // any header, its payload as long as it says or cut
		var raw [headSize]byte
		copy(raw[:], s.bytes(headSize))
		binary.LittleEndian.PutUint32(raw[:], s.pick(0, 4, 200, MaxPayload, MaxPayload+1, 0xFFFFFFFF))
		_, _ = h.sock.Write(append(raw[:], s.bytes(int(s.byte()))...)) // as above
	case 8: // a call or a stream from the other side, which the client answers, refuses or leaves alone
		h.call(s)
	case 9: // time for the daemon to do what it was told
		runtime.Gosched()
	}
	return true
}

func (h *hostileClient) open(s *script, stream uint32) {
	mode := s.byte() % 5
	t := target{peer: []byte(h.peer.ID()), name: echoNames[mode]}
	switch s.byte() % 5 {
	case 0:
		t.peer = []byte(h.victim.node.ID())
	case 1:
		t.peer = s.bytes(int(s.byte()) % 50)
	case 2:
		t.name = string(s.bytes(int(s.byte())))
	case 3:
		t.name = echoNames[s.byte()%5]
	}
	payload := appendTarget(nil, &t)
	flags := s.byte() & 3
	if flags&flagFirst != 0 {
		payload = append(payload, make([]byte, s.pick(0, 1, 1000, 200<<10))...)
	}
	payload = payload[:len(payload)-min(len(payload), int(s.pick(0, 0, 0, 1, 40)))]
	h.send(header{kind: typeOpen, flags: flags, code: uint16(mode), stream: stream, aux: s.pick(0, 0, 1, 50, 0xFFFFFFFF)}, payload)
}

// call makes the other peer call or open a stream to a name that the client may have registered; what becomes of it is the client's
// business, within the time of a call.
func (h *hostileClient) call(s *script) {
	name, request := []string{"F.mine", "F.raw"}[s.byte()%2], make([]byte, s.pick(0, 5, 40<<10))
	data := envelope(name, request)
	if s.byte()%2 == 0 {
		data = append(wire.AppendFrameHead(nil, wire.MarkerMessage, uint64(len(request))), request...)
	}
	ending := s.byte() % 3
	h.calls.Add(1)
	go func() {
		defer h.calls.Done()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		stream, err := h.peer.Open(ctx, h.victim.node.ID(), name)
		if err != nil {
			return // not registered
		}
		_ = stream.SetDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = stream.Write(data)
		switch ending {
		case 0:
			_ = stream.CloseWrite()
		case 1:
			_, _ = stream.Write(wire.EndOfRequests[:])
		}
		_, _ = io.Copy(io.Discard, stream)
		_ = stream.Reset()
	}()
}

// FuzzControlClient: whatever a client sends, the daemon keeps to the protocol, ends its connection when it is told to, keeps nothing of
// it, and serves its other clients.
func FuzzControlClient(f *testing.F) {
	victim := startDaemon(f, func(cfg *config.Config) { cfg.FloodLimit = 0 }) // or the other peer would soon be refused all
	friend := echoPeer(f, victim)
	other := newProbe(f, victim)
	idle := 0
	f.Add([]byte{})
	f.Add([]byte("\x00\x02\x00\x01\x01\x00\x01\x00\x00\x00"))
	f.Add([]byte("\x01\x01\x00\x02\x08\x00\x00\x01\x00\x08\x01\x01\x00\x00"))
	f.Add([]byte("\x02\x00\x03\x02\x02\x00\x00\x00\x00\x03\x00\x04\x00\x00\x06\x00\x03\x05\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if idle == 0 {
			other.echo(t, friend)
			idle = runtime.NumGoroutine()
		}
		ours, theirs := socketPair(t)
		h := &hostileClient{
			sock: ours, peer: friend, victim: victim, ended: make(chan struct{}),
			sendable: make(map[uint32]int), toCome: make(map[uint32]uint32), quit: make(map[uint32]bool),
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			victim.server.ServeConn(theirs, false)
		}()
		_ = ours.SetWriteDeadline(time.Now().Add(patience))
		go h.read()
		s := &script{data}
		if s.byte()%8 != 7 {
			h.send(header{kind: typeRequest, stream: 1}, []byte(hostileRequests[0]))
		}
		for h.step(s) {
		}
		other.echo(t, friend)
		ours.Close()
		wait(t, "the end of the connection", served)
		wait(t, "the end of its reader", h.ended)
		h.calls.Wait()
		if h.fault != nil {
			t.Fatalf("the daemon broke the protocol: %v", h.fault)
		}
		eventually(t, "everything of the connection has gone", func() bool {
			return victim.server.active.Load() == 0 && victim.server.registry.size() == 0 && runtime.NumGoroutine() <= idle+spareGoroutines
		})
	})
}

// spareGoroutines may be the library's at work.
const spareGoroutines = 40
