package node

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	routedhost "github.com/libp2p/go-libp2p/p2p/host/routed"
	ma "github.com/multiformats/go-multiaddr"
)

// searchAfter is how long known addresses are dialled alone. A dial of a machine that is gone takes 5 to 15 s to fail.
const searchAfter = time.Second

// searchingHost finds the addresses of peers by the routing. The library does so when none is known or all have failed;
// this host also when those that are known are slow, so that a peer that has moved, or has lost its relays, is found soon.
type searchingHost struct {
	*routedhost.RoutedHost
	host    host.Host
	routing routedhost.Routing
}

func newSearchingHost(h host.Host, routing routedhost.Routing) *searchingHost {
	return &searchingHost{RoutedHost: routedhost.Wrap(h, routing), host: h, routing: routing}
}

// streamAttempts bounds the connections of one peer that end while a stream is opened on them.
const streamAttempts = 3

// NewStream implements host.Host.
//
// A peer that dials several addresses at once keeps one connection, and of the others says nothing where they are QUIC. This side
// learns that one is gone when it asks who is there, for which the library waits before it gives the stream; but then it gives a stream
// of the dead connection. Nothing has been sent on it yet, so that another may take its place.
func (h *searchingHost) NewStream(ctx context.Context, p peer.ID, names ...protocol.ID) (stream network.Stream, err error) {
	for range streamAttempts {
		if err := h.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
			return nil, err
		}
		stream, err = h.host.NewStream(ctx, p, names...)
		if err != nil || !stream.Conn().IsClosed() {
			break
		}
	}
	return stream, err
}

// Connect implements host.Host.
func (h *searchingHost) Connect(ctx context.Context, info peer.AddrInfo) error {
	known := append(h.host.Peerstore().Addrs(info.ID), info.Addrs...)
	if h.host.Network().Connectedness(info.ID) == network.Connected || len(known) == 0 {
		return h.RoutedHost.Connect(ctx, info)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dialled, found := make(chan error, 1), make(chan error, 1)
	go func() { dialled <- h.RoutedHost.Connect(ctx, info) }()
	go func() { found <- h.connectNewer(ctx, info.ID, known) }()
	select {
	case err := <-dialled: // if it failed, the library has searched as well
		return err
	case err := <-found:
		if err == nil {
			return nil
		}
		return <-dialled
	}
}

// connectNewer waits a while, then dials what the routing knows besides the known addresses, and so again after pauses that double: of a peer
// that has only just moved, or taken another relay, the others do not know yet. It ends once it has connected, or with the context.
func (h *searchingHost) connectNewer(ctx context.Context, p peer.ID, known []ma.Multiaddr) error {
	for pause := searchAfter; ; pause *= 2 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		newer := h.newer(ctx, p, known)
		if len(newer) == 0 {
			continue
		}
		if err := h.host.Connect(ctx, peer.AddrInfo{ID: p, Addrs: newer}); err == nil {
			return nil
		}
		known = append(known, newer...)
	}
}

// newer searches until somebody has named an address of p that is not among the known ones. The library goes on until it is connected to p, or all
// who are near it have answered, and some of them may have gone.
func (h *searchingHost) newer(ctx context.Context, p peer.ID, known []ma.Multiaddr) []ma.Multiaddr {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unknown := func(addr ma.Multiaddr) bool { return !ma.Contains(known, addr) }
	named, found := h.host.Peerstore().AddrStream(ctx, p), make(chan []ma.Multiaddr, 1)
	go func() {
		info, _ := h.routing.FindPeer(ctx, p) // on an error there is no address
		found <- info.Addrs
	}()
	for {
		select {
		case addrs := <-found:
			return ma.FilterAddrs(addrs, unknown)
		case addr, open := <-named:
			if !open { // with the context
				return nil
			}
			if unknown(addr) {
				return ma.FilterAddrs(h.host.Peerstore().Addrs(p), unknown)
			}
		}
	}
}
