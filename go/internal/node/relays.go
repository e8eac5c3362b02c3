package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// relaysWanted are held at once, so that one that ends is not missed.
	relaysWanted = 2
	// reserveTimeout bounds a connection to a relay and the request to it.
	reserveTimeout = 10 * time.Second
	// reservePatience is how long a relay is waited for before another is asked as well.
	reservePatience = time.Second
	// relayPause is between looks at the relays, and the time a relay that refused is left alone.
	relayPause = 10 * time.Second
	// renewAfter is well below the hour that relays usually grant: it also mends a reservation that a relay has forgotten.
	renewAfter = 2 * time.Minute
	// walkPause is between searches of the swarm for relays, walkTime bounds one.
	walkPause = 30 * time.Second
	walkTime  = 10 * time.Second
	// relayAddrsMost bounds what one relay may make this peer advertise.
	relayAddrsMost = 8
	// relayTag protects the connections to relays from being trimmed.
	relayTag = "relay"
)

// relays keeps reservations at circuit relays (v2) while this peer cannot be reached directly, and has the host advertise the
// addresses that go through them: at trusted relays first, else at connected peers that offer to relay. The library's AutoRelay
// waits minutes, listens to AutoNAT v1 alone and keeps to itself which relays it uses.
type relays struct {
	host    host.Host
	trusted []peer.AddrInfo
	log     *slog.Logger
	public  func() bool // whether peers reach this one directly: no relay is needed
	// explore finds some peers of the swarm, connected or not
	explore func(context.Context) []peer.AddrInfo
	emitter event.Emitter
	wake    chan struct{}
	again   atomic.Bool // the host is to look at its addresses again

	mu      sync.Mutex
	held    map[peer.ID]*reservation // mu
	refused map[peer.ID]time.Time    // mu: when
	shown   []ma.Multiaddr           // the loop's: what the host was told last
	walked  time.Time                // the loop's: when peers were last looked for in the routing
}

// reservation is one relay's word to take calls for this peer.
type reservation struct {
	addrs []ma.Multiaddr // of this peer through the relay, without its own id
	made  time.Time
	limit RelayLimit
}

// RelayLimit is what a relay grants one circuit; 0 is no limit.
type RelayLimit struct {
	Duration time.Duration
	Data     uint64 // bytes each way
}

func newRelays(
	h host.Host, trusted []peer.AddrInfo, public func() bool, explore func(context.Context) []peer.AddrInfo, log *slog.Logger,
) (*relays, error) {
	emitter, err := h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful)
	if err != nil {
		return nil, err
	}
	return &relays{
		host: h, trusted: trusted, public: public, explore: explore, log: log, emitter: emitter, wake: make(chan struct{}, 1),
		held: make(map[peer.ID]*reservation), refused: make(map[peer.ID]time.Time),
	}, nil
}

// poke makes the loop look again now.
func (r *relays) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// lookAgain has the host find out its addresses now, which it does when it is told of relays.
func (r *relays) lookAgain() {
	r.again.Store(true)
	r.poke()
}

// check forgets the reservation at a relay to which there is no connection any more: the relay has forgotten it too. One that comes through another
// relay does not count: a relay that can be reached in no other way takes no calls.
func (r *relays) check(p peer.ID) {
	if !reaches(r.host, p) {
		r.lost(p)
	}
}

// reaches tells whether there is a connection to p that goes through no relay.
func reaches(h host.Host, p peer.ID) bool {
	return slices.ContainsFunc(h.Network().ConnsToPeer(p), func(conn network.Conn) bool {
		return !conn.IsClosed() && !isRelayed(conn.RemoteMultiaddr())
	})
}

// lost forgets the reservation at a relay.
func (r *relays) lost(p peer.ID) {
	r.mu.Lock()
	_, held := r.held[p]
	delete(r.held, p)
	r.mu.Unlock()
	if held {
		r.host.ConnManager().Unprotect(p, relayTag)
		r.poke()
	}
}

// inUse are the relays that hold a reservation now, with the limits of their circuits.
func (r *relays) inUse() map[peer.ID]RelayLimit {
	r.mu.Lock()
	defer r.mu.Unlock()
	limits := make(map[peer.ID]RelayLimit, len(r.held))
	for p, one := range r.held {
		limits[p] = one.limit
	}
	return limits
}

// run keeps the reservations until ctx ends.
func (r *relays) run(ctx context.Context) {
	defer r.emitter.Close()
	for {
		if r.public() {
			r.dropAll()
		} else {
			r.keep(ctx)
		}
		r.show()
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-time.After(relayPause):
		}
	}
}

func (r *relays) dropAll() {
	for p := range r.inUse() {
		r.lost(p)
	}
}

// keep renews the reservations that are due, and makes new ones where there are too few.
func (r *relays) keep(ctx context.Context) {
	for p := range r.inUse() {
		r.check(p)
	}
	for _, p := range r.due() {
		if err := r.reserve(ctx, peer.AddrInfo{ID: p}); err != nil {
			r.log.Debug("a relay does not renew its reservation", "relay", p, "error", err)
			r.lost(p)
		}
	}
	r.take(ctx)
	if ctx.Err() == nil && len(r.inUse()) < relaysWanted && time.Since(r.walked) >= walkPause {
		r.walked = time.Now()
		r.walk(ctx)
	}
}

// take asks candidates, one after the other, until there are enough reservations. One that does not answer soon goes on being asked while the next
// one is: it may be cut off, which takes a while to show.
func (r *relays) take(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var asked sync.WaitGroup
	for _, candidate := range r.candidates() {
		if ctx.Err() != nil || len(r.inUse()) >= relaysWanted {
			break
		}
		answered := make(chan struct{})
		asked.Go(func() {
			defer close(answered)
			err := r.reserve(ctx, candidate)
			if err == nil || ctx.Err() != nil {
				return
			}
			r.log.Debug("no reservation", "relay", candidate.ID, "error", err)
			r.mu.Lock()
			r.refused[candidate.ID] = time.Now()
			r.mu.Unlock()
		})
		select {
		case <-answered:
		case <-time.After(reservePatience):
		}
		r.show() // before the next one is asked
	}
	if len(r.inUse()) >= relaysWanted {
		cancel()
	}
	asked.Wait()
}

// walk connects to peers that the routing knows; who is connected and offers to relay is a candidate.
func (r *relays) walk(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, walkTime)
	defer cancel()
	var dials sync.WaitGroup
	for _, info := range r.explore(ctx) {
		if r.host.Network().Connectedness(info.ID) == network.Connected {
			continue
		}
		dials.Go(func() {
			// not through a relay, which would not make that peer one
			if err := r.host.Connect(network.WithForceDirectDial(ctx, "looking for relays"), info); err != nil {
				r.log.Debug("no relay", "peer", info.ID, "error", err)
			}
		})
	}
	dials.Wait()
}

func (r *relays) due() []peer.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	var due []peer.ID
	for p, one := range r.held {
		if time.Since(one.made) >= renewAfter {
			due = append(due, p)
		}
	}
	return due
}

// candidates are peers to ask for a reservation, trusted ones first.
func (r *relays) candidates() []peer.AddrInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []peer.AddrInfo
	add := func(info peer.AddrInfo) {
		_, held := r.held[info.ID]
		if !held && info.ID != r.host.ID() && time.Since(r.refused[info.ID]) >= relayPause {
			found = append(found, info)
		}
	}
	for _, info := range r.trusted {
		add(info)
	}
	for _, p := range r.host.Network().Peers() {
		trusted := slices.ContainsFunc(r.trusted, func(info peer.AddrInfo) bool { return info.ID == p })
		if trusted || !reaches(r.host, p) {
			continue
		}
		if offers, err := r.host.Peerstore().SupportsProtocols(p, circuit.ProtoIDv2Hop); err == nil && len(offers) > 0 {
			add(peer.AddrInfo{ID: p})
		}
	}
	for p, when := range r.refused {
		if time.Since(when) >= relayPause {
			delete(r.refused, p)
		}
	}
	return found
}

// errNoRelayAddress: peers could not be told how to find the relay.
var errNoRelayAddress = errors.New("no address of the relay is known")

func (r *relays) reserve(ctx context.Context, relay peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	if err := r.host.Connect(ctx, relay); err != nil {
		return err
	}
	granted, err := client.Reserve(ctx, r.host, relay)
	if err != nil {
		return err
	}
	addrs := throughRelay(relay.ID, granted.Addrs)
	if len(addrs) == 0 { // relays vouch for public addresses only
		addrs = throughRelay(relay.ID, r.host.Peerstore().Addrs(relay.ID))
	}
	if len(addrs) == 0 {
		return errNoRelayAddress
	}
	r.host.ConnManager().Protect(relay.ID, relayTag)
	r.mu.Lock()
	r.held[relay.ID] = &reservation{
		addrs: addrs, made: time.Now(), limit: RelayLimit{Duration: granted.LimitDuration, Data: granted.LimitData},
	}
	r.mu.Unlock()
	r.check(relay.ID) // the connection may have ended before this was there to forget
	return nil
}

// throughRelay are addresses of this peer by way of a relay that has the given addresses, with or without its id.
func throughRelay(relay peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr {
	way := ma.StringCast("/p2p/" + relay.String() + "/p2p-circuit")
	var circuits []ma.Multiaddr
	for _, addr := range addrs {
		bare, id := peer.SplitAddr(addr)
		if bare == nil || isRelayed(addr) || id != "" && id != relay || len(circuits) == relayAddrsMost {
			continue
		}
		circuits = append(circuits, bare.Encapsulate(way))
	}
	return circuits
}

// show tells the host which addresses go through relays, if they have changed.
func (r *relays) show() {
	r.mu.Lock()
	var addrs []ma.Multiaddr
	for _, one := range r.held {
		addrs = append(addrs, one.addrs...)
	}
	r.mu.Unlock()
	slices.SortFunc(addrs, ma.Multiaddr.Compare)
	if !r.again.Swap(false) && slices.EqualFunc(addrs, r.shown, ma.Multiaddr.Equal) {
		return
	}
	r.shown = addrs
	if err := r.emitter.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: slices.Clone(addrs)}); err != nil {
		r.log.Error("relayed addresses cannot be advertised", "error", err)
	}
}
