package node

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// knownPeers and knownAddrs bound what Known tells.
	knownPeers = 32
	knownAddrs = 8
	// tellPace is the least time between two words to a watcher of peers.
	tellPace = time.Second
)

// Known are connected peers with the addresses by which they can be dialled again, up to a bound.
func (n *Node) Known() []peer.AddrInfo {
	var known []peer.AddrInfo
	for _, p := range n.host.Network().Peers() {
		addrs := n.host.Peerstore().Addrs(p)
		if len(addrs) == 0 {
			continue
		}
		known = append(known, peer.AddrInfo{ID: p, Addrs: addrs[:min(len(addrs), knownAddrs)]})
		if len(known) == knownPeers {
			break
		}
	}
	return known
}

// ListenAddrs are the addresses this peer listens on itself, with their ports.
func (n *Node) ListenAddrs() []ma.Multiaddr {
	var own []ma.Multiaddr
	for _, addr := range n.host.Network().ListenAddresses() {
		if !isRelayed(addr) {
			own = append(own, addr)
		}
	}
	return own
}

// WatchPeers calls tell after peers have come or gone, now and then; stop ends that and waits for a call under way.
func (n *Node) WatchPeers(tell func()) (stop func()) {
	changes, err := n.host.EventBus().Subscribe(
		[]any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerConnectednessChanged)},
		eventbus.Name("known peers"),
	)
	if err != nil {
		n.log.Error("watching peers", "error", err)
		return func() {}
	}
	ctx, cancel := context.WithCancel(n.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer changes.Close()
		watchPeers(ctx, changes.Out(), tell)
	}()
	return func() {
		cancel()
		<-ended
	}
}

func watchPeers(ctx context.Context, changes <-chan any, tell func()) {
	var due <-chan time.Time // set while there is something to tell
	var told time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case change, open := <-changes:
			if !open {
				return
			}
			if lost, is := change.(event.EvtPeerConnectednessChanged); is && lost.Connectedness == network.Connected {
				continue // its addresses come when it is identified
			}
			if due == nil {
				due = time.After(tellPace - time.Since(told)) // at once if the last time was long ago
			}
		case <-due:
			due, told = nil, time.Now()
			tell()
		}
	}
}
