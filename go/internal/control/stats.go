package control

import (
	"runtime"
	"sync/atomic"
)

// counters count streams since the start; safe for concurrent use.
type counters struct {
	unaryOut, unaryIn     atomic.Int64
	streamsOut, streamsIn atomic.Int64
}

// Stats is the answer of the request stats. Counts are since the start, sizes in bytes.
type Stats struct {
	UnaryOut   int64  `json:"unary_out"`   // unary calls of the clients
	UnaryIn    int64  `json:"unary_in"`    // unary calls of peers
	StreamsOut int64  `json:"streams_out"` // streams of the clients
	StreamsIn  int64  `json:"streams_in"`  // streams of peers
	InFlight   int64  `json:"in_flight"`   // calls and streams under way
	Peers      int    `json:"peers"`       // connected peers
	BytesIn    int64  `json:"bytes_in"`    // received on streams, those of the library's own services included
	BytesOut   int64  `json:"bytes_out"`   // sent on streams, likewise
	Goroutines int    `json:"goroutines"`
	Heap       uint64 `json:"heap"` // memory of live and dead objects
	System     uint64 `json:"system"`
	// Of a relay; 0 for other peers.
	RelayReservations int64 `json:"relay_reservations"` // peers that are reached through this one now
	RelayCircuits     int64 `json:"relay_circuits"`     // connections that go through it now
	RelayAllCircuits  int64 `json:"relay_all_circuits"` // since the start
	RelayBytes        int64 `json:"relay_bytes"`        // relayed
	RelayRefused      int64 `json:"relay_refused"`      // reservations and circuits
}

func (srv *Server) stats() *Stats {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	in, out := srv.network.Traffic()
	answer := &Stats{
		UnaryOut: srv.counters.unaryOut.Load(), UnaryIn: srv.counters.unaryIn.Load(),
		StreamsOut: srv.counters.streamsOut.Load(), StreamsIn: srv.counters.streamsIn.Load(),
		InFlight: srv.active.Load(), Peers: len(srv.network.Peers()),
		BytesIn: in, BytesOut: out,
		Goroutines: runtime.NumGoroutine(), Heap: memory.HeapAlloc, System: memory.Sys,
	}
	if relayed := srv.network.Relayed(); relayed != nil {
		answer.RelayReservations, answer.RelayCircuits = relayed.Reservations, relayed.Circuits
		answer.RelayAllCircuits, answer.RelayBytes, answer.RelayRefused = relayed.AllCircuits, relayed.Bytes, relayed.Refused
	}
	return answer
}

// Load is what control connections hold now.
type Load struct {
	Clients int
	Streams int
	Starved int // streams whose client takes no more bytes
	Queued  int // bytes that wait to be written
}

// Load returns the load of all control connections.
func (srv *Server) Load() Load {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	load := Load{Clients: len(srv.open)}
	for c := range srv.open {
		load.Queued += c.out.waiting()
		streams, starved := c.load()
		load.Streams += streams
		load.Starved += starved
	}
	return load
}

func (c *conn) load() (streams, starved int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		s.mu.Lock()
		if s.credit < leastPart {
			starved++
		}
		s.mu.Unlock()
	}
	return len(c.streams), starved
}
