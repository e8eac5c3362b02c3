package meter

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestACall(t *testing.T) {
	m := New()
	m.Connected("p")
	call := m.Begin(In, "p", "T.rpc_a")
	call.Received(100)
	call.Sent(10)
	protocols, _ := m.Protocols()
	if in := protocols["T.rpc_a"].In; in.Calls != 1 || in.InFlight != 1 || in.Received != 100 || in.Sent != 10 {
		t.Fatalf("under way: %+v", in)
	}
	call.Failed(7)
	call.End()
	protocols, _ = m.Protocols()
	peers, rest := m.Peers()
	for _, reading := range []Reading{protocols["T.rpc_a"], peers["p"]} {
		in := reading.In
		if in.InFlight != 0 || in.Errors["busy"] != 1 || in.Seconds <= 0 || in.Longest != in.Seconds || reading.Out.Calls != 0 {
			t.Errorf("ended: %+v", reading)
		}
	}
	if peers["p"].Connects != 1 || rest.Connects != 0 {
		t.Error("connects", peers["p"].Connects)
	}
}

func TestBuckets(t *testing.T) {
	var l latency
	for _, took := range []time.Duration{0, 500 * time.Microsecond, 501 * time.Microsecond, time.Second, time.Hour} {
		l.add(took)
	}
	want := map[int]int64{0: 2, 1: 1, 10: 1, len(LatencyBounds): 1}
	for bucket := range l.buckets {
		if got := l.buckets[bucket].Load(); got != want[bucket] {
			t.Errorf("bucket %d has %d, not %d", bucket, got, want[bucket])
		}
	}
	if l.longest.Load() != int64(time.Hour) {
		t.Error("longest", l.longest.Load())
	}
}

// TestMemoryIsBounded: what has no place is counted together, and no count is lost.
func TestMemoryIsBounded(t *testing.T) {
	m := New()
	long := m.Begin(Out, "keeps its place", "long")
	for i := range 3 * maxPeers {
		call := m.Begin(In, peer.ID(fmt.Sprint(i)), fmt.Sprint("name", i))
		call.Received(7)
		call.End()
	}
	protocols, restProtocols := m.Protocols()
	peers, restPeers := m.Peers()
	if len(protocols) != maxProtocols || len(peers) != maxPeers {
		t.Fatalf("%d protocols, %d peers", len(protocols), len(peers))
	}
	calls, bytes := restProtocols.In.Calls, restProtocols.In.Received
	for _, one := range protocols {
		calls, bytes = calls+one.In.Calls, bytes+one.In.Received
	}
	if calls != 3*maxPeers || bytes != 7*3*maxPeers {
		t.Errorf("protocols: %d calls, %d bytes", calls, bytes)
	}
	calls = restPeers.In.Calls
	for _, one := range peers {
		calls += one.In.Calls
	}
	if calls != 3*maxPeers {
		t.Errorf("peers: %d calls", calls)
	}
	if peers["keeps its place"].Out.InFlight != 1 || peers[peer.ID(fmt.Sprint(3*maxPeers-1))].In.Calls != 1 {
		t.Error("the wrong ones made room")
	}
	long.End()
}

// TestAllPlacesInUse: calls that find no place are counted, and end well.
func TestAllPlacesInUse(t *testing.T) {
	m := New()
	var calls []*Call
	for i := range maxPeers + 10 {
		calls = append(calls, m.Begin(In, peer.ID(fmt.Sprint(i)), "T.rpc_a"))
	}
	if _, rest := m.Peers(); rest.In.InFlight != 10 {
		t.Errorf("%d in flight without a place", rest.In.InFlight)
	}
	for _, call := range calls {
		call.End()
	}
	if _, rest := m.Peers(); rest.In.InFlight != 0 || rest.In.Calls != 10 {
		t.Errorf("%+v", rest.In)
	}
}

func TestManyAtOnce(t *testing.T) {
	m := New()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 1000 {
				call := m.Begin(In, peer.ID(fmt.Sprint(j%2000+i)), "T.rpc_a")
				call.Received(1)
				call.End()
				if j%100 == 0 {
					m.Peers()
				}
			}
		})
	}
	all.Wait()
	protocols, _ := m.Protocols()
	if in := protocols["T.rpc_a"].In; in.Calls != 8000 || in.Received != 8000 || in.InFlight != 0 {
		t.Errorf("%+v", in)
	}
}

func BenchmarkCall(b *testing.B) {
	m := New()
	b.ReportAllocs()
	for b.Loop() {
		call := m.Begin(In, "p", "T.rpc_a")
		call.Received(1)
		call.Sent(1)
		call.End()
	}
}
