package node

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// TestIdleConnectionsHoldNoBuffers: neither before nor after there was something to read, nor after a deadline.
func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	sender, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	c := newBulkConn(accepted)
	if c.kernel == nil {
		t.Fatal("the kernel's side is hidden")
	}

	if err := c.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	small := make([]byte, 1000)
	if _, err := c.Read(small); !errors.Is(err, os.ErrDeadlineExceeded) || c.in != nil {
		t.Errorf("buffer %v, %v", c.in != nil, err)
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	const total = 3*bulkSize + 10
	go func() {
		_, _ = sender.Write(make([]byte, total))
		sender.Close()
	}()
	for got := 0; got < total; {
		n, err := c.Read(small[:min(len(small), total-got)])
		if err != nil {
			t.Fatal(got, err)
		}
		got += n
	}
	if c.left != nil || c.in != nil {
		t.Error("a buffer is held though nothing is left in it")
	}
	if _, err := c.Read(small); err != io.EOF || c.in != nil { //nolint:errorlint // yamux wants it bare
		t.Errorf("buffer %v, %v", c.in != nil, err)
	}
	accepted.Close()
	if _, err := c.Read(small); !errors.Is(err, net.ErrClosed) || c.in != nil {
		t.Errorf("buffer %v, %v", c.in != nil, err)
	}
}
