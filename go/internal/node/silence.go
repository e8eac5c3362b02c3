package node

import (
	"context"
	"net"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
)

// A TCP connection on which nothing comes back is closed after silence: when the other machine, or an address or a mapping on the way, is
// gone, the kernel would try for a quarter of an hour, and the multiplexer notices after 40 s. The kernels of both sides answer for
// themselves, so that neither a busy peer nor a slow link with full buffers is taken for a lost one.
const (
	silence = 6 * time.Second
	// askAfter and askAgain pace the kernel's questions on a connection without traffic.
	askAfter = 3 * time.Second
	askAgain = time.Second
)

// socket is what the kernel has of a TCP connection.
type socket interface {
	syscall.Conn
	SetKeepAliveConfig(config net.KeepAliveConfig) error
}

// boundSilence has the kernel watch a connection. Those of private swarms, which are wrapped, have the multiplexer's keep-alive alone; QUIC's
// are watched by their library.
func boundSilence(conn net.Conn) {
	sock, ok := conn.(socket)
	if !ok {
		return
	}
	// A connection that has failed already says so to whoever reads.
	_ = sock.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: askAfter, Interval: askAgain, Count: int((silence - askAfter) / askAgain),
	})
	_ = setUserTimeout(sock, silence)
}

// watchedNoise is noise on connections that the kernel watches.
type watchedNoise struct{ *noise.Transport }

func newNoise(id protocol.ID, key crypto.PrivKey, muxers []tptu.StreamMuxer) (*watchedNoise, error) {
	inner, err := noise.New(id, key, muxers)
	if err != nil {
		return nil, err
	}
	return &watchedNoise{inner}, nil
}

// SecureInbound implements sec.SecureTransport.
func (t *watchedNoise) SecureInbound(ctx context.Context, conn net.Conn, p peer.ID) (sec.SecureConn, error) {
	boundSilence(conn)
	return t.Transport.SecureInbound(ctx, conn, p)
}

// SecureOutbound implements sec.SecureTransport.
func (t *watchedNoise) SecureOutbound(ctx context.Context, conn net.Conn, p peer.ID) (sec.SecureConn, error) {
	boundSilence(conn)
	return t.Transport.SecureOutbound(ctx, conn, p)
}
