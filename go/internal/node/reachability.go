package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/observedaddrs"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"hivemind/p2pd/internal/config"
)

func init() {
	// Swarms are small: the library believes in an address of ours only when four peers have seen it.
	observedaddrs.ActivationThresh = 1
}

// Verdicts on whether peers can connect to this one by themselves.
const (
	ReachPublic  = "public"
	ReachPrivate = "private"
	ReachUnknown = "unknown"
)

// Reachability is what is known of the ways to this peer.
type Reachability struct {
	Verdict string
	Forced  bool                   // the verdict is the configuration's
	Relays  map[peer.ID]RelayLimit // those that hold a reservation for this peer
	Addrs   []ReachAddr            // advertised addresses
	// NATOfTCP and NATOfUDP are the types of the NAT between this peer and the internet.
	NATOfTCP, NATOfUDP string
	// MappedBy names the protocol by which a router forwards ports to this peer; "" if none does.
	MappedBy string
	// Observed are the addresses at which peers have seen this one.
	Observed []ObservedAddr
	// Widest is the scope of the farthest peer that has been connected; "" before there was one.
	Widest string
}

// ReachAddr is an advertised address and what peers that dialled it have said: one of the verdicts, "relayed" for an address by way
// of a relay, or "local" for one that only this machine or network can use.
type ReachAddr struct {
	Addr  ma.Multiaddr
	State string
}

// reach follows what the library finds out about this peer's reachability.
type reach struct {
	forced string // a verdict of the configuration, or ""

	mu          sync.Mutex
	general     network.Reachability // mu: of AutoNAT v1
	reachable   []ma.Multiaddr       // mu: of AutoNAT v2, public addresses only
	unreachable []ma.Multiaddr       // mu
	unknown     []ma.Multiaddr       // mu
	told        string               // mu: what the watchers know
	logged      string               // mu: the verdict in the log
	watchers    map[int]func()       // mu
	lastWatcher int                  // mu
}

func (r *reach) verdict() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.forced != "":
		return r.forced
	case len(r.reachable) > 0 || r.general == network.ReachabilityPublic:
		return ReachPublic
	case r.general == network.ReachabilityPrivate, len(r.unreachable) > 0 && len(r.unknown) == 0:
		return ReachPrivate
	}
	return ReachUnknown
}

func (r *reach) isPublic() bool { return r.verdict() == ReachPublic }

// stateOf tells what is known of an advertised address.
func (r *reach) stateOf(addr ma.Multiaddr) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	has := func(addrs []ma.Multiaddr) bool { return slices.ContainsFunc(addrs, addr.Equal) }
	switch {
	case isRelayed(addr):
		return "relayed"
	case has(r.reachable):
		return ReachPublic
	case has(r.unreachable):
		return ReachPrivate
	case !manet.IsPublicAddr(addr):
		return "local"
	}
	return ReachUnknown
}

// Reachability is what is known now.
func (n *Node) Reachability() Reachability {
	state := Reachability{Verdict: n.reach.verdict(), Forced: n.reach.forced != ""}
	n.addObserved(&state)
	if n.ports != nil {
		state.MappedBy = n.ports.MappedBy()
	}
	if n.relays != nil {
		state.Relays = n.relays.inUse()
	}
	for _, addr := range n.host.Addrs() {
		state.Addrs = append(state.Addrs, ReachAddr{addr, n.reach.stateOf(addr)})
	}
	return state
}

// WatchReachability calls changed, which must not block, after each change until stop is called.
func (n *Node) WatchReachability(changed func()) (stop func()) {
	n.reach.mu.Lock()
	defer n.reach.mu.Unlock()
	if n.reach.watchers == nil {
		n.reach.watchers = make(map[int]func())
	}
	n.reach.lastWatcher++
	key := n.reach.lastWatcher
	n.reach.watchers[key] = changed
	return func() {
		n.reach.mu.Lock()
		defer n.reach.mu.Unlock()
		delete(n.reach.watchers, key)
	}
}

// directAddrs are the addresses of this peer without those by way of relays, whether or not others reach it there: those it listens on, and
// those that others have seen it at.
func (n *Node) directAddrs() []ma.Multiaddr {
	host, ok := n.host.(interface{ AllAddrs() []ma.Multiaddr })
	if !ok {
		return nil
	}
	return host.AllAddrs()
}

// startReachability follows the library's findings, and makes ready to keep relays if the configuration asks for them.
func (n *Node) startReachability(cfg *config.Config) error {
	n.reach.forced = cfg.ForceReachability
	if cfg.AutoRelay && !cfg.NoListen && cfg.ForceReachability != ReachPublic {
		trusted, err := cfg.Relays()
		if err != nil {
			return fmt.Errorf("trusted_relays: %w", err)
		}
		if n.relays, err = newRelays(n.host, trusted, n.reach.isPublic, n.somePeers, n.log); err != nil {
			return fmt.Errorf("relays: %w", err)
		}
	}
	followed, err := n.host.EventBus().Subscribe([]any{
		new(event.EvtLocalReachabilityChanged), new(event.EvtHostReachableAddrsChanged), new(event.EvtLocalAddressesUpdated),
		new(event.EvtPeerConnectednessChanged), new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated),
	}, eventbus.Name("reachability"), eventbus.BufSize(256))
	if err != nil {
		return fmt.Errorf("reachability: %w", err)
	}
	n.background.Go(func() {
		defer followed.Close()
		for {
			select {
			case <-n.ctx.Done():
				return
			case what := <-followed.Out():
				n.follow(what)
			}
		}
	})
	return nil
}

// follow takes one finding of the library. It must not wait: the library waits for it.
func (n *Node) follow(what any) {
	switch finding := what.(type) {
	case event.EvtLocalReachabilityChanged:
		n.reach.mu.Lock()
		n.reach.general = finding.Reachability
		n.reach.mu.Unlock()
	case event.EvtHostReachableAddrsChanged:
		n.reach.mu.Lock()
		n.reach.reachable, n.reach.unreachable, n.reach.unknown = finding.Reachable, finding.Unreachable, finding.Unknown
		n.reach.mu.Unlock()
	case event.EvtLocalAddressesUpdated:
		n.dropStranded()
		poke(n.moved)
		if n.ports != nil {
			n.ports.LookAgain()
		}
	case event.EvtPeerConnectednessChanged:
		if n.relays != nil {
			n.relays.check(finding.Peer)
		}
		if finding.Connectedness == network.NotConnected && len(n.host.Network().Peers()) == 0 {
			n.pokeJoin()
		}
		return
	case event.EvtPeerIdentificationCompleted:
		n.seen.take(finding.Conn, finding.ObservedAddr)
		n.admit(finding.Peer)
		n.tellReachability()
		n.mayRelay()
		return
	case event.EvtPeerProtocolsUpdated:
		n.admit(finding.Peer)
		n.mayRelay()
		return
	}
	if n.relays != nil {
		n.relays.poke()
	}
	n.tellReachability()
}

// tellMapped advertises what the router forwards at once: the library would look in 5 s, when other peers may have found already that they cannot
// connect. Its address manager looks when it is told of relays.
func (n *Node) tellMapped() {
	n.tellReachability()
	if n.relays != nil {
		n.relays.lookAgain()
		return
	}
	emitter, err := n.host.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated))
	if err != nil {
		n.log.Error("what the router forwards is advertised late", "error", err)
		return
	}
	defer emitter.Close()
	if err := emitter.Emit(event.EvtAutoRelayAddrsUpdated{}); err != nil {
		n.log.Error("what the router forwards is advertised late", "error", err)
	}
}

// mayRelay looks again for relays where they are wanting: a peer may offer to be one.
func (n *Node) mayRelay() {
	if n.relays != nil && len(n.relays.inUse()) < relaysWanted {
		n.relays.poke()
	}
}

// tellReachability logs a new verdict and calls the watchers if anything is new.
func (n *Node) tellReachability() {
	state := n.Reachability()
	known := state
	known.Observed = nil // any peer may claim another one
	text := fmt.Sprint(known)
	n.reach.mu.Lock()
	news, verdict := text != n.reach.told, state.Verdict != n.reach.logged
	n.reach.told, n.reach.logged = text, state.Verdict
	watchers := slices.Collect(maps.Values(n.reach.watchers))
	n.reach.mu.Unlock()
	if verdict {
		n.log.Info("reachability", "verdict", state.Verdict, "relays", len(state.Relays))
	}
	if news {
		for _, changed := range watchers {
			changed()
		}
	}
}

// firstRelayWait bounds the wait at the start for a relay, without which nobody reaches a peer that is known to be private.
const firstRelayWait = 5 * time.Second

// startRelays begins to look for relays; the peers to join through should be connected, as they may be relays.
func (n *Node) startRelays(ctx context.Context) {
	if n.relays == nil {
		return
	}
	n.background.Go(func() { n.relays.run(n.ctx) })
	if n.reach.forced != ReachPrivate {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, firstRelayWait)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !slices.ContainsFunc(n.host.Addrs(), isRelayed) {
		select {
		case <-ctx.Done():
			n.log.Warn("no relay has taken this peer yet: others cannot reach it")
			return
		case <-ticker.C:
		}
	}
}
