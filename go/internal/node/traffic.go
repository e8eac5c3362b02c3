package node

import (
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// traffic counts the bytes of all streams since the start: of calls, and of the library's own services. Encryption and
// multiplexing come on top. It implements [metrics.Reporter], of which the host only uses the logging part.
type traffic struct {
	in, out atomic.Int64
}

func (t *traffic) LogSentMessage(size int64) { t.out.Add(size) }
func (t *traffic) LogRecvMessage(size int64) { t.in.Add(size) }

func (t *traffic) LogSentMessageStream(int64, protocol.ID, peer.ID) {}
func (t *traffic) LogRecvMessageStream(int64, protocol.ID, peer.ID) {}

func (t *traffic) GetBandwidthTotals() metrics.Stats {
	return metrics.Stats{TotalIn: t.in.Load(), TotalOut: t.out.Load()}
}

func (t *traffic) GetBandwidthForPeer(peer.ID) (none metrics.Stats)         { return }
func (t *traffic) GetBandwidthForProtocol(protocol.ID) (none metrics.Stats) { return }
func (t *traffic) GetBandwidthByPeer() map[peer.ID]metrics.Stats            { return nil }
func (t *traffic) GetBandwidthByProtocol() map[protocol.ID]metrics.Stats    { return nil }

func (t *traffic) Reset()             {}
func (t *traffic) TrimIdle(time.Time) {}

// Traffic is the number of bytes received and sent on streams since the start.
func (n *Node) Traffic() (in, out int64) { return n.traffic.in.Load(), n.traffic.out.Load() }
