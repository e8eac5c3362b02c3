package life

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// A small heap is mostly buffers that live for a moment: collecting it at several times its live size saves a tenth of the time under load. A
// large one is mostly what connections keep: what dies between two collections is then much, and leaves holes.
const (
	headroom     = 24 << 20 // bytes that are allocated between two collections, within what follows
	mostPercent  = 400      // of the live heap
	leastPercent = 75
)

// gcPercent is by how much a heap of live bytes may grow until it is collected.
func gcPercent(live uint64) int {
	return int(min(max(headroom*100/max(live, 1), leastPercent), mostPercent))
}

// keepHeadroom sets the percentage, now and after each collection: a finalizer is the runtime's only word on that. It is called once.
func keepHeadroom() {
	last := mostPercent
	debug.SetGCPercent(last)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	var collected func(*[16]byte)
	collected = func(mark *[16]byte) {
		metrics.Read(live)
		// setting it stops the process for a moment
		if next := gcPercent(live[0].Value.Uint64()); next < last*9/10 || next > last*11/10 {
			debug.SetGCPercent(next)
			last = next
		}
		runtime.SetFinalizer(mark, collected)
	}
	runtime.SetFinalizer(new([16]byte), collected)
}
