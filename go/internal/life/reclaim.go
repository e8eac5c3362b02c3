package life

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A heap that may grow to several times its live size keeps that for minutes after it is needed: a daemon at rest gives it back.
const (
	// reclaimPause is between looks.
	reclaimPause = 5 * time.Second
	// restful is what a daemon allocates at most between two looks while it has little to do.
	restful = 1 << 20
	// worthwhile is how much must be to gain: a collection takes some milliseconds.
	worthwhile = 4 << 20
)

// heap is the memory of the process at one look.
type heap struct {
	allocated uint64 // bytes, since the start
	live      uint64 // bytes, at the last collection
	objects   uint64 // bytes, with what the next collection will find dead
	free      uint64 // bytes that are the runtime's and hold nothing
}

func readHeap() heap {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	return heap{samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(), samples[3].Value.Uint64()}
}

// isAtRest: little was allocated since the look before, and there is much to give back.
func isAtRest(before, now heap) bool {
	return now.allocated-before.allocated <= restful && now.free+max(now.objects, now.live)-now.live >= worthwhile
}

// reclaim gives memory back to the system whenever the process has come to rest, until ctx ends.
func reclaim(ctx context.Context) {
	ticker := time.NewTicker(reclaimPause)
	defer ticker.Stop()
	for before := readHeap(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := readHeap()
		if isAtRest(before, now) {
			runtime.GC() // what lies in pools goes with the second collection
			debug.FreeOSMemory()
			now = readHeap()
		}
		before = now
	}
}
