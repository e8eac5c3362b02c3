package node

import (
	"net"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	"github.com/libp2p/go-msgio/pbio"
	ma "github.com/multiformats/go-multiaddr"

	"hivemind/p2pd/internal/config"
)

// push sends messages as a changed identity of from, and waits until to has read them all.
func push(t *testing.T, from, to *Node, messages ...*pb.Identify) error {
	t.Helper()
	until(t, "what the peer tells first is taken", func() bool { // it would take the place of what is pushed
		names, err := to.host.Peerstore().GetProtocols(from.ID())
		return err == nil && len(names) > 0
	})
	s, err := from.host.NewStream(within(t), to.ID(), identify.IDPush)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Reset() }()
	writer := pbio.NewDelimitedWriter(s)
	for _, message := range messages {
		if err := writer.WriteMsg(message); err != nil {
			return err
		}
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	_, err = s.Read(make([]byte, 1)) // EOF, or the reset
	if err != nil && err.Error() == "EOF" {
		return nil
	}
	return err
}

// pushUntil pushes again until it holds: what a peer tells of itself as it starts may come in between.
func pushUntil(t *testing.T, from, to *Node, what string, holds func() bool, messages ...*pb.Identify) {
	t.Helper()
	until(t, what, func() bool { return push(t, from, to, messages...) == nil && holds() })
}

func sealed(t *testing.T, key crypto.PrivKey, of peer.ID, addrs ...string) []byte {
	t.Helper()
	content := peer.PeerRecord{PeerID: of, Seq: 1 << 62}
	for _, text := range addrs {
		content.Addrs = append(content.Addrs, ma.StringCast(text))
	}
	envelope, err := record.Seal(&content, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := envelope.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestPushesTellNewAddressesAndHandlers(t *testing.T) {
	listener := start(t, nil)
	teller := start(t, through(listener))
	teller.Handle("T.late", func(s network.Stream) { _ = s.Close() })
	until(t, "the new handler is known", func() bool {
		known, err := listener.host.Peerstore().SupportsProtocols(teller.ID(), "T.late")
		return err == nil && len(known) == 1
	})
	moved := ma.StringCast("/ip4/127.0.0.1/tcp/7")
	own := teller.host.Peerstore().PrivKey(teller.ID())
	taken := func() bool {
		names, err := listener.host.Peerstore().GetProtocols(teller.ID())
		addrs := listener.host.Peerstore().Addrs(teller.ID())
		return err == nil && slices.Equal(names, []protocol.ID{"T.other"}) && len(addrs) == 1 && addrs[0].Equal(moved)
	}
	pushUntil(t, teller, listener, "the last push is taken", taken,
		&pb.Identify{SignedPeerRecord: sealed(t, own, teller.ID(), moved.String())},
		&pb.Identify{Protocols: []string{"T.other"}})
}

func TestAddressesSignedByOthersAreNotTaken(t *testing.T) {
	listener := start(t, nil)
	teller := start(t, through(listener))
	other := start(t, nil)
	forged := "/ip4/127.0.0.1/tcp/9"
	for name, record := range map[string][]byte{
		"another's key":      sealed(t, other.host.Peerstore().PrivKey(other.ID()), teller.ID(), forged),
		"another's identity": sealed(t, teller.host.Peerstore().PrivKey(teller.ID()), other.ID(), forged),
		"garbage":            []byte("garbage"),
	} {
		if addrs, err := signedAddrs(teller.ID(), record); err == nil {
			t.Errorf("%s: %v", name, addrs)
		}
	}
	taken := func() bool {
		names, err := listener.host.Peerstore().GetProtocols(teller.ID())
		return err == nil && slices.Equal(names, []protocol.ID{"T.taken"})
	}
	pushUntil(t, teller, listener, "the push is taken", taken, &pb.Identify{
		SignedPeerRecord: sealed(t, other.host.Peerstore().PrivKey(other.ID()), other.ID(), forged), Protocols: []string{"T.taken"},
	})
	if addrs := listener.host.Peerstore().Addrs(other.ID()); len(addrs) > 0 {
		t.Errorf("a push speaks for another peer: %v", addrs)
	}
}

func TestHostilePushesAreRefused(t *testing.T) {
	listener := start(t, nil)
	teller := start(t, through(listener))
	big := &pb.Identify{Protocols: []string{string(make([]byte, pushBytes))}}
	endless := slices.Repeat([]*pb.Identify{{}}, pushParts+1)
	if err := push(t, teller, listener, big); err == nil {
		t.Error("a part over the bound was taken")
	}
	if err := push(t, teller, listener, endless...); err == nil {
		t.Error("parts without end were taken")
	}
	part := &pb.Identify{Protocols: slices.Repeat([]string{"T.x"}, pushProtocols/2)}
	if err := push(t, teller, listener, part, part, part); err != nil {
		t.Fatal(err)
	}
	until(t, "as many as are taken", func() bool {
		names, err := listener.host.Peerstore().GetProtocols(teller.ID())
		return err == nil && slices.Contains(names, "T.x")
	})
	if !listener.Connected(teller.ID()) {
		t.Error("the connection has ended")
	}
}

func TestAddressesOfOtherNetworksAreLeftOut(t *testing.T) {
	var told []ma.Multiaddr
	for _, text := range []string{"/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/192.0.0.129/tcp/1"} {
		told = append(told, ma.StringCast(text))
	}
	for remote, most := range map[string]int{"/ip4/127.0.0.1/tcp/2": 3, "/ip4/10.0.0.2/tcp/2": 2, "/ip4/192.0.0.130/tcp/2": 1} {
		got := usableFrom(ma.StringCast(remote), told)
		if !slices.EqualFunc(got, told[3-most:], ma.Multiaddr.Equal) {
			t.Errorf("from %s: %v", remote, got)
		}
	}
}

func TestRelaysAreFoundByTheRouting(t *testing.T) {
	first := start(t, nil)
	relay := startRelay(t, through(first))
	// One of many that the newcomer is not told of: no connection of its own leads there.
	newcomer := start(t, hidden(first, func(cfg *config.Config) { cfg.DHTMode = config.DHTClient }))
	until(t, "the relay takes the newcomer", func() bool {
		_, held := newcomer.Reachability().Relays[relay.ID()]
		return held
	})
}

func TestConnectionsFromLostAddressesAreStranded(t *testing.T) {
	have := []net.Addr{&net.IPNet{IP: net.ParseIP("10.1.0.2"), Mask: net.CIDRMask(24, 32)}}
	for text, want := range map[string]bool{
		"/ip4/10.1.0.2/tcp/1": false, "/ip4/10.1.0.3/tcp/1": true, "/ip4/0.0.0.0/udp/1/quic-v1": false, "/p2p-circuit": false,
	} {
		if got := isStranded(ma.StringCast(text), have); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestAPeerThatIsAloneJoinsThroughAcquaintances(t *testing.T) {
	first := start(t, nil)
	second := start(t, through(first))
	third := start(t, through(first))
	until(t, "all know each other", func() bool {
		return second.Connect(within(t), info(t, third)) == nil
	})
	first.Close()
	if err := second.Disconnect(third.ID()); err != nil {
		t.Fatal(err)
	}
	until(t, "they meet again without the first", func() bool { return second.Connected(third.ID()) })
}
