package node

import (
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"hivemind/p2pd/internal/guard"
)

// guardedManager shows a guard every stream that a peer opens, before anything is done for it. The library asks from the loop that
// accepts the streams of one connection, so that a pause slows down that peer alone: its own library stops opening more.
type guardedManager struct {
	network.ResourceManager
	guard   *guard.Guard
	unknown func() // counts a stream that named no known protocol
}

// OpenStream implements network.ResourceManager.
func (m *guardedManager) OpenStream(p peer.ID, way network.Direction) (network.StreamManagementScope, error) {
	if way != network.DirInbound {
		return m.ResourceManager.OpenStream(p, way)
	}
	pause, ok := m.guard.Opened(p)
	if pause > 0 {
		time.Sleep(pause)
	}
	if !ok {
		return nil, network.ErrResourceLimitExceeded
	}
	scope, err := m.ResourceManager.OpenStream(p, way)
	if err != nil {
		m.guard.Closed(p)
		return nil, err
	}
	return &guardedStream{StreamManagementScope: scope, manager: m, peer: p}, nil
}

// guardedStream is an open stream of a peer.
type guardedStream struct {
	network.StreamManagementScope
	manager *guardedManager
	peer    peer.ID
	named   atomic.Bool // its protocol is known
	done    atomic.Bool
}

// SetProtocol implements network.StreamManagementScope; the host calls it once the peer has named one of its protocols.
func (s *guardedStream) SetProtocol(name protocol.ID) error {
	s.named.Store(true)
	return s.StreamManagementScope.SetProtocol(name)
}

// Done implements network.ResourceScopeSpan.
func (s *guardedStream) Done() {
	s.StreamManagementScope.Done()
	if s.done.Swap(true) {
		return
	}
	if !s.named.Load() {
		s.manager.unknown()
		s.manager.guard.Refused(s.peer, guard.Unknown)
	}
	s.manager.guard.Closed(s.peer)
}

// gater refuses connections with peers that are banned; it implements connmgr.ConnectionGater.
type gater struct{ guard *guard.Guard }

func (g gater) InterceptPeerDial(p peer.ID) bool                                { return g.guard.Banned(p) == 0 }
func (g gater) InterceptAddrDial(peer.ID, ma.Multiaddr) bool                    { return true }
func (g gater) InterceptAccept(network.ConnMultiaddrs) bool                     { return true }
func (g gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// InterceptSecured is where the library shows the sockets of TCP connections, of both directions and before anything wraps them.
func (g gater) InterceptSecured(_ network.Direction, p peer.ID, conn network.ConnMultiaddrs) bool {
	boundSilence(conn)
	return g.guard.Banned(p) == 0
}
