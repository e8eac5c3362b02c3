package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"hivemind/p2pd/internal/rawio"
)

// conn is one control connection: the owner's or a guest's.
type conn struct {
	server *Server
	sock   *rawio.Conn
	owner  bool
	out    *writer
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	streams map[uint32]*stream // mu; nil once the connection has ended
	lastID  uint32             // mu: of streams this side opened, even

	greeted bool           // the reader's: hello has come
	unwatch func()         // the reader's: ends what hello began
	running sync.WaitGroup // runners of streams and requests
}

// readBuffer is for headers and small payloads; larger payloads are read past it.
const readBuffer = 64 << 10

func newConn(server *Server, sock net.Conn, owner bool) *conn {
	c := &conn{server: server, sock: rawio.New(sock), owner: owner, streams: make(map[uint32]*stream)}
	c.ctx, c.cancel = context.WithCancelCause(server.ctx)
	c.out = newWriter(c.sock.WriteAll)
	return c
}

// serve reads frames until the connection ends, and returns once nothing of it runs any more.
func (c *conn) serve() error {
	err := c.read()
	if c.unwatch != nil {
		c.unwatch()
	}
	c.cancel(errClientGone) // and with it all streams
	c.server.registry.removeConn(c)
	c.end()
	c.out.close(false)
	c.sock.Close()
	c.running.Wait()
	<-c.out.done
	// a client that ends with frames unread resets the connection, one that is killed ends in the middle of a frame
	for _, gone := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

// end refuses whatever would be begun from here on.
func (c *conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams = nil
}

// shutGrace bounds each step of shut, as a client that does not read could hold it.
const shutGrace = 250 * time.Millisecond

// shut ends the connection from this side, its streams having been cancelled: what they have to say is still sent.
func (c *conn) shut() {
	c.end()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.running.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(shutGrace):
	}
	_ = c.sock.SetWriteDeadline(time.Now().Add(shutGrace))
	c.out.close(true)
	<-c.out.done
	c.sock.Close()
}

func (c *conn) read() error {
	in := bufio.NewReaderSize(c.sock, readBuffer)
	var raw [headSize]byte
	for {
		if _, err := io.ReadFull(in, raw[:]); err != nil {
			return err
		}
		head, err := parseHeader(&raw)
		if err != nil {
			return err
		}
		buf := newBuffer(int(head.length))
		if _, err := io.ReadFull(in, buf.data); err != nil {
			buf.free()
			return err
		}
		if err := c.dispatch(head, buf); err != nil {
			return err
		}
	}
}

// dispatch handles a frame without waiting for anything; it owns buf.
func (c *conn) dispatch(head header, buf *buffer) error {
	if !c.greeted && head.kind != typeRequest {
		buf.free()
		return fmt.Errorf("%w: frame type %d before hello", errProtocol, head.kind)
	}
	switch head.kind {
	case typeRequest:
		defer buf.free()
		return c.request(head.stream, buf.data)
	case typeOpen:
		return c.open(head, buf)
	case typeData:
		return c.deliver(head.stream, item{
			isError: head.flags&flagError != 0, toCome: head.aux, payload: buf.data, owned: buf,
		})
	case typeFin:
		buf.free()
		return c.deliver(head.stream, item{fin: true})
	case typeReset:
		buf.free()
		if s := c.find(head.stream); s != nil {
			s.cancel(clientReset(Code(head.code)))
			c.forget(s)
		}
		return nil
	case typeWindow:
		buf.free()
		if s := c.find(head.stream); s != nil {
			return s.grant(head.aux)
		}
		return nil
	}
	buf.free()
	return fmt.Errorf("%w: frame type %d from the client", errProtocol, head.kind)
}

func (c *conn) deliver(id uint32, it item) error {
	s := c.find(id)
	if s == nil {
		it.owned.free()
		return nil // it was under way when the stream ended
	}
	return s.put(it)
}

func (c *conn) find(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

func (c *conn) forget(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[s.id] == s {
		delete(c.streams, s.id)
	}
}

// open starts a stream that the client opens.
func (c *conn) open(head header, buf *buffer) error {
	t, first, err := parseTarget(buf.data)
	if err != nil {
		buf.free()
		return err
	}
	mode := Mode(head.code)
	if head.stream%2 == 0 || !mode.valid() {
		buf.free()
		return fmt.Errorf("%w: OPEN of stream %d in mode %d", errProtocol, head.stream, mode)
	}
	s := newStream(c, head.stream, mode)
	switch begun, taken := c.begin(s); {
	case taken:
		buf.free()
		return fmt.Errorf("%w: OPEN of stream %d, which is open", errProtocol, head.stream)
	case !begun:
		buf.free()
		s.reset(errClosing)
		return nil
	}
	t.peer = append([]byte(nil), t.peer...)
	if head.flags&flagFirst != 0 {
		if err := s.put(item{toCome: uint32(len(first)), payload: first, owned: buf}); err != nil {
			c.running.Done()
			return err
		}
	} else {
		buf.free()
	}
	timeout := time.Duration(head.aux) * time.Millisecond
	go func() {
		defer c.running.Done()
		c.server.call(s, &t, timeout)
	}()
	return nil
}

// begin makes a stream of the client known and counts its runner, if the connection has not ended.
func (c *conn) begin(s *stream) (begun, taken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams == nil {
		return false, false
	}
	if _, taken := c.streams[s.id]; taken {
		return false, true
	}
	c.streams[s.id] = s
	c.running.Add(1)
	return true, false
}

// accept makes a stream for an incoming call and announces it, with its first message if there is one: first then holds
// room for the target and the message after it. The runner calls conn.running.Done at its end.
func (c *conn) accept(mode Mode, t *target, first *buffer) (*stream, error) {
	c.mu.Lock()
	if c.streams == nil {
		c.mu.Unlock()
		first.free()
		return nil, errClientGone
	}
	c.lastID += 2
	for c.streams[c.lastID] != nil || c.lastID == 0 {
		c.lastID += 2
	}
	s := newStream(c, c.lastID, mode)
	f := frame{head: header{kind: typeAccept, code: uint16(mode), stream: s.id}}
	if first == nil {
		f.payload = appendTarget(nil, t)
	} else {
		appendTarget(first.data[:0], t)
		cost := len(first.data) - targetSize(t) + frameCost
		s.credit, s.unread = s.credit-cost, s.unread+cost
		f.head.flags, f.payload, f.owned = flagFirst, first.data, first
	}
	c.streams[s.id] = s
	c.running.Add(1)
	c.mu.Unlock()
	if !c.out.sendData(f) {
		s.over(errClientGone)
		c.running.Done()
		return nil, errClientGone
	}
	return s, nil
}
