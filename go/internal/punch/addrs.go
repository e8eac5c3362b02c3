package punch

import (
	"net"
	"slices"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// IsRelayed tells whether an address goes through a relay.
func IsRelayed(addr ma.Multiaddr) bool {
	_, err := addr.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}

// offered are the addresses that the other peer is told: public ones, and those in the own network, where it may be as well.
func offered(direct []ma.Multiaddr) []ma.Multiaddr {
	fit := ma.FilterAddrs(direct, func(addr ma.Multiaddr) bool {
		return !IsRelayed(addr) && (manet.IsPublicAddr(addr) || manet.IsPrivateAddr(addr)) && !manet.IsIPLoopback(addr)
	})
	slices.SortStableFunc(fit, func(a, b ma.Multiaddr) int { // what does not fit a message is of the least use
		return rank(a) - rank(b)
	})
	return fit[:min(len(fit), maxAddrs)]
}

func rank(addr ma.Multiaddr) int {
	if manet.IsPublicAddr(addr) {
		return 0
	}
	return 1
}

// targets are those of the other peer's addresses to dial. Its own network is ours if both are seen at one public address; routers seldom pass
// packets back there from inside. A dial inside a network meets a listener, which is a server: it is for the client.
func targets(own, theirs []ma.Multiaddr, isClient bool) []ma.Multiaddr {
	inside := isClient && slices.ContainsFunc(theirs, func(addr ma.Multiaddr) bool {
		ip := publicIP(addr)
		return ip != nil && slices.ContainsFunc(own, func(ours ma.Multiaddr) bool { return ip.Equal(publicIP(ours)) })
	})
	return ma.FilterAddrs(theirs, func(addr ma.Multiaddr) bool {
		return manet.IsPublicAddr(addr) || inside && manet.IsPrivateAddr(addr)
	})
}

// hasOnlyPublic: a peer behind a router offers its address there too, if it is one of this library.
func hasOnlyPublic(theirs []ma.Multiaddr) bool {
	return !slices.ContainsFunc(theirs, func(addr ma.Multiaddr) bool { return !manet.IsPublicAddr(addr) })
}

func publicIP(addr ma.Multiaddr) net.IP {
	if !manet.IsPublicAddr(addr) {
		return nil
	}
	ip, err := manet.ToIP(addr)
	if err != nil {
		return nil
	}
	return ip
}
