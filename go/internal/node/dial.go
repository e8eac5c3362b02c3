package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"hivemind/p2pd/internal/punch"
)

func init() {
	// A volunteer who restarts should be dialled again soon: the library's first backoff is 5 s and its last 5 min.
	swarm.BackoffBase = time.Second
	swarm.BackoffCoef = time.Second
	swarm.BackoffMax = 30 * time.Second
	// A peer that has lost its relays is still known by several addresses through them, which take 5 s to fail; the library dials eight addresses
	// of a peer at a time, and the one that works would wait for one of these.
	swarm.DefaultPerPeerRateLimit = 32
}

// Delays of dials of one peer's addresses, after those that are dialled at once.
const (
	quicDelay   = 250 * time.Millisecond // of RFC 8305
	relayDelay  = 100 * time.Millisecond // some round trips of a local network
	farDelay    = time.Second            // of relays that have to be dialled first
	hiddenDelay = 2 * time.Second
)

// rankDials puts TCP before QUIC, which costs three times the processor time a byte, and addresses on a local network before
// those through relays. The library dials the next address at once when all before it have failed, so delays cost nothing then.
//
// Who advertises relays is hidden by a router: its public addresses come last, as they can be reached after a punch only. A
// packet that nobody waits for does harm besides: it leaves this peer's own router with a connection that has only begun, and
// if the dial is given up, that router drops the packets of a punch between the same two addresses for a minute or two.
//
// Of relays those come first that this peer is connected to: the library tries one relay after the other, and would wait 5 s for one that has gone.
func rankDials(addrs []ma.Multiaddr, connected func(peer.ID) bool) []network.AddrDelay {
	hidden := slices.ContainsFunc(addrs, isRelayed)
	near := slices.ContainsFunc(addrs, func(addr ma.Multiaddr) bool { return isRelayed(addr) && connected(relayOf(addr)) })
	local := slices.ContainsFunc(addrs, func(addr ma.Multiaddr) bool { return !isRelayed(addr) && !manet.IsPublicAddr(addr) })
	ranked := make([]network.AddrDelay, 0, len(addrs))
	for _, addr := range addrs {
		var delay time.Duration
		if !isTCP(addr) {
			delay = quicDelay
		}
		if near && isRelayed(addr) && !connected(relayOf(addr)) {
			delay += farDelay
		}
		switch {
		case isRelayed(addr) && local:
			delay += relayDelay
		case hidden && !isRelayed(addr) && manet.IsPublicAddr(addr):
			delay += hiddenDelay
		}
		ranked = append(ranked, network.AddrDelay{Addr: addr, Delay: delay})
	}
	return ranked
}

func isTCP(addr ma.Multiaddr) bool {
	_, err := addr.ValueForProtocol(ma.P_TCP)
	return err == nil
}

func isRelayed(addr ma.Multiaddr) bool { return punch.IsRelayed(addr) }

// relayOf is the relay that a relayed address goes through.
func relayOf(addr ma.Multiaddr) peer.ID {
	text, err := addr.ValueForProtocol(ma.P_P2P) // the first one
	if err != nil {
		return ""
	}
	id, err := peer.Decode(text)
	if err != nil {
		return ""
	}
	return id
}

// quicTransport ends the dial of a closed port at once where the other host says that it is. QUIC itself waits out its
// handshake (5 s): its socket is not connected, so the kernel does not tell it that the port is closed.
type quicTransport struct {
	transport.Transport
}

// Dial implements transport.Transport.
func (t quicTransport) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	punching, _, _ := network.GetSimultaneousConnect(ctx)
	if punching {
		return t.Transport.Dial(ctx, addr, p)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err := probeUDP(ctx, addr); err != nil {
			cancel(err)
		}
	}()
	conn, err := t.Transport.Dial(ctx, addr, p)
	if err != nil && errors.Is(context.Cause(ctx), syscall.ECONNREFUSED) {
		return nil, context.Cause(ctx)
	}
	return conn, err
}

// ListenOrder puts QUIC where the library has it.
func (t quicTransport) ListenOrder() int { return 1 }

// Close implements io.Closer.
func (t quicTransport) Close() error {
	if closer, ok := t.Transport.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// probeTime bounds the wait for the kernel's answer; it comes within a round trip or never.
const probeTime = 500 * time.Millisecond

// probeUDP sends one byte, which a QUIC listener ignores, from a connected socket, and returns an error only if the port
// is known to be closed.
func probeUDP(ctx context.Context, addr ma.Multiaddr) error {
	network, host, err := manet.DialArgs(udpPart(addr))
	if err != nil {
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, host)
	if err != nil {
		return nil
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(probeTime)); err != nil {
		return nil
	}
	if _, err = conn.Write([]byte{0}); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("dial %s %s: %w", network, host, syscall.ECONNREFUSED)
	}
	return nil
}

// udpPart is /ip…/udp… of a QUIC address.
func udpPart(addr ma.Multiaddr) ma.Multiaddr {
	head, _ := ma.SplitFunc(addr, func(c ma.Component) bool { return c.Protocol().Code == ma.P_QUIC_V1 })
	return head
}
