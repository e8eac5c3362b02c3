package node

import (
	"net"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// dropStranded closes the connections from addresses that this machine no longer has: nothing comes through them, but it takes a keep-alive's
// time until that shows, and until then calls would be sent into them.
func (n *Node) dropStranded() {
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		n.log.Debug("addresses of this machine", "error", err)
		return
	}
	for _, conn := range n.host.Network().Conns() {
		if isStranded(conn.LocalMultiaddr(), interfaces) {
			n.log.Info("this machine has moved: a connection is closed", "peer", conn.RemotePeer(), "from", conn.LocalMultiaddr())
			// It waits for the streams, and this is called by the one who tells of changes.
			n.background.Go(func() { _ = conn.Close() })
		}
	}
}

// isStranded: a connection from this address of ours goes nowhere. One that does not begin at an address of a network, as
// a relayed one does, is for others to judge; unspecified ones (QUIC's) have no place that could be lost.
func isStranded(local ma.Multiaddr, interfaces []net.Addr) bool {
	if isRelayed(local) {
		return false
	}
	ip, err := manet.ToIP(local)
	if err != nil || ip.IsUnspecified() {
		return false
	}
	for _, each := range interfaces {
		if network, ok := each.(*net.IPNet); ok && network.IP.Equal(ip) {
			return false
		}
	}
	return true
}
