package control

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// idleTime is how long a stream waits for its next call, by half of it more or less.
	idleTime = 10 * time.Second
	// idlePerPeer and idleTotal bound the streams that wait: each takes memory on both sides.
	idlePerPeer = 64
	idleTotal   = 1024
)

// idleStreams are streams of calls that have ended well, for the next calls to the same peers: opening one costs more than a small call.
// The caller alone ends them, so that none is closed by the other side as it is taken.
type idleStreams struct {
	mu     sync.Mutex
	peers  map[peer.ID][]idleStream // mu: none without streams; the newest last
	total  int                      // mu
	closed bool                     // mu
	sweeps *time.Timer              // mu: nil while there is nothing to sweep
}

type idleStream struct {
	network.Stream
	since time.Time
}

// take returns the stream to p that was used last; nil if there is none on a connection that stands.
func (i *idleStreams) take(p peer.ID) network.Stream {
	i.mu.Lock()
	defer i.mu.Unlock()
	for streams := i.peers[p]; len(streams) > 0; {
		last := len(streams) - 1
		s := streams[last].Stream
		streams[last] = idleStream{}
		streams = streams[:last]
		i.put(p, streams)
		if !s.Conn().IsClosed() {
			return s
		}
		_ = s.Reset()
	}
	return nil
}

// give keeps s, or closes it. Those on relayed connections are closed, as such a connection is to end once there is a direct one.
func (i *idleStreams) give(p peer.ID, s network.Stream) {
	i.mu.Lock()
	streams := i.peers[p]
	keep := !i.closed && !s.Conn().Stat().Limited && len(streams) < idlePerPeer && i.total < idleTotal
	if keep {
		i.put(p, append(streams, idleStream{s, time.Now()}))
		if i.sweeps == nil {
			i.sweeps = time.AfterFunc(idleTime/2, i.sweep)
		}
	}
	i.mu.Unlock()
	if !keep {
		_ = s.Close()
	}
}

// put sets the streams of p; mu is held.
func (i *idleStreams) put(p peer.ID, streams []idleStream) {
	i.total += len(streams) - len(i.peers[p])
	if len(streams) == 0 {
		delete(i.peers, p)
	} else {
		i.peers[p] = streams
	}
}

// sweep closes what has waited too long.
func (i *idleStreams) sweep() {
	var over []network.Stream
	i.mu.Lock()
	before := time.Now().Add(-idleTime)
	for p, streams := range i.peers {
		n := 0
		for n < len(streams) && streams[n].since.Before(before) {
			over = append(over, streams[n].Stream)
			n++
		}
		i.put(p, append([]idleStream(nil), streams[n:]...))
	}
	if i.total > 0 && !i.closed {
		i.sweeps.Reset(idleTime / 2)
	} else {
		i.sweeps = nil
	}
	i.mu.Unlock()
	for _, s := range over {
		_ = s.Close()
	}
}

// close ends all of them, and those that are given later.
func (i *idleStreams) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	if i.sweeps != nil {
		i.sweeps.Stop()
	}
	for p, streams := range i.peers {
		for _, s := range streams {
			_ = s.Close()
		}
		i.put(p, nil)
	}
}
