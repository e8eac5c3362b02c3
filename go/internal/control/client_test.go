package control

import (
	"encoding/json"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// patience bounds every wait of the tests; typical waits are a thousand times shorter.
const patience = 30 * time.Second

// event is a frame that a client has received.
type event struct {
	header
	payload []byte
}

// client speaks the control protocol as the Python side does, frame by frame.
type client struct {
	t     testing.TB
	sock  net.Conn
	write sync.Mutex

	mu      sync.Mutex
	granted sync.Cond             // mu: spent or over changed
	spent   map[uint32]int        // mu: credit in use by stream, what frames cost included
	over    map[uint32]bool       // mu: streams that were RESET
	streams map[uint32]chan event // frames of streams and answers, in order
	accepts chan event
	ended   chan struct{}
	nextID  uint32
	nextReq uint32
	manual  bool // the test grants credit itself
	closed  atomic.Bool
}

func (c *client) channel(id uint32) chan event {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.streams[id]
	if ch == nil {
		ch = make(chan event, 4096)
		c.streams[id] = ch
	}
	return ch
}

const requestBase = 1 << 31 // request numbers apart from stream numbers, to share one table

func newClient(t testing.TB, sock net.Conn) *client {
	c := &client{
		t: t, sock: sock, streams: make(map[uint32]chan event), accepts: make(chan event, 4096), ended: make(chan struct{}),
		nextID: 1, nextReq: requestBase, spent: make(map[uint32]int), over: make(map[uint32]bool),
	}
	c.granted.L = &c.mu
	go c.read()
	t.Cleanup(func() { sock.Close() })
	return c
}

func (c *client) read() {
	defer close(c.ended)
	for {
		var raw [headSize]byte
		if _, err := io.ReadFull(c.sock, raw[:]); err != nil {
			return
		}
		h, err := parseHeader(&raw)
		if err != nil {
			return
		}
		ev := event{header: h, payload: make([]byte, h.length)}
		if _, err := io.ReadFull(c.sock, ev.payload); err != nil {
			return
		}
		if h.kind == typeAccept {
			c.channel(h.stream)
			c.accepts <- ev
			continue
		}
		c.mu.Lock()
		manual := c.manual
		switch h.kind {
		case typeWindow:
			c.spent[h.stream] -= int(h.aux)
		case typeReset:
			c.over[h.stream] = true
		}
		c.granted.Broadcast()
		c.mu.Unlock()
		if h.kind == typeWindow {
			continue
		}
		if h.kind == typeData && !manual {
			c.send(header{kind: typeWindow, stream: h.stream, aux: h.length + frameCost}, nil)
		}
		c.channel(h.stream) <- ev
	}
}

func (c *client) send(h header, payload []byte) {
	h.length = uint32(len(payload))
	var raw [headSize]byte
	h.put(&raw)
	c.write.Lock()
	defer c.write.Unlock()
	_, _ = c.sock.Write(append(raw[:], payload...))
}

// request sends a request and returns its answer.
func (c *client) request(fields map[string]any) (map[string]any, *Fault) {
	c.t.Helper()
	payload, err := json.Marshal(fields)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.nextReq++
	id := c.nextReq
	c.mu.Unlock()
	c.send(header{kind: typeRequest, stream: id}, payload)
	ev := c.next(id)
	var answer map[string]any
	if err := json.Unmarshal(ev.payload, &answer); err != nil {
		c.t.Fatalf("answer %q: %v", ev.payload, err)
	}
	if ev.flags&flagError != 0 {
		code, _ := answer["code"].(float64)
		text, _ := answer["error"].(string)
		return nil, &Fault{Code: Code(code), Text: text}
	}
	return answer, nil
}

func (c *client) must(fields map[string]any) map[string]any {
	c.t.Helper()
	answer, fault := c.request(fields)
	if fault != nil {
		c.t.Fatalf("%v: %v", fields, fault)
	}
	return answer
}

func (c *client) listen(name string, mode Mode) {
	c.t.Helper()
	c.must(map[string]any{"op": "listen", "name": name, "mode": mode})
}

// next is the next frame of a stream.
func (c *client) next(id uint32) event {
	c.t.Helper()
	select {
	case ev := <-c.channel(id):
		return ev
	case <-time.After(patience):
		c.t.Fatalf("no frame on stream %d", id)
	case <-c.ended:
		select {
		case ev := <-c.channel(id):
			return ev
		default:
			c.t.Fatalf("connection ended while waiting on stream %d", id)
		}
	}
	return event{}
}

// open opens a stream; a nil first leaves the first message to the caller.
func (c *client) open(p peer.ID, name string, mode Mode, timeout time.Duration, first []byte) uint32 {
	c.mu.Lock()
	id := c.nextID
	c.nextID += 2
	c.mu.Unlock()
	h := header{kind: typeOpen, code: uint16(mode), stream: id, aux: uint32(timeout.Milliseconds())}
	payload := appendTarget(nil, &target{peer: []byte(p), name: name})
	if first != nil {
		h.flags = flagFirst
		c.mu.Lock()
		c.spent[id] += len(first) + frameCost
		c.mu.Unlock()
		payload = append(payload, first...)
	}
	c.send(h, payload)
	return id
}

// message sends a message in frames; the credit must suffice.
func (c *client) message(id uint32, message []byte, flags uint8) {
	c.mu.Lock()
	c.spent[id] += len(message) + frameCost*max(1, (len(message)+MaxPayload-1)/MaxPayload)
	c.mu.Unlock()
	for first := true; first || len(message) > 0; first = false {
		n := min(len(message), MaxPayload)
		c.send(header{kind: typeData, flags: flags, stream: id, aux: uint32(len(message))}, message[:n])
		message = message[n:]
	}
}

// receive reads one message of a stream; fin is set when FIN came, fault when RESET came.
func (c *client) receive(id uint32) (message []byte, isError, fin bool, fault *Fault) {
	c.t.Helper()
	for {
		ev := c.next(id)
		switch ev.kind {
		case typeOpened:
			continue
		case typeFin:
			return nil, false, true, nil
		case typeReset:
			return nil, false, false, &Fault{Code: Code(ev.code), Text: string(ev.payload)}
		case typeData:
			message = append(message, ev.payload...)
			if ev.aux == ev.length {
				return message, ev.flags&flagError != 0, false, nil
			}
		default:
			c.t.Fatalf("frame type %d on stream %d", ev.kind, id)
		}
	}
}

// accept waits for an incoming stream; first is nil if its first message is not inside.
func (c *client) accept() (id uint32, t target, first []byte) {
	c.t.Helper()
	select {
	case ev := <-c.accepts:
		t, rest, err := parseTarget(ev.payload)
		if err != nil {
			c.t.Fatal(err)
		}
		if ev.flags&flagFirst != 0 {
			first = append([]byte{}, rest...)
		}
		return ev.stream, t, first
	case <-time.After(patience):
		c.t.Fatal("no incoming stream")
	}
	return 0, target{}, nil
}

// acceptUnary waits for a call and its whole request.
func (c *client) acceptUnary() (id uint32, t target, request []byte) {
	c.t.Helper()
	id, t, first := c.accept()
	if first != nil {
		return id, t, first
	}
	request, _, _, fault := c.receive(id)
	if fault != nil {
		c.t.Fatalf("request of %s: %v", t.name, fault)
	}
	return id, t, request
}

// call makes a unary call.
func (c *client) call(p peer.ID, name string, request []byte) (answer []byte, isError bool, fault *Fault) {
	c.t.Helper()
	var id uint32
	if len(request) < 100<<10 {
		id = c.open(p, name, ModeUnary, patience, append([]byte{}, request...))
	} else {
		id = c.open(p, name, ModeUnary, patience, nil)
		c.sendAll(id, request)
	}
	answer, isError, _, fault = c.receive(id)
	return answer, isError, fault
}

// sendAll sends a message of any size as the daemon grants credit, or until the stream has ended.
func (c *client) sendAll(id uint32, message []byte) {
	if len(message) == 0 {
		c.message(id, nil, 0)
	}
	for len(message) > 0 {
		n := c.takeCredit(id, min(len(message), MaxPayload))
		if n == 0 {
			return
		}
		c.send(header{kind: typeData, stream: id, aux: uint32(len(message))}, message[:n])
		message = message[n:]
	}
}

// takeCredit waits for credit of a stream; 0 means that the stream or the connection has ended.
func (c *client) takeCredit(id uint32, want int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.spent[id] >= Window-frameCost && !c.over[id] {
		c.granted.Wait()
	}
	n := min(want, Window-frameCost-c.spent[id])
	if c.over[id] {
		return 0
	}
	c.spent[id] += n + frameCost
	return n
}
