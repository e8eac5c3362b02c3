// Package rawio reads from and writes to sockets without a word to Go's scheduler. It takes every system call for one that may block, for
// which others may have to run meanwhile: it wakes a thread that looks for that, and a small message costs several such calls. Those on a
// socket that does not block are over in microseconds. Neither is the race detector told: what one end has sent orders nothing for it.
package rawio

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// Conn is a connection whose socket is read and written so, where it can be. One goroutine may read and one write at a time.
type Conn struct {
	net.Conn
	kernel syscall.RawConn // nil where it is hidden
	in     reading
	out    writing
}

// reading and writing are of the goroutine that does so; made once, as what is handed to the kernel's side would be allocated each time.
type reading struct {
	now func(fd uintptr) (done bool)
	p   []byte
	n   int
	err error
}

type writing struct {
	now  func(fd uintptr) (done bool)
	one  [1][]byte
	rest net.Buffers
	n    int64
	err  error
}

// New wraps a connection.
func New(conn net.Conn) *Conn {
	c := &Conn{Conn: conn, kernel: Kernel(conn)}
	c.in.now, c.out.now = c.in.try, c.out.try
	return c
}

// Kernel is the socket of a connection; nil where it is hidden.
func Kernel(conn net.Conn) syscall.RawConn {
	sock, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	kernel, err := sock.SyscallConn()
	if err != nil {
		return nil
	}
	return kernel
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if c.kernel == nil || len(p) == 0 {
		return c.Conn.Read(p)
	}
	r := &c.in
	r.p, r.n, r.err = p, 0, nil
	err := c.kernel.Read(r.now)
	r.p = nil
	switch {
	case err != nil: // a deadline, or the end of the connection on this side
		return 0, err
	case r.err == nil && r.n == 0:
		return 0, io.EOF
	}
	return r.n, r.err
}

func (r *reading) try(fd uintptr) (done bool) {
	n, err := Read(fd, r.p)
	if errors.Is(err, syscall.EAGAIN) {
		return false
	}
	r.n, r.err = n, os.NewSyscallError("read", err)
	return true
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	c.out.one[0] = p
	n, err := c.WriteAll(c.out.one[:])
	c.out.one[0] = nil
	return int(n), err
}

// WriteAll writes several pieces, in one system call where the socket takes so much. It changes the slice of them, as net.Buffers does.
func (c *Conn) WriteAll(pieces net.Buffers) (int64, error) {
	if c.kernel == nil {
		rest := pieces // or pieces would be allocated for every call
		return rest.WriteTo(c.Conn)
	}
	w := &c.out
	w.rest, w.n, w.err = pieces, 0, nil
	err := c.kernel.Write(w.now)
	w.rest = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

func (w *writing) try(fd uintptr) (done bool) {
	for {
		for len(w.rest) > 0 && len(w.rest[0]) == 0 {
			w.rest = w.rest[1:]
		}
		if len(w.rest) == 0 {
			return true
		}
		n, err := Write(fd, w.rest)
		if errors.Is(err, syscall.EAGAIN) {
			return false
		}
		if err != nil {
			w.err = os.NewSyscallError("write", err)
			return true
		}
		w.n += int64(n)
		for n > 0 {
			first := min(n, len(w.rest[0]))
			w.rest[0] = w.rest[0][first:]
			n -= first
			if len(w.rest[0]) == 0 {
				w.rest = w.rest[1:]
			}
		}
	}
}
