package node

import (
	"bufio"
	"context"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// bulkSize is what a connection reads at once, four records of TLS.
const bulkSize = 64 << 10

// bulkTLS is TLS with fewer system calls: crypto/tls makes one for each record of 16 KiB, both ways, which is a third of the
// time that bulk data costs. Here the records of one write leave together, and reads take what there is.
type bulkTLS struct{ *libp2ptls.Transport }

func newTLS(id protocol.ID, key crypto.PrivKey, muxers []tptu.StreamMuxer) (*bulkTLS, error) {
	inner, err := libp2ptls.New(id, key, muxers)
	if err != nil {
		return nil, err
	}
	return &bulkTLS{inner}, nil
}

// SecureInbound implements sec.SecureTransport.
func (t *bulkTLS) SecureInbound(ctx context.Context, conn net.Conn, p peer.ID) (sec.SecureConn, error) {
	raw := &bulkConn{Conn: conn, in: bufio.NewReaderSize(conn, bulkSize)}
	secured, err := t.Transport.SecureInbound(ctx, raw, p)
	if err != nil {
		return nil, err
	}
	return &bulkSecure{SecureConn: secured, raw: raw}, nil
}

// SecureOutbound implements sec.SecureTransport.
func (t *bulkTLS) SecureOutbound(ctx context.Context, conn net.Conn, p peer.ID) (sec.SecureConn, error) {
	raw := &bulkConn{Conn: conn, in: bufio.NewReaderSize(conn, bulkSize)}
	secured, err := t.Transport.SecureOutbound(ctx, raw, p)
	if err != nil {
		return nil, err
	}
	return &bulkSecure{SecureConn: secured, raw: raw}, nil
}

// bulkSecure is the encrypted side.
type bulkSecure struct {
	sec.SecureConn
	raw *bulkConn
}

// Write implements net.Conn. Only one goroutine may write, as yamux does.
func (c *bulkSecure) Write(p []byte) (int, error) {
	c.raw.hold()
	n, err := c.SecureConn.Write(p)
	if flushed := c.raw.release(); err == nil && flushed != nil {
		return 0, flushed
	}
	return n, err
}

// bulkConn is the side of the network. TLS serialises its writes, but those of alerts may come at any time.
type bulkConn struct {
	net.Conn
	in *bufio.Reader // of the reading goroutine

	mu      sync.Mutex
	holding bool   // mu: writes are kept in out
	out     []byte // mu
}

// Read implements net.Conn.
func (c *bulkConn) Read(p []byte) (int, error) { return c.in.Read(p) }

// Write implements net.Conn.
func (c *bulkConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.holding {
		return c.Conn.Write(p)
	}
	c.out = append(c.out, p...)
	return len(p), nil
}

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
	_, err := c.Conn.Write(c.out)
	c.out = c.out[:0]
	return err
}
