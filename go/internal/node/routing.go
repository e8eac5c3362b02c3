package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"

	"hivemind/p2pd/internal/config"
)

// kadProtocol is the plain public Kademlia; hivemind's swarms use its message format with members of their own.
const kadProtocol protocol.ID = "/ipfs/kad/1.0.0"

// lookupTimeout bounds one search for a peer's addresses.
const lookupTimeout = 10 * time.Second

// lookupPauses are those between searches for a peer without any known address: a peer that joins is talked about some milliseconds
// before those whom it joined through have asked it for its addresses.
var lookupPauses = []time.Duration{50 * time.Millisecond, 200 * time.Millisecond}

// Searches of the routing ask three peers at a time, as Kademlia does; the library's ten are for a network of many dead ones.
const searchWidth = 3

// boundedRouting finds addresses. It keeps one search from taking all the time of the call that needs it.
type boundedRouting struct{ node *Node }

// FindPeer implements routedhost.Routing.
func (r boundedRouting) FindPeer(ctx context.Context, p peer.ID) (peer.AddrInfo, error) {
	bounded, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if len(r.node.host.Peerstore().Addrs(p)) > 0 { // which have been tried
		return r.node.routing.FindPeer(bounded, p)
	}
	for _, pause := range lookupPauses {
		if info, err := r.firstAddrs(bounded, p); err == nil && len(info.Addrs) > 0 {
			return info, nil
		}
		select {
		case <-time.After(pause):
		case <-bounded.Done():
		}
	}
	info, err := r.firstAddrs(bounded, p)
	if ctx.Err() == nil && (bounded.Err() != nil || err == nil && len(info.Addrs) == 0) {
		err = routing.ErrNotFound
	}
	return info, err
}

// firstAddrs searches until somebody has named an address of p. The library goes on until it is connected to p, and meanwhile dials
// whoever else is near p.
func (r boundedRouting) firstAddrs(ctx context.Context, p peer.ID) (peer.AddrInfo, error) {
	store := r.node.host.Peerstore()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	named := store.AddrStream(ctx, p)
	ended := make(chan error, 1)
	go func() {
		_, err := r.node.routing.FindPeer(ctx, p)
		ended <- err
	}()
	select {
	case <-named: // also closed when ctx has ended
		err := ctx.Err()
		cancel()
		<-ended
		return store.PeerInfo(p), err
	case err := <-ended:
		return store.PeerInfo(p), err
	}
}

// relayingHost opens streams through relays too. Without leave for that, a stream waits for a direct connection until its time is over, and so
// does every search that asks a peer behind a NAT.
type relayingHost struct{ host.Host }

// NewStream implements host.Host.
func (h relayingHost) NewStream(ctx context.Context, p peer.ID, names ...protocol.ID) (network.Stream, error) {
	return h.Host.NewStream(allowRelayed(ctx), p, names...)
}

func (n *Node) startRouting(cfg *config.Config, peers []peer.AddrInfo) error {
	var mode dht.ModeOpt
	switch cfg.DHTMode {
	case config.DHTOff:
		return nil
	case config.DHTServer:
		mode = dht.ModeServer
	case config.DHTClient:
		mode = dht.ModeClient
	default:
		mode = dht.ModeAuto
	}
	// Defaults otherwise: k = 20, resiliency 3, no filter of addresses.
	options := []dht.Option{dht.Mode(mode), dht.BootstrapPeers(peers...)}
	if !cfg.IPFS {
		// See keepRouting and admit.
		options = append(options, dht.Concurrency(searchWidth), dht.DisableAutoRefresh(), dht.LookupCheckConcurrency(0))
	}
	kad, err := dht.New(relayingHost{n.host}, options...)
	if err != nil {
		return fmt.Errorf("kademlia routing: %w", err)
	}
	n.routing = kad
	n.admits.Store(!cfg.IPFS)
	n.routed = newSearchingHost(n.host, boundedRouting{n})
	return nil
}

// refreshPeriod is between two looks at all parts of the routing table, as in the library.
const refreshPeriod = 10 * time.Minute

// settleTime is how long addresses have to stay before those near this peer are told.
const settleTime = time.Second

// keepRouting has this peer known to those near it in the routing's space, who are asked for its addresses: after it has joined, and when
// its addresses have changed. The library searches the whole space at once when it starts, which in a swarm of less than a hundred peers
// connects everybody with everybody.
func (n *Node) keepRouting() {
	refresh := time.NewTicker(refreshPeriod)
	defer refresh.Stop()
	// Who joins later may have others that are nearer to it than this peer, and still be among those nearest to this one: it looks again, soon at
	// first, while the swarm grows.
	pause := settleTime
	for {
		n.meetNearby(n.ctx)
		n.learnAddrs(n.ctx)
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(pause):
			pause = min(4*pause, refreshPeriod)
		case <-refresh.C:
			n.routing.RefreshRoutingTable()
		case <-n.moved:
			select {
			case <-n.ctx.Done():
				return
			case <-time.After(settleTime):
			}
		}
	}
}

// FindPeer returns the addresses of p: those of a connection, or what the routing finds.
func (n *Node) FindPeer(ctx context.Context, p peer.ID) (peer.AddrInfo, error) {
	if p == n.ID() {
		return peer.AddrInfo{ID: p, Addrs: n.host.Addrs()}, nil
	}
	if n.routing == nil {
		info := n.host.Peerstore().PeerInfo(p)
		if len(info.Addrs) == 0 {
			return info, fmt.Errorf("%w: no address of %s is known and the routing is off", ErrNotFound, p)
		}
		return info, nil
	}
	info, err := boundedRouting{n}.FindPeer(allowRelayed(ctx), p)
	if err != nil {
		return info, classifyConnect(p, n.contextOr(ctx, p, err))
	}
	if len(info.Addrs) == 0 {
		return info, fmt.Errorf("%w: no address of %s is known", ErrNotFound, p)
	}
	return info, nil
}

// admit puts a peer that has told its protocols into the routing table, if it serves the routing. The library would have it answer a question
// first, which takes two streams of each of two peers that meet; one that does not answer is dropped when it is asked.
func (n *Node) admit(p peer.ID) {
	if !n.admits.Load() {
		return
	}
	if served, err := n.host.Peerstore().SupportsProtocols(p, kadProtocol); err != nil || len(served) == 0 {
		return
	}
	if _, err := n.routing.RoutingTable().TryAddPeer(p, true, true); err != nil {
		n.log.Debug("not in the routing table", "peer", p, "error", err) // its bucket is full
	}
}

// routingWait bounds awaitRouting.
const routingWait = 500 * time.Millisecond

// awaitRouting waits until p, if it serves the routing, is in the routing table, so that a search right after connecting
// finds its way.
func (n *Node) awaitRouting(ctx context.Context, p peer.ID) {
	if n.routing == nil {
		return
	}
	served, err := n.host.Peerstore().SupportsProtocols(p, kadProtocol)
	if err != nil || len(served) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, routingWait)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for n.routing.RoutingTable().Find(p) == "" {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// somePeers are peers of the swarm near a random place of the routing's key space.
func (n *Node) somePeers(ctx context.Context) []peer.AddrInfo {
	if n.routing == nil {
		return nil
	}
	ids, err := n.routing.GetClosestPeers(ctx, rand.Text())
	if err != nil {
		n.log.Debug("exploring the swarm", "error", err)
	}
	var found []peer.AddrInfo
	for _, id := range ids {
		if info := n.host.Peerstore().PeerInfo(id); len(info.Addrs) > 0 {
			found = append(found, info)
		}
	}
	return found
}
