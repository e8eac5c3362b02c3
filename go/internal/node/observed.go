package node

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// How a NAT maps connections that leave through it (RFC 4787, section 4.1), in the words that people know.
const (
	NATNone      = "none"      // peers of the internet see the address that this machine has
	NATCone      = "cone"      // endpoint-independent mapping: all see the same address and port, so that holes can be punched
	NATSymmetric = "symmetric" // endpoint-dependent mapping: each sees another port, so that they hardly can
	NATUnknown   = "unknown"   // not found out: it takes two peers of the internet that this one has dialled
)

// How far away a peer is, by its address.
const (
	ScopeMachine  = "machine"
	ScopeNetwork  = "network"
	ScopeInternet = "internet"
)

// scopes are in the order of their width; "" is that of a peer that has met nobody.
var scopes = []string{"", ScopeMachine, ScopeNetwork, ScopeInternet}

func scopeOf(addr ma.Multiaddr) string {
	switch {
	case manet.IsPublicAddr(addr):
		return ScopeInternet
	case manet.IsIPLoopback(addr):
		return ScopeMachine
	}
	if _, err := manet.ToIP(addr); err != nil {
		return ScopeMachine // a unix socket
	}
	return ScopeNetwork
}

func wider(a, b string) string {
	if slices.Index(scopes, a) < slices.Index(scopes, b) {
		return b
	}
	return a
}

// ObservedAddr is an address that peers say this one's connections come from.
type ObservedAddr struct {
	Addr  ma.Multiaddr
	Peers int // different addresses of peers that said so
}

// observedMost bounds the addresses that are told: peers may claim anything.
const observedMost = 16

// sighting is what the peer at the other end of one connection says of this end.
type sighting struct {
	observer netip.Addr
	seen     netip.AddrPort
	local    netip.AddrPort
	udp      bool
	outgoing bool // this peer has dialled: the NAT has made a mapping
	far      bool // the observer is on the internet, beyond the NAT
}

// sightings are those of the open connections. The library finds out the type of the NAT as well, from nine observers on, once a
// minute, and has TCP and UDP the wrong way round (v0.51).
type sightings struct {
	mu     sync.Mutex
	byConn map[network.Conn]sighting // mu
	widest string                    // mu: scope of the farthest peer so far
}

// take notes where a peer is, and what it has said of a connection.
func (s *sightings) take(conn network.Conn, observed ma.Multiaddr) {
	one, ok := newSighting(conn, observed)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.widest = wider(s.widest, scopeOf(conn.RemoteMultiaddr()))
	if !ok {
		return
	}
	if s.byConn == nil {
		s.byConn = make(map[network.Conn]sighting)
	}
	s.byConn[conn] = one
}

// open are the sightings of connections that are still open, and the scope of the farthest peer so far; it forgets the others.
func (s *sightings) open() (found []sighting, widest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found = make([]sighting, 0, len(s.byConn))
	for conn, one := range s.byConn {
		if conn.IsClosed() {
			delete(s.byConn, conn)
			continue
		}
		found = append(found, one)
	}
	return found, s.widest
}

func newSighting(conn network.Conn, observed ma.Multiaddr) (one sighting, ok bool) {
	remote := conn.RemoteMultiaddr()
	if observed == nil || isRelayed(remote) || isRelayed(observed) {
		return one, false // the relay's connection was seen
	}
	seen, udp, ok := endpointOf(observed)
	if !ok {
		return one, false
	}
	local, localUDP, ok := endpointOf(conn.LocalMultiaddr())
	if !ok || localUDP != udp {
		return one, false
	}
	from, _, ok := endpointOf(remote)
	return sighting{
		observer: from.Addr(), seen: seen, local: local, udp: udp,
		outgoing: conn.Stat().Direction == network.DirOutbound, far: manet.IsPublicAddr(remote),
	}, ok
}

// endpointOf is the IP address and the TCP or UDP port of an address.
func endpointOf(addr ma.Multiaddr) (endpoint netip.AddrPort, udp, ok bool) {
	if len(addr) < 2 {
		return endpoint, false, false
	}
	udp = addr[1].Code() == ma.P_UDP
	if !udp && addr[1].Code() != ma.P_TCP {
		return endpoint, false, false
	}
	ip, valid := netip.AddrFromSlice(addr[0].RawValue())
	port := addr[1].RawValue()
	if code := addr[0].Code(); !valid || code != ma.P_IP4 && code != ma.P_IP6 || len(port) != 2 {
		return endpoint, false, false
	}
	return netip.AddrPortFrom(ip, uint16(port[0])<<8|uint16(port[1])), udp, true
}

// natType is the type of the NAT by what peers of the internet have seen of connections made to them. It is decided by IPv4 where
// that can be: NATs of IPv6 are rare.
//
//   - own are the IP addresses of this machine
func natType(all []sighting, own []netip.Addr) string {
	var v4, v6 []sighting
	for _, s := range all {
		switch {
		case !s.far || !s.outgoing:
		case s.seen.Addr().Is4():
			v4 = append(v4, s)
		default:
			v6 = append(v6, s)
		}
	}
	if verdict := natTypeOf(v4, own); verdict != NATUnknown {
		return verdict
	}
	return natTypeOf(v6, own)
}

func natTypeOf(all []sighting, own []netip.Addr) string {
	type mapping struct {
		port uint16 // local
		seen netip.AddrPort
	}
	direct := 0
	observers := make(map[mapping]map[netip.Addr]bool)
	mappings := make(map[uint16]int) // of each local port
	for _, s := range all {
		if s.seen.Port() == s.local.Port() && slices.Contains(own, s.seen.Addr()) {
			direct++
		}
		key := mapping{s.local.Port(), s.seen}
		if observers[key] == nil {
			observers[key] = make(map[netip.Addr]bool)
			mappings[key.port]++
		}
		observers[key][s.observer] = true
	}
	if direct > len(all)/2 {
		return NATNone
	}
	for _, seenBy := range observers {
		if len(seenBy) > 1 {
			return NATCone
		}
	}
	for _, count := range mappings {
		if count > 1 {
			return NATSymmetric
		}
	}
	return NATUnknown
}

// observedAddrs are the addresses that this peer was seen at, those with the most witnesses first.
func observedAddrs(all []sighting) []ObservedAddr {
	type place struct {
		seen netip.AddrPort
		udp  bool
	}
	witnesses := make(map[place]map[netip.Addr]bool)
	for _, s := range all {
		key := place{s.seen, s.udp}
		if witnesses[key] == nil {
			witnesses[key] = make(map[netip.Addr]bool)
		}
		witnesses[key][s.observer] = true
	}
	found := make([]ObservedAddr, 0, len(witnesses))
	for key, seenBy := range witnesses {
		found = append(found, ObservedAddr{addrOf(key.seen, key.udp), len(seenBy)})
	}
	slices.SortFunc(found, func(a, b ObservedAddr) int {
		return cmp.Or(cmp.Compare(b.Peers, a.Peers), a.Addr.Compare(b.Addr))
	})
	return found[:min(len(found), observedMost)]
}

func addrOf(endpoint netip.AddrPort, udp bool) ma.Multiaddr {
	var from net.Addr = net.TCPAddrFromAddrPort(endpoint)
	if udp {
		from = net.UDPAddrFromAddrPort(endpoint)
	}
	addr, _ := manet.FromNetAddr(from) // it was parsed from one
	return addr
}

// addObserved adds what peers have seen.
func (n *Node) addObserved(state *Reachability) {
	seen, widest := n.seen.open()
	var tcp, udp []sighting
	for _, one := range seen {
		if one.udp {
			udp = append(udp, one)
		} else {
			tcp = append(tcp, one)
		}
	}
	own := n.ownIPs()
	state.NATOfTCP, state.NATOfUDP = natType(tcp, own), natType(udp, own)
	state.Observed, state.Widest = observedAddrs(seen), widest
}

// ownIPs are the IP addresses that this machine listens on.
func (n *Node) ownIPs() []netip.Addr {
	addrs, err := n.host.Network().InterfaceListenAddresses()
	if err != nil {
		n.log.Debug("own interfaces", "error", err)
	}
	var found []netip.Addr
	for _, addr := range addrs {
		if endpoint, _, ok := endpointOf(addr); ok {
			found = append(found, endpoint.Addr())
		}
	}
	return found
}
