// Package guard decides which peers are slowed down and which are refused. A peer that asks for more than its limits give it,
// or for what is not there, is told so each time; one that does not stop floods, and is first slowed down and then dropped: its
// connections are closed, and it is refused for a time.
//
// What a peer is refused fills a leaky bucket. Calls that are served do not count, so that a peer with much to do is never
// taken for one that floods.
package guard

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Reason is why something of a peer was refused.
type Reason uint8

// Reasons.
const (
	Calls     Reason = iota // more calls under way than a peer may have
	Streams                 // more open streams than a peer may have
	Unknown                 // a protocol that this peer does not have
	Malformed               // bytes that are no call
	Pressed                 // streams that were opened while the peer was slowed down
	reasons
)

var reasonNames = [reasons]string{"calls", "streams", "unknown_protocol", "malformed", "pressed"}

func (r Reason) String() string { return reasonNames[r] }

const (
	// leakRate is how much a bucket loses in a second: what a peer may be refused for ever.
	leakRate = 20
	// slowPause is between two streams of a peer that is slowed down; it is more often than the bucket leaks.
	slowPause = 20 * time.Millisecond
	// dropAfter is what a peer may be refused after it was slowed down.
	dropAfter = 128
	// maxRecords bounds the peers that are remembered without an open stream.
	maxRecords = 4096
	// sample is how many are looked at to find one that makes room.
	sample = 64
	// maxBans bounds the peers that are refused; the one that is to be let in next makes room.
	maxBans = 4096
)

// Limits are what a peer may do.
type Limits struct {
	// Streams that a peer may have open.
	Streams int
	// Flood is what a peer may be refused before it is slowed down; 0 never slows or drops.
	Flood int
	// Ban is for how long a peer is refused that was dropped.
	Ban time.Duration
	// Own is this peer, which may call itself: what it is refused does not count against it.
	Own peer.ID
}

// Events are what a guard tells. They come without its locks held, and must not wait.
type Events struct {
	Slowed  func(p peer.ID, why Reason)
	Dropped func(p peer.ID, why Reason)
}

// Guard is the judgement of one peer on all others. It is safe for concurrent use.
type Guard struct {
	limits Limits
	events Events
	now    func() time.Time

	refusals [reasons]atomic.Int64
	slowed   atomic.Int64
	dropped  atomic.Int64

	mu      sync.Mutex
	records map[peer.ID]*record   // mu
	bans    map[peer.ID]time.Time // mu: until when
}

// record is what is known of a peer.
type record struct {
	streams int
	level   float64 // of the bucket at the time at
	at      time.Time
	slowed  bool
}

// New makes a guard that knows nobody. now is the clock.
func New(limits Limits, events Events, now func() time.Time) *Guard {
	return &Guard{
		limits: limits, events: events, now: now, records: make(map[peer.ID]*record), bans: make(map[peer.ID]time.Time),
	}
}

// Opened counts a stream that p has opened, until Closed. It returns how long p is to wait before the stream is served, and
// whether it is served at all.
func (g *Guard) Opened(p peer.ID) (pause time.Duration, ok bool) {
	g.mu.Lock()
	r := g.record(p)
	r.streams++
	slowed, over := r.slowed, r.streams > g.limits.Streams
	if over {
		r.streams--
	}
	g.mu.Unlock()
	if slowed {
		g.Refused(p, Pressed)
		pause = slowPause
	}
	if over {
		g.Refused(p, Streams)
	}
	return pause, !over
}

// Called counts a call of p on a stream that was open before. It returns how long p is to wait before it is served.
func (g *Guard) Called(p peer.ID) (pause time.Duration) {
	if !g.Slowed(p) {
		return 0
	}
	g.Refused(p, Pressed)
	return slowPause
}

// Closed takes back an Opened that was served.
func (g *Guard) Closed(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.record(p)
	r.streams = max(0, r.streams-1)
	if r.streams == 0 && r.level < 1 {
		delete(g.records, p)
	}
}

// Refused counts something that p was refused.
func (g *Guard) Refused(p peer.ID, why Reason) {
	g.refusals[why].Add(1)
	if g.limits.Flood == 0 || p == g.limits.Own {
		return
	}
	g.mu.Lock()
	r := g.record(p)
	r.level++
	flood := float64(g.limits.Flood)
	slow, drop := !r.slowed && r.level > flood, r.level > flood+dropAfter
	r.slowed = r.slowed || slow
	if drop {
		r.level, r.slowed = 0, false // what is under way must not drop it again when it may come back
		g.ban(p, g.limits.Ban)
	}
	g.mu.Unlock()
	if slow {
		g.slowed.Add(1)
		g.events.Slowed(p, why)
	}
	if drop {
		g.dropped.Add(1)
		g.events.Dropped(p, why)
	}
}

// record returns the record of p as it is now; mu is held.
func (g *Guard) record(p peer.ID) *record {
	now := g.now()
	r := g.records[p]
	if r == nil {
		if len(g.records) >= maxRecords {
			g.sweep(now)
		}
		r = &record{at: now}
		g.records[p] = r
	}
	r.leak(now, float64(g.limits.Flood))
	return r
}

// leak brings the bucket to now. A peer that was slowed down is so until half of it has leaked.
func (r *record) leak(now time.Time, flood float64) {
	r.level = max(0, r.level-leakRate*now.Sub(r.at).Seconds())
	r.at = now
	if r.level < flood/2 {
		r.slowed = false
	}
}

// sweep forgets peers without open streams whose buckets are empty, or that with the emptiest, of some that it looks at; mu is held.
func (g *Guard) sweep(now time.Time) {
	var emptiest peer.ID
	least, left := -1.0, sample
	for p, r := range g.records {
		if left--; left < 0 {
			break
		}
		r.leak(now, float64(g.limits.Flood))
		switch {
		case r.streams > 0:
		case r.level < 1:
			delete(g.records, p)
		case least < 0 || r.level < least:
			emptiest, least = p, r.level
		}
	}
	if len(g.records) >= maxRecords && least >= 0 {
		delete(g.records, emptiest)
	}
}

// Slowed tells whether p is slowed down.
func (g *Guard) Slowed(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.records[p]
	if r == nil {
		return false
	}
	r.leak(g.now(), float64(g.limits.Flood))
	return r.slowed
}

// Counts are what a guard has done since its start.
type Counts struct {
	Refused map[string]int64 // by reason
	Slowed  int64
	Dropped int64
	Banned  int // peers that are refused now
}

// Counts returns what was done so far.
func (g *Guard) Counts() Counts {
	counts := Counts{Refused: make(map[string]int64, reasons), Slowed: g.slowed.Load(), Dropped: g.dropped.Load()}
	for why := range reasons {
		counts.Refused[why.String()] = g.refusals[why].Load()
	}
	counts.Banned = len(g.Bans())
	return counts
}
