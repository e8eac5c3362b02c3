// Package node is the daemon's place in the network: a libp2p host, the Kademlia routing that finds peers by id, and the
// calls that the control side makes on both. A Node is safe for concurrent use.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/guard"
	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/portmap"
	"hivemind/p2pd/internal/punch"
)

// Kinds of failed starts.
var (
	ErrIdentity  = errors.New("identity")
	ErrListen    = errors.New("listen")
	ErrBootstrap = errors.New("bootstrap")
)

// openTimeout bounds the opening of a stream whose caller sets no bound of its own.
const openTimeout = time.Minute

// Node is a running peer.
type Node struct {
	host    host.Host    // dials what it is told to
	routed  host.Host    // finds missing addresses by the routing first
	routing *dht.IpfsDHT // nil if off
	admits  atomic.Bool  // the routing is there, and leaves it to this node who is in its table
	log     *slog.Logger
	traffic *traffic
	meter   *meter.Meter
	guard   *guard.Guard
	bans    banWatchers
	metrics *prometheus.Registry // nil if nobody asks
	reach   reach
	seen    sightings
	private bool             // it has a swarm key
	relays  *relays          // nil if this peer is not to be reached through relays
	service *relayService    // nil if this peer does not relay for others
	puncher *punch.Puncher   // nil if relayed connections stay so
	ports   *portmap.Manager // nil if the router is not asked for ports; the host closes it
	pushes  *pushes
	own     *ownWay
	alone   chan struct{} // wakes keepJoined
	moved   chan struct{} // wakes keepRouting

	background sync.WaitGroup // the bootstrap loop, and those of relays and reachability
	ctx        context.Context
	cancel     context.CancelFunc
}

// New starts a peer. It listens when New returns, and has joined the swarm if the configuration requires that.
func New(ctx context.Context, cfg *config.Config, log *slog.Logger) (*Node, error) {
	key, err := identityOf(cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	n := &Node{
		log: log, traffic: &traffic{}, meter: meter.New(), private: cfg.SwarmKey != "",
		alone: make(chan struct{}, 1), moved: make(chan struct{}, 1), own: newOwnWay(id),
	}
	n.guard = n.newGuard(cfg, id)
	if cfg.MetricsListen != "" {
		n.metrics = prometheus.NewRegistry()
	}
	h, err := newHost(cfg, key, n, &guardedManager{guard: n.guard, unknown: n.meter.UnknownProtocol})
	if err != nil {
		return nil, err
	}
	n.host, n.routed = h, h
	n.ctx, n.cancel = context.WithCancel(context.Background())
	h.Network().Notify(&network.NotifyBundle{
		ConnectedF: func(_ network.Network, conn network.Conn) { n.meter.Connected(conn.RemotePeer()) },
	})
	if err := n.start(ctx, cfg); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Node) start(ctx context.Context, cfg *config.Config) error {
	if !cfg.NoListen && len(n.host.Network().ListenAddresses()) == 0 {
		return fmt.Errorf("%w: none of %v could be listened on", ErrListen, cfg.Listen)
	}
	peers, err := cfg.BootstrapPeers()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBootstrap, err)
	}
	ipfs, err := ipfsPeers(cfg)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBootstrap, err)
	}
	if err := n.startReachability(cfg); err != nil {
		return err
	}
	if n.ports != nil {
		n.ports.Start()
	}
	if n.pushes, err = takePushes(n.host, n.log); err != nil {
		return fmt.Errorf("identify: %w", err)
	}
	if cfg.AutoNAT && cfg.Relay && !cfg.NoListen {
		n.puncher = punch.New(n.host, n.directAddrs, n.log)
	}
	if cfg.RelayService {
		if n.service, err = newRelayService(n.host, cfg, n.metrics); err != nil {
			return err
		}
	}
	if err := n.startRouting(cfg, slices.Concat(peers, ipfs)); err != nil {
		return err
	}
	if err := n.bootstrap(ctx, cfg, peers, ipfs); err != nil {
		return err
	}
	n.startRelays(ctx)
	return nil
}

// Close leaves the network. It is idempotent.
func (n *Node) Close() {
	n.cancel()
	n.background.Wait()
	n.own.close()
	if n.puncher != nil {
		n.puncher.Close()
	}
	if n.pushes != nil {
		n.pushes.close()
	}
	if n.service != nil {
		_ = n.service.Close() // it has no error to return
	}
	if n.routing != nil {
		if err := n.routing.Close(); err != nil {
			n.log.Debug("closing the routing", "error", err)
		}
	}
	if err := n.host.Close(); err != nil {
		n.log.Debug("closing the host", "error", err)
	}
}

// Metrics has the families of the library; nil if they are off.
func (n *Node) Metrics() *prometheus.Registry { return n.metrics }

// Meter is what counts this peer's calls.
func (n *Node) Meter() *meter.Meter { return n.meter }

// ID is this peer's id.
func (n *Node) ID() peer.ID { return n.host.ID() }

// Addrs are the addresses this peer advertises, each with its id at the end.
func (n *Node) Addrs() []ma.Multiaddr {
	own := n.host.Addrs()
	if len(own) == 0 {
		return nil // where the library would give the bare id
	}
	addrs, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: n.host.ID(), Addrs: own})
	if err != nil { // the id is our own
		n.log.Error("own addresses", "error", err)
	}
	return addrs
}

// Connect dials p at the given addresses and those known already.
func (n *Node) Connect(ctx context.Context, p peer.AddrInfo) error {
	if p.ID == n.ID() {
		return errSelf(p.ID)
	}
	if sw, ok := n.host.Network().(*swarm.Swarm); ok {
		sw.Backoff().Clear(p.ID) // the caller asks for a dial now
	}
	h := n.routed
	if len(p.Addrs) > 0 {
		h = n.host // a peer's own addresses are the newest: no search for others
	}
	if err := h.Connect(allowRelayed(ctx), p); err != nil {
		return hint(n.private, classifyConnect(p.ID, n.contextOr(ctx, p.ID, n.orBanned(p.ID, err))))
	}
	n.awaitRouting(ctx, p.ID)
	return nil
}

// Disconnect closes every connection to p.
func (n *Node) Disconnect(p peer.ID) error { return n.host.Network().ClosePeer(p) }

// ConnectedPeer is a peer with the addresses of its connections.
type ConnectedPeer struct {
	peer.AddrInfo
	Relayed   bool   // every connection goes through a relay
	Punched   bool   // the direct connection came of a hole punch
	Transport string // of the connection that calls use: "tcp", "quic" or another; of the relay's if it is relayed
}

// Peers are the connected peers.
func (n *Node) Peers() []ConnectedPeer {
	conns := n.host.Network().Conns()
	peers := make([]ConnectedPeer, 0, len(conns))
	places := make(map[peer.ID]int, len(conns))
	for _, conn := range conns {
		p, addr := conn.RemotePeer(), conn.RemoteMultiaddr()
		place, known := places[p]
		if !known {
			place = len(peers)
			places[p] = place
			peers = append(peers, ConnectedPeer{AddrInfo: peer.AddrInfo{ID: p}, Relayed: true})
		}
		one := &peers[place]
		one.Addrs = ma.Unique(append(one.Addrs, addr))
		if !isRelayed(addr) || one.Relayed { // a direct connection is preferred
			one.Transport = transportOf(addr)
		}
		one.Relayed = one.Relayed && isRelayed(addr)
		one.Punched = one.Punched || n.puncher != nil && n.puncher.Punched(conn)
	}
	return peers
}

func transportOf(addr ma.Multiaddr) string {
	for _, kind := range []struct {
		code int
		name string
	}{{ma.P_QUIC_V1, "quic"}, {ma.P_TCP, "tcp"}} {
		if _, err := addr.ValueForProtocol(kind.code); err == nil {
			return kind.name
		}
	}
	return "other"
}

// Connected tells whether there is a connection to p.
func (n *Node) Connected(p peer.ID) bool {
	state := n.host.Network().Connectedness(p)
	return state == network.Connected || state == network.Limited
}

// CallsProtocol is that of streams which carry one unary call after another, to any handler, between peers of this library.
const CallsProtocol = "/hivemind/calls/2.0.0"

// Open opens a stream to p's handler, which may be one of this peer; the peer is found and dialled first where needed.
func (n *Node) Open(ctx context.Context, p peer.ID, handler string) (network.Stream, error) {
	return n.open(ctx, p, handler, protocol.ID(handler))
}

// OpenCalls opens a stream of CallsProtocol to p, or one to its handler if p does not have that.
func (n *Node) OpenCalls(ctx context.Context, p peer.ID, handler string) (network.Stream, error) {
	return n.open(ctx, p, handler, CallsProtocol, protocol.ID(handler))
}

func (n *Node) open(ctx context.Context, p peer.ID, handler string, names ...protocol.ID) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if p == n.ID() {
		stream, err := n.own.open(ctx, names...)
		return stream, classifyOpen(p, handler, err)
	}
	stream, err := n.routed.NewStream(allowRelayed(ctx), p, names...)
	if err != nil {
		return nil, hint(n.private, classifyOpen(p, handler, n.contextOr(ctx, p, n.orBanned(p, err))))
	}
	return stream, nil
}

// Handle gives every incoming stream for a handler's name to serve, each in a goroutine of its own.
func (n *Node) Handle(handler string, serve func(network.Stream)) {
	n.own.handle(protocol.ID(handler), serve)
	n.host.SetStreamHandler(protocol.ID(handler), serve)
}

// Unhandle removes a handler; streams that run already go on.
func (n *Node) Unhandle(handler string) {
	n.own.unhandle(protocol.ID(handler))
	n.host.RemoveStreamHandler(protocol.ID(handler))
}

// Handles tells whether something, the library's own services included, has that handler's name.
func (n *Node) Handles(handler string) bool {
	for _, name := range n.host.Mux().Protocols() {
		if string(name) == handler {
			return true
		}
	}
	return false
}

// allowRelayed lets calls use connections through a relay.
func allowRelayed(ctx context.Context) context.Context {
	return network.WithAllowLimitedConn(ctx, "p2pd")
}

// contextOr returns the context's error if it has ended, which hides what the dials have met: the addresses are named then.
func (n *Node) contextOr(ctx context.Context, p peer.ID, err error) error {
	if ctx.Err() == nil {
		return err
	}
	addrs := n.host.Peerstore().Addrs(p)
	if n.Connected(p) || len(addrs) == 0 {
		return fmt.Errorf("%w: %s", ctx.Err(), p)
	}
	return fmt.Errorf("%w: no answer from %s at %v", ctx.Err(), p, addrs)
}
