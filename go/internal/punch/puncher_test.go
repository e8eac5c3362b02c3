package punch

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// fakeHost has the connections that a test gives it.
type fakeHost struct {
	host.Host
	network fakeNetwork
}

type fakeNetwork struct {
	network.Network
	conns []network.Conn
}

func (h *fakeHost) Network() network.Network                            { return &h.network }
func (h *fakeHost) SetStreamHandler(protocol.ID, network.StreamHandler) {}
func (h *fakeHost) RemoveStreamHandler(protocol.ID)                     {}

func (n *fakeNetwork) Notify(network.Notifiee)            {}
func (n *fakeNetwork) StopNotify(network.Notifiee)        {}
func (n *fakeNetwork) ConnsToPeer(peer.ID) []network.Conn { return n.conns }

// relayedWay is an open connection through a relay.
type relayedWay struct{ way }

func (relayedWay) ID() string                    { return "relayed" }
func (relayedWay) IsClosed() bool                { return false }
func (relayedWay) RemotePeer() peer.ID           { return "remote" }
func (relayedWay) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast(relayed) }

func TestDirectDialsEndWithTheLastRelayedConnection(t *testing.T) {
	conn := relayedWay{}
	h := &fakeHost{network: fakeNetwork{conns: []network.Conn{conn, conn}}}
	p := New(h, nil, slog.New(slog.DiscardHandler))
	defer p.Close()
	dial := func() context.Context {
		ctx, cancel := p.whileRelayed("remote", time.Minute, "test")
		t.Cleanup(cancel)
		return ctx
	}
	first, second := dial(), dial()
	h.network.conns = h.network.conns[:1]
	(*notifiee)(p).Disconnected(h.Network(), conn)
	if first.Err() != nil || second.Err() != nil {
		t.Fatal("ended while there is a relayed connection")
	}
	h.network.conns = nil
	(*notifiee)(p).Disconnected(h.Network(), conn)
	for _, ctx := range []context.Context{first, second, dial()} {
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
			t.Fatal("goes on without a relayed connection")
		}
	}
	if len(p.dialled) != 0 {
		t.Fatal("peers that have gone are kept")
	}
}
