// Package punch gives peers that know each other through a relay a direct connection: direct connection upgrade through relay (DCUtR,
// https://github.com/libp2p/specs/blob/master/relay/DCUtR.md). Both sides send at the same moment, so that the router of each takes what
// comes from the other for an answer.
//
// The library has this too, but tries once, at the moment of the relayed connection. In a swarm, peers are connected through a relay within
// half a second of their start, before any of them has learned its public address; and often in both directions, of which the
// library may choose the one that the other side refuses.
package punch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// dialTime bounds the dials of one attempt. A first packet that is lost, as the other's router does not wait for it yet, is sent again
	// after 1 and after 3 s.
	dialTime = 5 * time.Second
	// firstDialTime, and firstDialTrips round trips through the relay, bound those of the first attempt of a series: where one side is open,
	// it fails for its roles alone, and the next one works.
	firstDialTime  = 1500 * time.Millisecond
	firstDialTrips = 6
	// attemptsOfSeries follow each other at once, in different ways; then comes a pause.
	attemptsOfSeries = 3
	firstPause       = 2 * time.Second
	// longestPause: routers of some kinds can never be passed, but a peer may move to another network.
	longestPause = 5 * time.Minute
	// addrsPause is between looks whether this peer has learned its public address.
	addrsPause = 100 * time.Millisecond
	// addrsPatience bounds the wait for one in one attempt.
	addrsPatience = 10 * time.Second
	// settleTime is what the other side needs to see the direct connection, so that it opens no streams on the relayed one.
	settleTime = 5 * time.Second
)

// Puncher upgrades relayed connections of a host. It is safe for concurrent use.
type Puncher struct {
	host  host.Host
	addrs func() []ma.Multiaddr
	log   *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // upgrades and answers under way

	mu      sync.Mutex
	closed  bool                      // mu: no more work is begun
	active  map[peer.ID]chan struct{} // mu: peers with an upgrade under way; the channel ends its pause
	punched map[string]struct{}       // mu: ids of connections that came of a punch
	dialled map[peer.ID]chan struct{} // mu: peers dialled while they are relayed; closed with the last relayed connection
}

// New begins to upgrade the relayed connections of h.
//
// addrs gives the direct addresses of this host: those it listens on, and those at which others have seen it.
func New(h host.Host, addrs func() []ma.Multiaddr, log *slog.Logger) *Puncher {
	p := &Puncher{
		host: h, addrs: addrs, log: log, active: make(map[peer.ID]chan struct{}), punched: make(map[string]struct{}),
		dialled: make(map[peer.ID]chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	h.SetStreamHandler(ProtocolID, p.answer)
	h.Network().Notify((*notifiee)(p))
	return p
}

// Close ends all attempts.
func (p *Puncher) Close() {
	p.host.Network().StopNotify((*notifiee)(p))
	p.host.RemoveStreamHandler(ProtocolID)
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.work.Wait()
}

// Punched tells whether a connection came of a punch.
func (p *Puncher) Punched(conn network.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, is := p.punched[conn.ID()]
	return is
}

// begin reserves a place in work; the caller must call p.work.Done if it is true.
func (p *Puncher) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.work.Add(1)
	}
	return !p.closed
}

type notifiee Puncher

// Connected implements network.Notifiee.
func (n *notifiee) Connected(_ network.Network, conn network.Conn) {
	p := (*Puncher)(n)
	if !IsRelayed(conn.RemoteMultiaddr()) {
		return
	}
	if conn.Stat().Direction == network.DirInbound && p.begin() {
		go func() {
			defer p.work.Done()
			p.upgrade(conn.RemotePeer())
		}()
	}
}

// Disconnected implements network.Notifiee.
func (n *notifiee) Disconnected(_ network.Network, conn network.Conn) {
	p := (*Puncher)(n)
	p.mu.Lock()
	delete(p.punched, conn.ID())
	p.mu.Unlock()
	p.endDials(conn.RemotePeer())
}

// whileRelayed is a context for a direct dial of a peer: it ends after bound, and with the last relayed connection to the peer. The library
// keeps one dial of a peer at a time and answers all who ask for a connection meanwhile with what it has come to, be it gone or not.
func (p *Puncher) whileRelayed(remote peer.ID, bound time.Duration, why string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(p.ctx, why), bound)
	p.mu.Lock()
	gone := p.dialled[remote]
	if gone == nil {
		gone = make(chan struct{})
		p.dialled[remote] = gone
	}
	p.mu.Unlock()
	p.endDials(remote) // if it has gone before that was there to close
	go func() {
		select {
		case <-gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// endDials ends the dials of a peer that is relayed no more.
func (p *Puncher) endDials(remote peer.ID) {
	if relayed, _ := p.connections(remote); len(relayed) > 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if gone := p.dialled[remote]; gone != nil {
		close(gone)
		delete(p.dialled, remote)
	}
}

// Listen implements network.Notifiee.
func (n *notifiee) Listen(network.Network, ma.Multiaddr) {}

// ListenClose implements network.Notifiee.
func (n *notifiee) ListenClose(network.Network, ma.Multiaddr) {}

// upgrade tries until there is a direct connection, or none at all. One runs for a peer at a time.
func (p *Puncher) upgrade(remote peer.ID) {
	p.mu.Lock()
	poke, runs := p.active[remote]
	if !runs {
		poke = make(chan struct{}, 1)
		p.active[remote] = poke
	}
	p.mu.Unlock()
	if runs { // a new connection: something has changed
		select {
		case poke <- struct{}{}:
		default:
		}
		return
	}
	defer func() {
		p.mu.Lock()
		delete(p.active, remote)
		p.mu.Unlock()
	}()
	pause := firstPause
	for attempt := 0; ; attempt++ {
		relayed, direct := p.connections(remote)
		switch {
		case len(relayed) == 0 || p.ctx.Err() != nil:
			return
		case direct != nil:
			p.drain(relayed)
			continue
		}
		if way := wayToAsk(p.host.ID(), remote, relayed); way != nil {
			err := p.attempt(way, attempt%attemptsOfSeries)
			if err == nil {
				continue
			}
			p.log.Debug("no hole punched", "peer", remote, "error", err)
		}
		if attempt%attemptsOfSeries != attemptsOfSeries-1 {
			continue
		}
		select {
		case <-p.ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, longestPause)
		case <-poke:
			pause = firstPause
		}
	}
}

// wayToAsk is the connection on which this peer asks the other to punch; nil if that is for the other to do. The peer that was called asks.
// If each has called the other, the one with the smaller id does: two exchanges at once would spoil each other.
func wayToAsk(own, remote peer.ID, relayed []network.Conn) network.Conn {
	var inbound, outbound network.Conn
	for _, conn := range relayed {
		if conn.Stat().Direction == network.DirInbound {
			inbound = conn
		} else {
			outbound = conn
		}
	}
	if outbound != nil && own > remote {
		return nil
	}
	return inbound
}

// connections are the relayed connections to a peer and a direct one, if there are any.
func (p *Puncher) connections(remote peer.ID) (relayed []network.Conn, direct network.Conn) {
	for _, conn := range p.host.Network().ConnsToPeer(remote) {
		switch {
		case conn.IsClosed():
		case IsRelayed(conn.RemoteMultiaddr()):
			relayed = append(relayed, conn)
		default:
			direct = conn
		}
	}
	return relayed, direct
}

// attempt is one of a series. A peer that seems to be public is dialled; else it is asked to punch now, through the relay.
func (p *Puncher) attempt(way network.Conn, number int) error {
	remote := way.RemotePeer()
	if number == 0 && seemsPublic(p.host.Peerstore().Addrs(remote)) {
		ctx, cancel := p.whileRelayed(remote, dialTime, "a public peer has called")
		defer cancel()
		return p.host.Connect(ctx, peer.AddrInfo{ID: remote})
	}
	if err := p.awaitAddrs(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.ctx, exchangeTime)
	defer cancel()
	stream, err := openOn(ctx, way)
	if err != nil {
		return fmt.Errorf("asking: %w", err)
	}
	own := offered(p.addrs())
	found, err := initiate(stream, own, number == 0)
	if err != nil {
		_ = stream.Reset()
		return fmt.Errorf("asking: %w", err)
	}
	bound := dialTime
	if number == 0 {
		bound = firstDialTime + firstDialTrips*found.rtt
	}
	if found.open {
		_ = stream.Reset() // the other side need not dial
		ctx, cancel := p.whileRelayed(remote, bound, "a peer without a router has called")
		defer cancel()
		return p.host.Connect(ctx, peer.AddrInfo{ID: remote, Addrs: found.addrs})
	}
	_ = stream.Close()
	if !p.sleep(found.rtt / 2) {
		return p.ctx.Err()
	}
	// Releases of the library before 0.41 have the roles the other way round; and where one of the two routers lets everything in, the packet
	// of the other side meets a listener, which is a server.
	isClient := number == 1
	return p.dial(remote, targets(own, found.addrs, isClient), isClient, bound)
}

// seemsPublic: a peer that others cannot connect to advertises its relays.
func seemsPublic(addrs []ma.Multiaddr) bool {
	return !slices.ContainsFunc(addrs, IsRelayed) && slices.ContainsFunc(addrs, manet.IsPublicAddr)
}

// answer serves a peer that this one has called through a relay and that asks to punch.
func (p *Puncher) answer(stream network.Stream) {
	conn := stream.Conn()
	// From nobody else: a stranger could have this peer dial any address.
	if conn.Stat().Direction != network.DirOutbound || !IsRelayed(conn.RemoteMultiaddr()) || !p.begin() {
		_ = stream.Reset()
		return
	}
	defer p.work.Done()
	err := stream.SetDeadline(time.Now().Add(exchangeTime))
	if err == nil {
		err = p.awaitAddrs()
	}
	var found plan
	own := offered(p.addrs())
	if err == nil {
		found, err = respond(stream, own)
	}
	if err != nil {
		_ = stream.Reset()
		p.log.Debug("no hole punched", "peer", conn.RemotePeer(), "error", err)
		return
	}
	_ = stream.Close()
	if err := p.dial(conn.RemotePeer(), targets(own, found.addrs, true), true, dialTime); err != nil {
		p.log.Debug("no hole punched", "peer", conn.RemotePeer(), "error", err)
	}
}

// dial sends to the other peer's addresses while it sends to ours. Where both packets meet there is no server, so that the roles are given:
// the one who asked is the server.
func (p *Puncher) dial(remote peer.ID, addrs []ma.Multiaddr, isClient bool, bound time.Duration) error {
	ctx, cancel := p.whileRelayed(remote, bound, "hole punching")
	defer cancel()
	ctx = network.WithSimultaneousConnect(ctx, isClient, "hole punching")
	if err := p.host.Connect(ctx, peer.AddrInfo{ID: remote, Addrs: addrs}); err != nil {
		return err
	}
	_, direct := p.connections(remote)
	if direct == nil {
		return errors.New("the connection has not lasted")
	}
	p.log.Info("hole punched", "peer", remote, "addr", direct.RemoteMultiaddr())
	p.mu.Lock()
	p.punched[direct.ID()] = struct{}{}
	p.mu.Unlock()
	if direct.IsClosed() { // before it was there to forget
		(*notifiee)(p).Disconnected(nil, direct)
	}
	return nil
}

// awaitAddrs waits until others could be told where to send to.
func (p *Puncher) awaitAddrs() error {
	for begun := time.Now(); !slices.ContainsFunc(p.addrs(), manet.IsPublicAddr); {
		if time.Since(begun) > addrsPatience {
			return fmt.Errorf("this peer knows of %w", errNoAddrs)
		}
		if !p.sleep(addrsPause) {
			return p.ctx.Err()
		}
	}
	return nil
}

// drain waits a while, then closes those relayed connections that have no streams: with a direct one they are not needed, and relays are few.
func (p *Puncher) drain(relayed []network.Conn) {
	if !p.sleep(settleTime) {
		return
	}
	for _, conn := range relayed {
		if _, direct := p.connections(conn.RemotePeer()); direct != nil && len(conn.GetStreams()) == 0 {
			_ = conn.Close()
		}
	}
}

// sleep waits, and tells whether the puncher lives on.
func (p *Puncher) sleep(pause time.Duration) bool {
	select {
	case <-p.ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}
