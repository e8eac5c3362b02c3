package node

import (
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// TestNewcomersAreKnownToThoseNearThem: and not to everybody, and whoever asks for one by its id alone finds it.
func TestNewcomersAreKnownToThoseNearThem(t *testing.T) {
	const size, neighbours = 30, 4
	nodes := []*Node{start(t, nil)}
	for len(nodes) < size {
		nodes = append(nodes, start(t, through(nodes[0])))
	}
	until := time.Now().Add(patience)
	for _, n := range nodes {
		var others []*Node
		for _, other := range nodes {
			if other != n {
				others = append(others, other)
			}
		}
		place := placeOf(n.ID())
		slices.SortFunc(others, func(a, b *Node) int { return nearer(a.ID(), b.ID(), place) })
		for _, other := range others[:neighbours] {
			for !other.Connected(n.ID()) {
				if time.Now().After(until) {
					t.Fatalf("%s is not known to one of those nearest to it", n.ID())
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
	connected := 0
	for _, n := range nodes[1:] {
		connected += len(n.Peers())
	}
	if mean := connected / (size - 1); mean > size*2/3 {
		t.Errorf("each peer is connected to %d of %d", mean, size)
	}
	seeker := nodes[size-1]
	for _, n := range nodes[:size-1] {
		if found, err := seeker.FindPeer(within(t), n.ID()); err != nil || len(found.Addrs) == 0 {
			t.Error(n.ID(), found, err)
		}
	}
}

func TestDistances(t *testing.T) {
	ids := []peer.ID{"a", "b", "c"}
	for _, id := range ids {
		for _, other := range ids {
			if order := nearer(id, other, placeOf(id)); (order < 0) != (id != other) {
				t.Errorf("%s and %s, seen from %s: %d", id, other, id, order)
			}
		}
	}
}
