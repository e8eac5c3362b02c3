package meter

import (
	"sync/atomic"
	"time"
)

// Kind is how a call failed. The numbers above 0 are the reset codes of the control protocol.
type Kind uint8

// KindHandler is a call whose handler raised something else than that it is busy: it was brought there and back.
const KindHandler Kind = 0

// kinds are the names of all kinds, in order.
var kinds = [...]string{
	"handler", "cancelled", "deadline", "unreachable", "not_supported", "reset", "too_large", "busy", "malformed",
	"internal", "handler_taken", "closing", "not_found", "truncated", "bad_request",
}

// kindInternal is what unknown kinds are counted as.
const kindInternal Kind = 9

func (k Kind) String() string { return kinds[k.known()] }

func (k Kind) known() Kind {
	if int(k) < len(kinds) {
		return k
	}
	return kindInternal
}

// LatencyBounds are the upper bounds of the latency buckets in seconds; one more bucket has what is longer.
var LatencyBounds = [...]float64{
	0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
}

// latency is how long calls took, from their beginning to their end.
type latency struct {
	count, nanos, longest atomic.Int64
	buckets               [len(LatencyBounds) + 1]atomic.Int64
}

func (l *latency) add(took time.Duration) {
	l.count.Add(1)
	l.nanos.Add(int64(took))
	for old := l.longest.Load(); int64(took) > old && !l.longest.CompareAndSwap(old, int64(took)); {
		old = l.longest.Load()
	}
	bucket := 0
	for seconds := took.Seconds(); bucket < len(LatencyBounds) && seconds > LatencyBounds[bucket]; {
		bucket++
	}
	l.buckets[bucket].Add(1)
}

// flow is what goes one way: calls of peers (in) or to peers (out).
type flow struct {
	calls, inFlight atomic.Int64
	received, sent  atomic.Int64 // bytes, both ways of those calls
	errors          [len(kinds)]atomic.Int64
	latency         latency
}

// Counters are those of one protocol or of one peer, since the start. They are safe for concurrent use.
type Counters struct {
	flows    [2]flow
	connects atomic.Int64
}

// absorb adds what other has counted, all of whose calls have ended.
func (c *Counters) absorb(other *Counters) {
	c.connects.Add(other.connects.Load())
	for i := range c.flows {
		to, from := &c.flows[i], &other.flows[i]
		to.calls.Add(from.calls.Load())
		to.received.Add(from.received.Load())
		to.sent.Add(from.sent.Load())
		for kind := range from.errors {
			to.errors[kind].Add(from.errors[kind].Load())
		}
		to.latency.count.Add(from.latency.count.Load())
		to.latency.nanos.Add(from.latency.nanos.Load())
		to.latency.longest.Store(max(to.latency.longest.Load(), from.latency.longest.Load()))
		for bucket := range from.latency.buckets {
			to.latency.buckets[bucket].Add(from.latency.buckets[bucket].Load())
		}
	}
}

// Flow is a reading of the calls of one direction. Bytes are those of the calls' streams, envelopes included.
type Flow struct {
	Calls    int64            `json:"calls"`
	InFlight int64            `json:"in_flight"`
	Received int64            `json:"received"`
	Sent     int64            `json:"sent"`
	Errors   map[string]int64 `json:"errors,omitempty"` // by kind, those that were seen
	Seconds  float64          `json:"seconds"`          // all finished calls together
	Longest  float64          `json:"longest"`          // seconds of the longest
	// Buckets count the finished calls by LatencyBounds, the longer ones last.
	Buckets []int64 `json:"buckets"`
}

// Reading is what Counters hold at one moment.
type Reading struct {
	In       Flow  `json:"in"`
	Out      Flow  `json:"out"`
	Connects int64 `json:"connects"`
}

func (f *flow) read() Flow {
	reading := Flow{
		Calls: f.calls.Load(), InFlight: f.inFlight.Load(), Received: f.received.Load(), Sent: f.sent.Load(),
		Seconds: time.Duration(f.latency.nanos.Load()).Seconds(), Longest: time.Duration(f.latency.longest.Load()).Seconds(),
		Buckets: make([]int64, len(f.latency.buckets)),
	}
	for kind := range f.errors {
		if count := f.errors[kind].Load(); count > 0 {
			if reading.Errors == nil {
				reading.Errors = make(map[string]int64)
			}
			reading.Errors[Kind(kind).String()] = count
		}
	}
	for bucket := range f.latency.buckets {
		reading.Buckets[bucket] = f.latency.buckets[bucket].Load()
	}
	return reading
}

func (c *Counters) read() Reading {
	return Reading{In: c.flows[In].read(), Out: c.flows[Out].read(), Connects: c.connects.Load()}
}
