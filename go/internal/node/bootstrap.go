package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/config"
)

// Pace of the loop that rejoins a swarm whose bootstrap peers were all lost.
const (
	rejoinFirst = time.Second
	rejoinMost  = 30 * time.Second
)

// ipfsPeers are the peers through which the IPFS network is joined; none if it is not.
func ipfsPeers(cfg *config.Config) ([]peer.AddrInfo, error) {
	if !cfg.IPFS {
		return nil, nil
	}
	if len(cfg.IPFSPeers) > 0 {
		return cfg.IPFSBootstrap()
	}
	return dht.GetDefaultBootstrapPeerAddrInfos(), nil
}

// bootstrap joins the swarm through one of the peers, and keeps at it in the background. The IPFS network is joined before: the
// peers may be known by their ids only.
func (n *Node) bootstrap(ctx context.Context, cfg *config.Config, peers, ipfs []peer.AddrInfo) error {
	if len(ipfs) > 0 {
		bounded, cancel := context.WithTimeout(ctx, cfg.BootstrapTimeout.Duration()/2)
		err := n.join(bounded, ipfs)
		cancel()
		if err != nil && cfg.RequireBootstrap {
			return fmt.Errorf("%w: IPFS: %w", ErrBootstrap, err)
		}
		if err != nil {
			n.log.Warn("not joined IPFS yet", "error", err)
		}
	}
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
	if n.routing != nil && cfg.IPFS {
		if err := n.routing.Bootstrap(n.ctx); err != nil {
			return fmt.Errorf("kademlia routing: %w", err)
		}
	} else if n.routing != nil {
		n.background.Go(n.keepRouting)
	}
	n.background.Go(func() { n.keepJoined(cfg, slices.Concat(peers, ipfs)) })
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
			late := fmt.Errorf("%w: no answer in time from the others of %s", ctx.Err(), strings.Join(addrTexts(peers), ", "))
			texts = append(texts, hint(n.private, late).Error())
			return errors.New("failed to connect to bootstrap peers: " + strings.Join(texts, "; "))
		}
	}
	return errors.New("failed to connect to bootstrap peers: " + strings.Join(texts, "; "))
}

// keepJoined dials the bootstrap peers, and others that this peer has known, whenever it has no connection at all.
func (n *Node) keepJoined(cfg *config.Config, peers []peer.AddrInfo) {
	pause := rejoinFirst
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.alone:
			// Not at once: it may be alone because somebody has disconnected it on purpose.
			pause = rejoinFirst
			continue
		case <-time.After(pause):
		}
		if len(n.host.Network().Peers()) > 0 {
			pause = rejoinMost
			continue
		}
		ctx, cancel := context.WithTimeout(n.ctx, cfg.BootstrapTimeout.Duration())
		err := n.join(ctx, slices.Concat(n.acquaintances(), peers))
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

// acquaintancesMost of the peers known from before are dialled to join again.
const acquaintancesMost = 16

// acquaintances are some peers whose addresses are still remembered: those to join through first may be gone for good.
func (n *Node) acquaintances() []peer.AddrInfo {
	store := n.host.Peerstore()
	var known []peer.AddrInfo
	for _, id := range store.PeersWithAddrs() {
		if id != n.ID() && len(known) < acquaintancesMost {
			known = append(known, store.PeerInfo(id))
		}
	}
	return known
}

// pokeJoin has keepJoined look again now.
func (n *Node) pokeJoin() { poke(n.alone) }

// poke wakes whoever waits for the channel, which has room for one; nobody is woken twice for what has happened before.
func poke(wakes chan<- struct{}) {
	select {
	case wakes <- struct{}{}:
	default:
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
