package life

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{
		0: 400, 5 << 20: 400, 6 << 20: 400, 12 << 20: 200, 24 << 20: 100, 32 << 20: 75, 1 << 30: 75,
	} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MiB: %d %%, not %d", live>>20, got, want)
		}
	}
}

// TestHeadroomIsKept: a heap that has grown is collected earlier, and one that has shrunk later.
func TestHeadroomIsKept(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	keepHeadroom()
	percent := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	becomes := func(low, high int) {
		t.Helper()
		for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			runtime.GC()
			metrics.Read(percent)
			now := int(percent[0].Value.Uint64())
			if low <= now && now <= high {
				return
			}
			if time.Now().After(until) {
				t.Fatalf("%d %%, not %d to %d", now, low, high)
			}
		}
	}
	large := make([]byte, 64<<20)
	becomes(leastPercent, leastPercent)
	runtime.KeepAlive(large)
	becomes(mostPercent*9/10, mostPercent)
}
