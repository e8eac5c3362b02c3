package node

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	"github.com/libp2p/go-msgio/pbio"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/proto"
)

// Bounds of a push, as the library has them.
const (
	pushTime      = 5 * time.Second
	pushBytes     = 8 << 10 // of one part
	pushParts     = 10
	pushAddrs     = 500
	pushProtocols = 1024 // of the store too, whose default, 128, a server of experts would pass
)

// Pushes from one address a second, and at once: three of each peer that may be behind one router (see connBurstPerIP).
const (
	pushRatePerIP  = 3 * connRatePerIP
	pushBurstPerIP = 3 * connBurstPerIP
)

// pushes takes what connected peers tell about changes of their addresses and handlers (identify/push,
// https://github.com/libp2p/specs/tree/master/identify). The library takes one in five seconds from a network of 256 addresses, and drops the
// others: a relay, which each peer behind a router tells its addresses some seconds after it has joined, would not know the way to most of them.
type pushes struct {
	host      host.Host
	identify  identify.IDService
	log       *slog.Logger
	protocols event.Emitter // of event.EvtPeerProtocolsUpdated
	completed event.Emitter // of event.EvtPeerIdentificationCompleted

	keeping sync.Mutex // of two pushes of one peer the later counts whole, with its handlers and its addresses
}

// takePushes takes over from the library; close ends it.
func takePushes(h host.Host, log *slog.Logger) (*pushes, error) {
	identifying, ok := h.(interface{ IDService() identify.IDService })
	if !ok {
		return nil, fmt.Errorf("a %T does not identify peers", h)
	}
	protocols, err := h.EventBus().Emitter(new(event.EvtPeerProtocolsUpdated))
	if err != nil {
		return nil, err
	}
	completed, err := h.EventBus().Emitter(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return nil, errors.Join(err, protocols.Close())
	}
	p := &pushes{host: h, identify: identifying.IDService(), log: log, protocols: protocols, completed: completed}
	h.SetStreamHandler(identify.IDPush, rateLimiter(pushRatePerIP, pushBurstPerIP).Limit(p.serve))
	return p, nil
}

func (p *pushes) close() {
	p.host.RemoveStreamHandler(identify.IDPush)
	if err := errors.Join(p.protocols.Close(), p.completed.Close()); err != nil {
		p.log.Debug("closing the events of pushes", "error", err)
	}
}

func (p *pushes) serve(stream network.Stream) {
	message, err := readPush(stream)
	if err != nil {
		_ = stream.Reset()
		p.log.Debug("not a push", "peer", stream.Conn().RemotePeer(), "error", err)
		return
	}
	_ = stream.Close()
	select { // what it said when it connected is older, but may come later
	case <-p.identify.IdentifyWait(stream.Conn()):
	case <-time.After(pushTime):
	}
	p.take(stream.Conn(), message)
}

func readPush(stream network.Stream) (*pb.Identify, error) {
	if err := stream.Scope().SetService(identify.ServiceName); err != nil {
		return nil, err
	}
	if err := stream.Scope().ReserveMemory(pushBytes, network.ReservationPriorityAlways); err != nil {
		return nil, err
	}
	defer stream.Scope().ReleaseMemory(pushBytes)
	if err := stream.SetDeadline(time.Now().Add(pushTime)); err != nil {
		return nil, err
	}
	reader := pbio.NewDelimitedReader(stream, pushBytes)
	whole := &pb.Identify{}
	for range pushParts {
		part := &pb.Identify{}
		switch err := reader.ReadMsg(part); {
		case errors.Is(err, io.EOF):
			return whole, nil
		case err != nil:
			return nil, err
		}
		proto.Merge(whole, part)
	}
	return nil, fmt.Errorf("more than %d parts", pushParts)
}

func (p *pushes) take(conn network.Conn, message *pb.Identify) {
	remote := conn.RemotePeer()
	before, names, addrs := p.keep(conn, message)
	observed, err := ma.NewMultiaddrBytes(message.GetObservedAddr())
	if err != nil {
		observed = nil
	}
	err = errors.Join(p.protocols.Emit(event.EvtPeerProtocolsUpdated{
		Peer: remote, Added: without(names, before), Removed: without(before, names),
	}), p.completed.Emit(event.EvtPeerIdentificationCompleted{
		Peer: remote, Conn: conn, ListenAddrs: addrs, Protocols: names, ObservedAddr: observed,
		ProtocolVersion: message.GetProtocolVersion(), AgentVersion: message.GetAgentVersion(),
	}))
	if err != nil {
		p.log.Debug("events of a push", "peer", remote, "error", err)
	}
}

// keep puts a peer's handlers and addresses in the place of those known.
func (p *pushes) keep(conn network.Conn, message *pb.Identify) (before, names []protocol.ID, addrs []ma.Multiaddr) {
	remote, store := conn.RemotePeer(), p.host.Peerstore()
	names = protocol.ConvertFromStrings(message.GetProtocols())
	names = names[:min(len(names), pushProtocols)]
	addrs = usableFrom(conn.RemoteMultiaddr(), pushedAddrs(remote, message))
	p.keeping.Lock()
	defer p.keeping.Unlock()
	before, err := store.GetProtocols(remote)
	if err == nil {
		err = store.SetProtocols(remote, names...)
	}
	if err != nil {
		p.log.Debug("a peer's handlers", "peer", remote, "error", err)
	}
	ttl := peerstore.RecentlyConnectedAddrTTL
	if state := p.host.Network().Connectedness(remote); state == network.Connected || state == network.Limited {
		ttl = peerstore.ConnectedAddrTTL
	}
	for _, old := range []time.Duration{peerstore.RecentlyConnectedAddrTTL, peerstore.ConnectedAddrTTL} {
		store.UpdateAddrs(remote, old, peerstore.TempAddrTTL)
	}
	store.AddAddrs(remote, addrs, ttl)
	store.UpdateAddrs(remote, peerstore.TempAddrTTL, 0) // those that are no longer told
	return before, names, addrs
}

// pushedAddrs are the addresses that a peer has signed, or else those that it only says.
func pushedAddrs(remote peer.ID, message *pb.Identify) []ma.Multiaddr {
	if addrs, err := signedAddrs(remote, message.GetSignedPeerRecord()); err == nil {
		return addrs[:min(len(addrs), pushAddrs)]
	}
	var addrs []ma.Multiaddr
	for _, raw := range message.GetListenAddrs() {
		if addr, err := ma.NewMultiaddrBytes(raw); err == nil && len(addrs) < pushAddrs {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func signedAddrs(remote peer.ID, sealed []byte) ([]ma.Multiaddr, error) {
	var opened peer.PeerRecord
	envelope, err := record.ConsumeTypedEnvelope(sealed, &opened)
	if err != nil {
		return nil, err
	}
	if !remote.MatchesPublicKey(envelope.PublicKey) || opened.PeerID != remote {
		return nil, errors.New("signed by another peer")
	}
	return opened.Addrs, nil
}

// usableFrom leaves out addresses of networks that a peer at this address is not in.
func usableFrom(remote ma.Multiaddr, addrs []ma.Multiaddr) []ma.Multiaddr {
	switch {
	case manet.IsIPLoopback(remote):
		return addrs
	case manet.IsPrivateAddr(remote):
		return ma.FilterAddrs(addrs, func(addr ma.Multiaddr) bool { return !manet.IsIPLoopback(addr) })
	case manet.IsPublicAddr(remote):
		return ma.FilterAddrs(addrs, manet.IsPublicAddr)
	}
	return addrs
}

func without(all, some []protocol.ID) []protocol.ID {
	return slices.DeleteFunc(slices.Clone(all), func(name protocol.ID) bool { return slices.Contains(some, name) })
}
