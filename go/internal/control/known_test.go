package control

import (
	"encoding/json"
	"slices"
	"testing"
)

// TestKnownPeersAreTold: with addresses that can be dialled, also of a peer that has dialled this one.
func TestKnownPeersAreTold(t *testing.T) {
	d, other := startDaemon(t, nil), startDaemon(t, nil)
	ours, theirs := socketPair(t)
	go d.server.ServeConn(theirs, true)
	c := newClient(t, ours)
	c.must(map[string]any{"op": "hello", "version": Version, "watch_peers": true})
	other.meet(d)
	next := func() (ids []string, addrs []string) {
		for {
			ev := c.next(0)
			var told struct {
				Event string
				Peers json.RawMessage
			}
			if err := json.Unmarshal(ev.payload, &told); err != nil {
				t.Fatalf("%q: %v", ev.payload, err)
			}
			if told.Event != "peers" {
				continue
			}
			var peers []peerAnswer // other events have other fields of that name
			if err := json.Unmarshal(told.Peers, &peers); err != nil {
				t.Fatalf("%q: %v", ev.payload, err)
			}
			for _, one := range peers {
				ids, addrs = append(ids, one.ID), append(addrs, one.Addrs...)
			}
			return ids, addrs
		}
	}
	ids, addrs := next()
	if !slices.Equal(ids, []string{other.node.ID().String()}) || !slices.Equal(addrs, Texts(peerAddr(other).Addrs)) {
		t.Errorf("%v at %v", ids, addrs)
	}
	other.server.Close()
	other.node.Close()
	for len(ids) != 0 { // next is bounded
		ids, _ = next()
	}
}
