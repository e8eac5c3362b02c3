package node

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"sync"
	"time"

	kad "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-msgio/pbio"
)

// Bounds of the search for those near this peer.
const (
	nearbyMet      = 8                // so many know this peer afterwards: of the three that a search for it asks last, one is enough
	nearbyNamed    = 32               // of one answer; the library names 20
	nearbyHeard    = 512              // of all answers
	nearbyBytes    = 64 << 10         // of one answer
	nearbyPatience = 10 * time.Second // for one answer, with the dial
	// addrsFrom parts of the routing's space are asked for the addresses of their peers: halves, quarters and so on, those far from this
	// peer first.
	addrsFrom = 6
)

// meetNearby asks those nearest to this peer in the routing's space for peers that are still nearer, until the nearest have been asked: they
// know this peer then, and name it to who searches for it. The library's own search for this connects to the twenty nearest.
func (n *Node) meetNearby(ctx context.Context) {
	target := placeOf(n.ID())
	heard := n.routing.RoutingTable().NearestPeers(target[:], nearbyNamed)
	known := map[peer.ID]bool{n.ID(): true}
	for _, p := range heard {
		known[p] = true
	}
	asked := make(map[peer.ID]bool)
	for ctx.Err() == nil {
		slices.SortFunc(heard, func(a, b peer.ID) int { return nearer(a, b, target) })
		var next []peer.ID
		for _, p := range heard[:min(len(heard), nearbyMet)] {
			if !asked[p] && len(next) < searchWidth {
				asked[p] = true
				next = append(next, p)
			}
		}
		if len(next) == 0 {
			return
		}
		for i, answer := range n.askAll(ctx, next, n.ID()) {
			if answer == nil {
				heard = slices.DeleteFunc(heard, func(p peer.ID) bool { return p == next[i] })
			}
			for _, info := range answer {
				if !known[info.ID] && len(known) < nearbyHeard {
					known[info.ID] = true
					heard = append(heard, info.ID)
				}
			}
		}
	}
}

// placeOf is where the routing has a peer.
func placeOf(p peer.ID) [sha256.Size]byte { return sha256.Sum256([]byte(p)) }

// nearer orders peers by their distance to a place.
func nearer(a, b peer.ID, target [sha256.Size]byte) int {
	distance := func(p peer.ID) []byte {
		place := placeOf(p)
		subtle.XORBytes(place[:], place[:], target[:])
		return place[:]
	}
	return cmp.Or(bytes.Compare(distance(a), distance(b)), cmp.Compare(a, b))
}

// learnAddrs asks peers that this one is connected to, all over the routing's space, for addresses of others there: the first call of one of
// them then begins with a dial and not with a search.
func (n *Node) learnAddrs(ctx context.Context) {
	table := n.routing.RoutingTable()
	for part := range uint(addrsFrom) {
		place, err := table.GenRandPeerID(part)
		if err != nil {
			return
		}
		hash := placeOf(place)
		for _, p := range table.NearestPeers(hash[:], 1) {
			if n.Connected(p) {
				n.askAll(ctx, []peer.ID{p}, place)
			}
		}
	}
}

// askAll asks each of the peers for those that it knows nearest to a place, and remembers their addresses; nil stands for no answer.
func (n *Node) askAll(ctx context.Context, peers []peer.ID, place peer.ID) [][]peer.AddrInfo {
	answers := make([][]peer.AddrInfo, len(peers))
	var all sync.WaitGroup
	for i, p := range peers {
		all.Go(func() {
			bounded, cancel := context.WithTimeout(ctx, nearbyPatience)
			defer cancel()
			answer, err := n.askNearest(bounded, p, place)
			if err != nil {
				n.log.Debug("asking for those near this peer", "peer", p, "error", err)
				return
			}
			for _, info := range answer {
				if info.ID != n.ID() {
					n.host.Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.RecentlyConnectedAddrTTL)
				}
			}
			answers[i] = answer
		})
	}
	all.Wait()
	return answers
}

// askNearest sends FIND_NODE.
func (n *Node) askNearest(ctx context.Context, p, place peer.ID) ([]peer.AddrInfo, error) {
	stream, err := n.host.NewStream(allowRelayed(ctx), p, kadProtocol)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Reset() })
	defer stop()
	defer stream.Close()
	question := kad.NewMessage(kad.Message_FIND_NODE, []byte(place), 0)
	if err := pbio.NewDelimitedWriter(stream).WriteMsg(question); err != nil {
		_ = stream.Reset()
		return nil, fmt.Errorf("asking: %w", err)
	}
	answer := &kad.Message{}
	if err := pbio.NewDelimitedReader(stream, nearbyBytes).ReadMsg(answer); err != nil {
		_ = stream.Reset()
		return nil, fmt.Errorf("its answer: %w", err)
	}
	named := []peer.AddrInfo{} // not nil: it has answered
	for _, info := range kad.PBPeersToPeerInfos(answer.GetCloserPeers()) {
		if len(named) < nearbyNamed && info.ID.Validate() == nil {
			named = append(named, *info)
		}
	}
	return named, nil
}
