package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/config"
)

// Pace of the loop that rejoins a swarm whose bootstrap peers were all lost.
const (
	rejoinFirst = time.Second
	rejoinMost  = 30 * time.Second
)

// bootstrap joins the swarm through one of the peers, and keeps at it in the background.
func (n *Node) bootstrap(ctx context.Context, cfg *config.Config, peers []peer.AddrInfo) error {
	if len(peers) > 0 {
		bounded, cancel := context.WithTimeout(ctx, cfg.BootstrapTimeout.Duration())
		err := n.join(bounded, peers)
		cancel()
		if err != nil && cfg.RequireBootstrap {
			return fmt.Errorf("%w: %w", ErrBootstrap, err)
		}
		if err != nil {
			n.log.Warn("not joined yet", "error", err)
		}
	}
	if n.routing != nil {
		if err := n.routing.Bootstrap(n.ctx); err != nil {
			return fmt.Errorf("kademlia routing: %w", err)
		}
	}
	if len(peers) > 0 {
		n.background.Add(1)
		go func() {
			defer n.background.Done()
			n.keepJoined(cfg, peers)
		}()
	}
	return nil
}

// join dials all peers at once and returns at the first that answers; the others go on in the background until ctx or the
// node ends. Its error names each peer, its addresses and why.
func (n *Node) join(ctx context.Context, peers []peer.AddrInfo) error {
	peers = append([]peer.AddrInfo(nil), peers...)
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	results := make(chan error, len(peers))
	for _, p := range peers {
		n.background.Add(1)
		go func() {
			defer n.background.Done()
			bounded, cancel := context.WithTimeout(n.ctx, remaining(ctx))
			defer cancel()
			results <- n.Connect(bounded, p)
		}()
	}
	texts := make([]string, 0, len(peers))
	for range peers {
		select {
		case err := <-results:
			if err == nil {
				return nil
			}
			texts = append(texts, err.Error())
		case <-ctx.Done():
			texts = append(texts, "no answer in time from the others of "+strings.Join(addrTexts(peers), ", "))
			return errors.New("failed to connect to bootstrap peers: " + strings.Join(texts, "; "))
		}
	}
	return errors.New("failed to connect to bootstrap peers: " + strings.Join(texts, "; "))
}

// keepJoined dials the bootstrap peers again whenever this peer has no connection at all.
func (n *Node) keepJoined(cfg *config.Config, peers []peer.AddrInfo) {
	pause := rejoinFirst
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(pause):
		}
		if len(n.host.Network().Peers()) > 0 {
			pause = rejoinMost
			continue
		}
		ctx, cancel := context.WithTimeout(n.ctx, cfg.BootstrapTimeout.Duration())
		err := n.join(ctx, peers)
		cancel()
		if err == nil && n.routing != nil {
			n.routing.RefreshRoutingTable()
			pause = rejoinMost
			continue
		}
		pause = min(2*pause, rejoinMost)
		n.log.Debug("still alone", "error", err)
	}
}

func remaining(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return time.Until(deadline)
	}
	return openTimeout
}

func addrTexts(peers []peer.AddrInfo) []string {
	var texts []string
	for _, p := range peers {
		addrs, err := peer.AddrInfoToP2pAddrs(&p)
		if err != nil || len(addrs) == 0 {
			texts = append(texts, p.ID.String())
		}
		for _, addr := range addrs {
			texts = append(texts, addr.String())
		}
	}
	return texts
}
