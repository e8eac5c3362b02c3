package node

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"hivemind/p2pd/internal/rawio"
)

// bulkSize is what a connection reads at once, four records of TLS.
const bulkSize = 64 << 10

// Buffers of both directions are shared, as most connections are idle most of the time: a peer of a large swarm has hundreds.
var (
	bulkIn  = sync.Pool{New: func() any { return new([bulkSize]byte) }}
	bulkOut = sync.Pool{New: func() any { return new([]byte) }}
)

// bulkConn is the network's side of an encrypted connection. TLS serialises its writes, but those of alerts may come at any time.
type bulkConn struct {
	*rawio.Conn
	kernel syscall.RawConn // nil where it is hidden: then a buffer waits with the reader

	in   *[bulkSize]byte // of the reading goroutine: nil while nothing is left
	left []byte          // of the reading goroutine: what of in is to be taken

	mu      sync.Mutex
	holding bool    // mu: writes are kept in out
	out     *[]byte // mu: nil while nothing is kept
}

func newBulkConn(conn net.Conn) *bulkConn {
	return &bulkConn{Conn: rawio.New(conn), kernel: rawio.Kernel(conn)}
}

// Read implements net.Conn.
func (c *bulkConn) Read(p []byte) (int, error) {
	if len(c.left) == 0 {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.left)
	if c.left = c.left[n:]; len(c.left) == 0 {
		bulkIn.Put(c.in)
		c.in, c.left = nil, nil // an empty rest would keep the buffer too
	}
	return n, nil
}

// fill waits for bytes, and takes a buffer only when they are there.
func (c *bulkConn) fill() error {
	var n int
	var err error
	if c.kernel == nil {
		c.in, _ = bulkIn.Get().(*[bulkSize]byte)
		n, err = c.Conn.Read(c.in[:])
	} else if waited := c.kernel.Read(func(fd uintptr) bool {
		c.in, _ = bulkIn.Get().(*[bulkSize]byte)
		n, err = rawio.Read(fd, c.in[:])
		if !errors.Is(err, syscall.EAGAIN) {
			return true
		}
		bulkIn.Put(c.in)
		c.in = nil
		return false
	}); waited != nil { // a deadline, or the end of the connection on this side
		err = waited
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		if c.in != nil {
			bulkIn.Put(c.in)
			c.in = nil
		}
		return err
	}
	c.left = c.in[:n]
	return nil
}

// Write implements net.Conn.
func (c *bulkConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.holding {
		return c.Conn.Write(p)
	}
	if c.out == nil {
		c.out, _ = bulkOut.Get().(*[]byte)
	}
	*c.out = append(*c.out, p...)
	return len(p), nil
}

// hold keeps what is written, until release.
func (c *bulkConn) hold() {
	c.mu.Lock()
	c.holding = true
	c.mu.Unlock()
}

// release writes what was kept.
func (c *bulkConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holding = false
	if c.out == nil {
		return nil
	}
	_, err := c.Conn.Write(*c.out)
	*c.out = (*c.out)[:0]
	bulkOut.Put(c.out)
	c.out = nil
	return err
}
