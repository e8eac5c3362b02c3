package node

import (
	"net"
	"syscall"
	"time"

	quicgo "github.com/quic-go/quic-go"
)

// A TCP connection on which nothing comes back is closed after silence: when the other machine, or an address or a mapping on the way, is
// gone, the kernel would try for a quarter of an hour, and the multiplexer notices after 40 s. The kernels of both sides answer for
// themselves, so that neither a busy peer nor a slow link with full buffers is taken for a lost one. QUIC's daemons answer for themselves: they
// have a little longer.
const (
	silence = 6 * time.Second
	// askAfter and askAgain pace the kernel's questions on a connection without traffic.
	askAfter = 3 * time.Second
	askAgain = time.Second
	// A QUIC connection is closed when nothing has come for quicSilence after something was sent, which is a question after askAfter at the latest.
	// The shorter of both sides' times counts.
	quicSilence = 8 * time.Second
)

// socket is what the kernel has of a TCP connection.
type socket interface {
	syscall.Conn
	SetKeepAliveConfig(config net.KeepAliveConfig) error
}

// boundSilence has the kernel watch a connection, if it is one of TCP.
func boundSilence(conn any) {
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

// boundQUICSilence has QUIC watch the connections that this peer makes: the library has no option for it, but lets its configuration be changed
// before the first one. Those that others make are watched where they do the same.
func boundQUICSilence(config *quicgo.Config) {
	config.KeepAlivePeriod = askAfter
	config.MaxIdleTimeout = quicSilence
}
