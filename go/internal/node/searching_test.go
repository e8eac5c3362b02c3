package node

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// knows is a routing that knows peers by the addresses given.
type knows []ma.Multiaddr

func (k knows) FindPeer(_ context.Context, p peer.ID) (peer.AddrInfo, error) {
	if len(k) == 0 {
		return peer.AddrInfo{}, routing.ErrNotFound
	}
	return peer.AddrInfo{ID: p, Addrs: k}, nil
}

// silent is an address at which connections are taken and nothing is said.
func silent(t *testing.T) ma.Multiaddr {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	addr, err := manet.FromNetAddr(listener.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestAPeerThatHasMovedIsFoundWhileItsOldAddressIsDialled(t *testing.T) {
	caller, moved := start(t, nil), start(t, nil)
	caller.host.Peerstore().AddAddr(moved.ID(), silent(t), peerstore.PermanentAddrTTL)
	h := newSearchingHost(caller.host, knows(moved.host.Addrs()))
	begun := time.Now()
	if err := h.Connect(within(t), peer.AddrInfo{ID: moved.ID()}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > searchAfter+hasty {
		t.Fatal("found only after", took)
	}
}

// learns is a routing that knows a peer by its old address when it is asked first, and by another later.
type learns struct {
	old, newer ma.Multiaddr
	asked      atomic.Bool
}

func (l *learns) FindPeer(_ context.Context, p peer.ID) (peer.AddrInfo, error) {
	if !l.asked.Swap(true) {
		return peer.AddrInfo{ID: p, Addrs: []ma.Multiaddr{l.old}}, nil
	}
	return peer.AddrInfo{ID: p, Addrs: []ma.Multiaddr{l.old, l.newer}}, nil
}

func TestAPeerThatHasOnlyJustMovedIsFoundByTheNextSearch(t *testing.T) {
	caller, moved := start(t, nil), start(t, nil)
	old := silent(t)
	caller.host.Peerstore().AddAddr(moved.ID(), old, peerstore.PermanentAddrTTL)
	known := &learns{old: old, newer: moved.host.Addrs()[0]}
	begun := time.Now()
	if err := newSearchingHost(caller.host, known).Connect(within(t), peer.AddrInfo{ID: moved.ID()}); err != nil {
		t.Fatal(err)
	}
	// the dial of the old address takes 5 s to fail
	if took := time.Since(begun); took < 3*searchAfter || took > 4500*time.Millisecond {
		t.Fatal("found after", took)
	}
}

func TestSlowDialsGoOnWhereTheRoutingKnowsNothingNewer(t *testing.T) {
	caller, slow := start(t, nil), start(t, nil)
	addr := silent(t)
	caller.host.Peerstore().AddAddr(slow.ID(), addr, peerstore.PermanentAddrTTL)
	for name, routing := range map[string]knows{"nothing": nil, "the same": {addr}} {
		ctx, cancel := context.WithTimeout(t.Context(), searchAfter+time.Second)
		defer cancel()
		err := newSearchingHost(caller.host, routing).Connect(ctx, peer.AddrInfo{ID: slow.ID()})
		if err == nil || ctx.Err() == nil {
			t.Errorf("%s: %v before its time was over", name, err)
		}
	}
}

// TestAConnectionThatEndsBeforeItIsKnownToLiveIsNotUsed has a peer with two connections, of which one is never answered, and ends.
func TestAConnectionThatEndsBeforeItIsKnownToLiveIsNotUsed(t *testing.T) {
	caller, callee := start(t, nil), start(t, nil)
	callee.Handle("T.echo", echo)
	if err := caller.Connect(within(t), info(t, callee)); err != nil {
		t.Fatal(err)
	}
	if err := exchange(t, caller, callee, 100); err != nil {
		t.Fatal(err)
	}
	ghost, err := libp2p.New(libp2p.Identity(callee.host.Peerstore().PrivKey(callee.ID())), libp2p.NoListenAddrs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ghost.Close() })
	end := make(chan struct{})
	ghost.Network().SetStreamHandler(func(s network.Stream) {
		<-end
		_ = s.Conn().Close()
	})
	if err := ghost.Connect(within(t), info(t, caller)); err != nil {
		t.Fatal(err)
	}
	var dead network.Conn
	until(t, "the second connection is there", func() bool {
		for _, conn := range caller.host.Network().ConnsToPeer(callee.ID()) {
			if len(conn.GetStreams()) > 0 {
				dead = conn
			}
		}
		return dead != nil
	})
	before := len(dead.GetStreams())
	done := make(chan error, 1)
	go func() { done <- exchange(t, caller, callee, 100) }()
	until(t, "a stream is opened on it", func() bool { return len(dead.GetStreams()) > before })
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
