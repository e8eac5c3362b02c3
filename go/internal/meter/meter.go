// Package meter counts the calls of a peer, by protocol and by remote peer: how many, how long, how large, and how they failed.
// Its memory is bounded: what has no place in its tables is counted together. A call takes and gives back its counters
// under a lock; what it counts on the way are atomic additions.
package meter

import (
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Places in the tables: protocols are the names that this peer's own programs use, peers come and go.
const (
	maxProtocols = 256
	maxPeers     = 1024
)

// Direction is who calls whom.
type Direction uint8

// Directions of calls.
const (
	In  Direction = iota // a peer calls this one
	Out                  // this peer calls another
)

// Meter is the counters of one peer. It is safe for concurrent use.
type Meter struct {
	protocols *table[string]
	peers     *table[peer.ID]
	unknown   atomic.Int64
	connects  atomic.Int64
}

// New makes a meter that has counted nothing.
func New() *Meter {
	return &Meter{protocols: newTable[string](maxProtocols), peers: newTable[peer.ID](maxPeers)}
}

// Connected counts a new connection with p.
func (m *Meter) Connected(p peer.ID) {
	m.connects.Add(1)
	e := m.peers.take(p)
	m.peers.counters(e).connects.Add(1)
	m.peers.give(e)
}

// Connects is the count of Connected, of all peers.
func (m *Meter) Connects() int64 { return m.connects.Load() }

// UnknownProtocol counts a stream that a peer opened and named no protocol of this one in.
func (m *Meter) UnknownProtocol() { m.unknown.Add(1) }

// UnknownProtocols is the count of UnknownProtocol.
func (m *Meter) UnknownProtocols() int64 { return m.unknown.Load() }

// Protocols returns a reading by protocol, and that of those which have no place of their own.
func (m *Meter) Protocols() (readings map[string]Reading, rest Reading) { return m.protocols.read() }

// Peers returns a reading by peer, and that of those which have no place of their own.
func (m *Meter) Peers() (readings map[peer.ID]Reading, rest Reading) { return m.peers.read() }

// Call is a call or stream under way. Its bytes may be counted from several goroutines.
type Call struct {
	meter    *Meter
	protocol *entry[string]
	peer     *entry[peer.ID]
	flows    [2]*flow
	begun    time.Time
}

// Begin counts a call; whoever began it ends it.
func (m *Meter) Begin(way Direction, p peer.ID, protocol string) *Call {
	c := &Call{meter: m, protocol: m.protocols.take(protocol), peer: m.peers.take(p), begun: time.Now()}
	c.flows = [2]*flow{&m.protocols.counters(c.protocol).flows[way], &m.peers.counters(c.peer).flows[way]}
	for _, flow := range c.flows {
		flow.calls.Add(1)
		flow.inFlight.Add(1)
	}
	return c
}

// Received counts bytes that came from the peer.
func (c *Call) Received(bytes int) {
	for _, flow := range c.flows {
		flow.received.Add(int64(bytes))
	}
}

// Sent counts bytes that went to the peer.
func (c *Call) Sent(bytes int) {
	for _, flow := range c.flows {
		flow.sent.Add(int64(bytes))
	}
}

// Failed counts how the call failed.
func (c *Call) Failed(kind Kind) {
	for _, flow := range c.flows {
		flow.errors[kind.known()].Add(1)
	}
}

// End ends the call.
func (c *Call) End() {
	took := time.Since(c.begun)
	for _, flow := range c.flows {
		flow.inFlight.Add(-1)
		flow.latency.add(took)
	}
	c.meter.protocols.give(c.protocol)
	c.meter.peers.give(c.peer)
}
