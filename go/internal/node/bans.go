package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/guard"
)

func (n *Node) newGuard(cfg *config.Config, own peer.ID) *guard.Guard {
	limits := guard.Limits{Streams: cfg.PeerStreams, Flood: cfg.FloodLimit, Ban: cfg.FloodBan.Duration(), Own: own}
	var slowed, dropped sparse
	events := guard.Events{
		Slowed: func(p peer.ID, why guard.Reason) {
			if left, ok := slowed.allow(time.Now()); ok {
				n.log.Warn("a peer floods this one and is slowed down", "peer", p, "with", why.String(), "left_out", left)
			}
		},
		Dropped: func(p peer.ID, why guard.Reason) {
			if left, ok := dropped.allow(time.Now()); ok {
				n.log.Warn("a peer that floods this one was dropped; raise the flood limit if it is one of yours",
					"peer", p, "with", why.String(), "refused_for", cfg.FloodBan.Duration().String(), "left_out", left)
			}
			n.bans.tell(p, cfg.FloodBan.Duration())
			go n.closeTo(p)
		},
	}
	return guard.New(limits, events, time.Now)
}

// closeTo closes the connections to a peer that is banned.
func (n *Node) closeTo(p peer.ID) {
	if err := n.Disconnect(p); err != nil {
		n.log.Debug("closing the connections to a banned peer", "peer", p, "error", err)
	}
}

// banWatchers are told of peers that are banned for a flood.
type banWatchers struct {
	mu   sync.Mutex
	last int                                  // mu
	all  map[int]func(peer.ID, time.Duration) // mu
}

func (w *banWatchers) tell(p peer.ID, span time.Duration) {
	w.mu.Lock()
	watchers := slices.Collect(maps.Values(w.all))
	w.mu.Unlock()
	for _, banned := range watchers {
		banned(p, span)
	}
}

// WatchBans calls banned, which must not wait, for each peer that is banned because it floods this one, until stop is called.
func (n *Node) WatchBans(banned func(p peer.ID, span time.Duration)) (stop func()) {
	w := &n.bans
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = make(map[int]func(peer.ID, time.Duration))
	}
	w.last++
	key := w.last
	w.all[key] = banned
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, key)
	}
}

// Guard is what watches over other peers.
func (n *Node) Guard() *guard.Guard { return n.guard }

// Ban closes the connections to p and refuses it for a time.
func (n *Node) Ban(p peer.ID, span time.Duration) error {
	if p == n.ID() {
		return errSelf(p)
	}
	n.guard.Ban(p, span)
	return n.Disconnect(p)
}

// Ping returns the time of a round trip to p over a connection, which is made where there is none.
func (n *Node) Ping(ctx context.Context, p peer.ID) (time.Duration, error) {
	if p == n.ID() {
		return 0, errSelf(p)
	}
	ctx, cancel := context.WithCancel(allowRelayed(ctx))
	defer cancel()
	select {
	case result, ok := <-ping.Ping(ctx, n.routed, p):
		if ok && result.Error == nil {
			return result.RTT, nil
		}
		if ok {
			return 0, classifyOpen(p, ping.ID, n.contextOr(ctx, p, n.orBanned(p, result.Error)))
		}
	case <-ctx.Done():
	}
	return 0, n.contextOr(ctx, p, fmt.Errorf("%w: no answer from %s", ErrUnreachable, p))
}

// orBanned is err, or that p is banned if that is why.
func (n *Node) orBanned(p peer.ID, err error) error {
	if left := n.guard.Banned(p); err != nil && left > 0 {
		return fmt.Errorf("%w: %s is banned by this peer for another %s", ErrUnreachable, p, left.Round(time.Second))
	}
	return err
}
