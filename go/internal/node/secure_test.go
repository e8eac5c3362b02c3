package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// countingConn counts the calls that would be system calls.
type countingConn struct {
	net.Conn
	writes atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestRecordsOfOneWriteLeaveTogether(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan sec.SecureConn, 1)
	server := testTLS(t)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		secured, err := server.SecureInbound(context.Background(), conn, "")
		if err != nil {
			t.Error(err)
		}
		accepted <- secured
	}()
	conn, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	counter := &countingConn{Conn: conn}
	client := testTLS(t)
	sender, err := client.SecureOutbound(within(t), counter, "")
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	receiver := <-accepted
	defer receiver.Close()

	const pieces = 40
	piece := bytes.Repeat([]byte("hivemind"), 8<<10)
	got := make(chan []byte, 1)
	go func() {
		all, err := io.ReadAll(io.LimitReader(receiver, pieces*int64(len(piece))))
		if err != nil {
			t.Error(err)
		}
		got <- all
	}()
	before := counter.writes.Load()
	for range pieces {
		if n, err := sender.Write(piece); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	if writes := counter.writes.Load() - before; writes != pieces {
		t.Errorf("%d system calls for %d writes", writes, pieces)
	}
	if !bytes.Equal(<-got, bytes.Repeat(piece, pieces)) {
		t.Error("bytes differ")
	}
	_ = conn.Close()
	if _, err := sender.Write(piece); err == nil {
		t.Error("a broken connection took a write")
	}
}

func testTLS(t *testing.T) *bulkTLS {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := newTLS(libp2ptls.ID, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	return transport
}
