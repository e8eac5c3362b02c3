package rawio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pair are the two ends of a connection.
func pair(t *testing.T, network string) (one, other net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	listener, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if one, err = net.Dial(network, listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if other, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		one.Close()
		other.Close()
	})
	return one, other
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7)
	}
	return p
}

// TestBytes: many pieces, empty ones among them, and more than the socket takes at once.
func TestBytes(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			a, b := pair(t, network)
			from, to := New(a), New(b)
			want := pattern(5 << 20)
			var sent sync.WaitGroup
			sent.Go(func() {
				if n, err := from.Write(want[:10]); n != 10 || err != nil {
					t.Error(n, err)
				}
				pieces := net.Buffers{nil}
				for rest := want[10:]; len(rest) > 0; {
					n := min(len(rest), 1+len(pieces)*3)
					pieces, rest = append(pieces, rest[:n], nil), rest[n:]
				}
				if len(pieces) < 1000 {
					t.Error("few pieces")
				}
				if n, err := from.WriteAll(pieces); n != int64(len(want)-10) || err != nil {
					t.Error(n, err)
				}
				from.Close()
			})
			got, err := io.ReadAll(to)
			sent.Wait()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// TestHiddenSocket: a connection without a descriptor works as it does.
func TestHiddenSocket(t *testing.T) {
	a, b := net.Pipe()
	go func() {
		c := New(a)
		_, _ = c.WriteAll(net.Buffers{[]byte("ab"), []byte("c")})
		c.Close()
	}()
	if got, err := io.ReadAll(New(b)); string(got) != "abc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestEnds: deadlines and closing end what waits, and errors are those of the system.
func TestEnds(t *testing.T) {
	a, b := pair(t, "tcp")
	c := New(a)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	much := make([]byte, 64<<20)
	_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	n, err := c.Write(much)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Error(n, err)
	}
	if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
		t.Errorf("%#v", err)
	}
	_ = c.SetDeadline(time.Time{})
	b.Close() // with bytes unread, which resets the connection
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	for err = nil; err == nil; {
		_, err = c.Write([]byte{1})
	}
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := c.Write([]byte{1}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestNothingIsAllocated for each call.
func TestNothingIsAllocated(t *testing.T) {
	a, b := pair(t, "unix")
	from, to := New(a), New(b)
	p := pattern(100)
	if allocated := testing.AllocsPerRun(100, func() {
		if _, err := from.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, p); err != nil {
			t.Fatal(err)
		}
	}); allocated > 0 {
		t.Error(allocated)
	}
}
