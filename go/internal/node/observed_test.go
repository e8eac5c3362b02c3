package node

import (
	"net/netip"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"

	"hivemind/p2pd/internal/config"
)

// seen is what an observer on the internet says of a connection that was made to it from a local port.
func seen(observer, at, from string) sighting {
	return sighting{
		observer: netip.MustParseAddr(observer), seen: netip.MustParseAddrPort(at), local: netip.MustParseAddrPort(from),
		outgoing: true, far: true,
	}
}

func TestNATTypes(t *testing.T) {
	const home, port = "192.168.0.7:4001", ":4001"
	own := []netip.Addr{netip.MustParseAddr("192.168.0.7"), netip.MustParseAddr("8.8.4.4"), netip.MustParseAddr("2001:4860::7")}
	near := seen("192.168.0.9", home, home)
	near.far = false
	called := seen("9.9.9.9", "8.8.8.8:7", home)
	called.outgoing = false
	for _, test := range []struct {
		name string
		seen []sighting
		want string
	}{
		{"nobody", nil, NATUnknown},
		{"one observer", []sighting{seen("1.1.1.1", "8.8.8.8:5", home)}, NATUnknown},
		{"one observer twice", []sighting{seen("1.1.1.1", "8.8.8.8:5", home), seen("1.1.1.1", "8.8.8.8:5", home)}, NATUnknown},
		{"two that see one address", []sighting{seen("1.1.1.1", "8.8.8.8:5", home), seen("9.9.9.9", "8.8.8.8:5", home)}, NATCone},
		{"two that see two ports", []sighting{seen("1.1.1.1", "8.8.8.8:5", home), seen("9.9.9.9", "8.8.8.8:6", home)}, NATSymmetric},
		{"one that sees two ports", []sighting{seen("1.1.1.1", "8.8.8.8:5", home), seen("1.1.1.1", "8.8.8.8:6", home)}, NATSymmetric},
		{"one liar", []sighting{
			seen("1.1.1.1", "8.8.8.8:5", home), seen("9.9.9.9", "8.8.8.8:5", home), seen("6.6.6.6", "8.8.8.8:666", home),
		}, NATCone},
		{"other local ports", []sighting{seen("1.1.1.1", "8.8.8.8:5", "192.168.0.7:50001"), seen("9.9.9.9", "8.8.8.8:6", "192.168.0.7:50002")}, NATUnknown},
		{"the machine's own address", []sighting{seen("1.1.1.1", "8.8.4.4"+port, "0.0.0.0"+port)}, NATNone},
		{"a peer of the same network", []sighting{near, near}, NATUnknown},
		{"a peer that has dialled", []sighting{called, seen("1.1.1.1", "8.8.8.8:5", home)}, NATUnknown},
		{"IPv6 alone", []sighting{seen("2001:4860::1", "[2001:4860::7]"+port, "[2001:4860::7]"+port)}, NATNone},
		{"IPv4 first", []sighting{
			seen("2001:4860::1", "[2001:4860::7]"+port, "[2001:4860::7]"+port),
			seen("1.1.1.1", "8.8.8.8:5", home), seen("9.9.9.9", "8.8.8.8:6", home),
		}, NATSymmetric},
	} {
		if got := natType(test.seen, own); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

func TestObservedAddressesAreBoundedAndCounted(t *testing.T) {
	all := []sighting{seen("1.1.1.1", "8.8.8.8:5", "10.0.0.1:1"), seen("9.9.9.9", "8.8.8.8:5", "10.0.0.1:1"), seen("9.9.9.9", "[2001:4860::7]:6", "[::1]:1")}
	udp := seen("1.1.1.1", "8.8.8.8:5", "10.0.0.1:1")
	udp.udp = true
	for port := range uint16(2 * observedMost) {
		liar := udp
		liar.seen = netip.AddrPortFrom(udp.seen.Addr(), 1000+port)
		all = append(all, liar)
	}
	found := observedAddrs(all)
	if len(found) != observedMost || found[0].Addr.String() != "/ip4/8.8.8.8/tcp/5" || found[0].Peers != 2 {
		t.Errorf("%v", found)
	}
	if found := observedAddrs(all[2:4]); len(found) != 2 || found[0].Addr.String() != "/ip4/8.8.8.8/udp/1000" || found[1].Addr.String() != "/ip6/2001:4860::7/tcp/6" {
		t.Errorf("%v", found)
	}
}

func TestScopes(t *testing.T) {
	for text, want := range map[string]string{
		"/ip4/127.0.0.1/tcp/1": ScopeMachine, "/ip6/::1/tcp/1": ScopeMachine, "/unix/a": ScopeMachine, "/ip4/192.168.0.1/tcp/1": ScopeNetwork,
		"/ip6/fe80::1/tcp/1": ScopeNetwork, "/ip4/8.8.8.8/udp/1/quic-v1": ScopeInternet, "/dns4/example.org/tcp/1": ScopeInternet,
	} {
		if got := scopeOf(ma.StringCast(text)); got != want {
			t.Errorf("%s: %s", text, got)
		}
	}
	for _, test := range [][3]string{
		{"", ScopeMachine, ScopeMachine}, {ScopeInternet, ScopeNetwork, ScopeInternet}, {ScopeMachine, ScopeNetwork, ScopeNetwork},
	} {
		if got := wider(test[0], test[1]); got != test[2] {
			t.Errorf("%v: %s", test, got)
		}
	}
}

func TestPeersSayWhereTheySeeThisOne(t *testing.T) {
	for _, listen := range []string{loopbackTCP, loopbackQUIC} {
		both := func(cfg *config.Config) { cfg.Listen = []string{listen} }
		a := start(t, both)
		if state := a.Reachability(); state.Widest != "" || len(state.Observed) != 0 || state.NATOfTCP != NATUnknown {
			t.Errorf("%+v", state)
		}
		changed := make(chan struct{}, 8)
		stop := a.WatchReachability(func() { changed <- struct{}{} })
		b := start(t, both)
		if err := a.Connect(within(t), info(t, b)); err != nil {
			t.Fatal(err)
		}
		<-changed
		stop()
		state := a.Reachability()
		if state.Widest != ScopeMachine || state.NATOfTCP != NATUnknown || state.NATOfUDP != NATUnknown {
			t.Errorf("%+v", state)
		}
		if len(state.Observed) != 1 || state.Observed[0].Peers != 1 || !a.host.Addrs()[0][:2].Equal(state.Observed[0].Addr) {
			t.Errorf("%v is seen at %v", a.host.Addrs(), state.Observed)
		}
		_ = a.Disconnect(b.ID())
		until(t, "disconnected", func() bool { return a.host.Network().Connectedness(b.ID()) == network.NotConnected })
		if state := a.Reachability(); len(state.Observed) != 0 || state.Widest != ScopeMachine {
			t.Errorf("%+v", state)
		}
	}
}
