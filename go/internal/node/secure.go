package node

import (
	"context"
	"net"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

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
	raw := newBulkConn(conn)
	secured, err := t.Transport.SecureInbound(ctx, raw, p)
	if err != nil {
		return nil, err
	}
	return &bulkSecure{SecureConn: secured, raw: raw}, nil
}

// SecureOutbound implements sec.SecureTransport.
func (t *bulkTLS) SecureOutbound(ctx context.Context, conn net.Conn, p peer.ID) (sec.SecureConn, error) {
	raw := newBulkConn(conn)
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
