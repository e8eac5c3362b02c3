package node

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"hivemind/p2pd/internal/config"
)

// reservationTime is how long a relay takes calls for a peer that does not renew its reservation.
const reservationTime = time.Hour

// relayService is this peer as a relay for others.
type relayService struct {
	*relay.Relay
	allowed allowlist
	counts  relayCounts
}

// newRelayService relays for others from now on. The library's own would wait for a verdict of AutoNAT, and then have its own limits.
func newRelayService(h host.Host, cfg *config.Config, metrics *prometheus.Registry) (*relayService, error) {
	allowed, err := cfg.RelayedPeers()
	if err != nil {
		return nil, fmt.Errorf("relay_allow: %w", err)
	}
	service := &relayService{}
	service.allowed.set(allowed)
	var tracer relay.MetricsTracer = &service.counts
	if metrics != nil {
		tracer = tracers{tracer, relay.NewMetricsTracer(relay.WithRegisterer(metrics))}
	}
	service.Relay, err = relay.New(h, relay.WithACL(&service.allowed), relay.WithMetricsTracer(tracer),
		relay.WithResources(relay.Resources{
			Limit:           &relay.RelayLimit{Duration: cfg.RelayCircuitTime.Duration(), Data: cfg.RelayCircuitBytes},
			ReservationTTL:  reservationTime,
			MaxReservations: cfg.RelayReservations,
			MaxCircuits:     cfg.RelayCircuits,
			BufferSize:      cfg.RelayBuffer,
			// A household, a laboratory or a provider may have as many peers as all others together.
			MaxReservationsPerIP:  cfg.RelayReservations,
			MaxReservationsPerASN: cfg.RelayReservations,
		}))
	if err != nil {
		return nil, fmt.Errorf("relay service: %w", err)
	}
	return service, nil
}

// allowlist decides who may use the relay, at either end of a circuit. It is safe for concurrent use.
type allowlist struct {
	mu    sync.RWMutex
	peers map[peer.ID]struct{} // mu: nil is everybody
}

// set allows the given peers from now on; nil allows everybody. Circuits that are there go on to their limits.
func (a *allowlist) set(peers []peer.ID) {
	var allowed map[peer.ID]struct{}
	if peers != nil {
		allowed = make(map[peer.ID]struct{}, len(peers))
		for _, p := range peers {
			allowed[p] = struct{}{}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.peers = allowed
}

func (a *allowlist) has(p peer.ID) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, listed := a.peers[p]
	return listed || a.peers == nil
}

// AllowReserve implements relay.ACLFilter.
func (a *allowlist) AllowReserve(p peer.ID, _ ma.Multiaddr) bool { return a.has(p) }

// AllowConnect implements relay.ACLFilter.
func (a *allowlist) AllowConnect(src peer.ID, _ ma.Multiaddr, dest peer.ID) bool {
	return a.has(src) && a.has(dest)
}

// RelayStats is what a relay has done for others.
type RelayStats struct {
	Reservations int64 // peers that are reached through this one now
	Circuits     int64 // connections that go through it now
	AllCircuits  int64 // since the start
	Bytes        int64 // relayed since the start
	Refused      int64 // reservations and circuits since the start
}

// relayCounts counts as the relay service reports. It implements relay.MetricsTracer.
type relayCounts struct {
	reservations, circuits, allCircuits, bytes, refused atomic.Int64
}

func (c *relayCounts) RelayStatus(bool) {}

func (c *relayCounts) ConnectionOpened() {
	c.circuits.Add(1)
	c.allCircuits.Add(1)
}

func (c *relayCounts) ConnectionClosed(time.Duration)             { c.circuits.Add(-1) }
func (c *relayCounts) ConnectionRequestHandled(status pb.Status)  { c.note(status) }
func (c *relayCounts) ReservationRequestHandled(status pb.Status) { c.note(status) }
func (c *relayCounts) ReservationClosed(count int)                { c.reservations.Add(-int64(count)) }
func (c *relayCounts) BytesTransferred(count int)                 { c.bytes.Add(int64(count)) }

func (c *relayCounts) ReservationAllowed(renewed bool) {
	if !renewed {
		c.reservations.Add(1)
	}
}

func (c *relayCounts) note(status pb.Status) {
	if status == pb.Status_PERMISSION_DENIED || status == pb.Status_RESERVATION_REFUSED || status == pb.Status_RESOURCE_LIMIT_EXCEEDED {
		c.refused.Add(1)
	}
}

// Relayed is what this peer has done for others as a relay; nil if it is none.
func (n *Node) Relayed() *RelayStats {
	if n.service == nil {
		return nil
	}
	counts := &n.service.counts
	return &RelayStats{
		Reservations: counts.reservations.Load(), Circuits: counts.circuits.Load(), AllCircuits: counts.allCircuits.Load(),
		Bytes: counts.bytes.Load(), Refused: counts.refused.Load(),
	}
}

// AllowRelaying says who may use this relay from now on.
func (n *Node) AllowRelaying(peers []peer.ID) error {
	if n.service == nil {
		return fmt.Errorf("%w: this peer is no relay", ErrNotSupported)
	}
	n.service.allowed.set(append([]peer.ID{}, peers...)) // not nil, which is everybody
	return nil
}
