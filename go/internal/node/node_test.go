package node

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	basicconnmgr "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	ma "github.com/multiformats/go-multiaddr"

	"hivemind/p2pd/internal/config"
)

// patience bounds every wait of the tests.
const patience = 30 * time.Second

// hasty is well below the 5 s that a QUIC dial of a dead peer takes by itself, and well above what a refusal takes.
const hasty = 3 * time.Second

const (
	loopbackTCP  = "/ip4/127.0.0.1/tcp/0"
	loopbackQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

func testConfig() config.Config {
	cfg := config.Default()
	cfg.AutoNAT, cfg.Relay = false, false
	return cfg
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, change func(*config.Config)) *Node {
	t.Helper()
	cfg := testConfig()
	if change != nil {
		change(&cfg)
	}
	n, err := New(within(t), &cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func through(n *Node) func(*config.Config) {
	return func(cfg *config.Config) { cfg.Bootstrap = texts(n.Addrs()) }
}

func texts(addrs []ma.Multiaddr) []string {
	var out []string
	for _, addr := range addrs {
		out = append(out, addr.String())
	}
	return out
}

func info(t *testing.T, n *Node) peer.AddrInfo {
	t.Helper()
	infos, err := peer.AddrInfosFromP2pAddrs(n.Addrs()...)
	if err != nil || len(infos) != 1 {
		t.Fatal(infos, err)
	}
	return infos[0]
}

func TestPeersAreFoundByTheirID(t *testing.T) {
	first := start(t, nil)
	a, b := start(t, through(first)), start(t, through(first))
	b.Handle("T.rpc_x", func(s network.Stream) { _ = s.Close() })
	found, err := a.FindPeer(within(t), b.ID())
	if err != nil || len(found.Addrs) == 0 {
		t.Fatal(found, err)
	}
	// A third knows nothing of b but its id.
	c := start(t, through(first))
	s, err := c.Open(within(t), b.ID(), "T.rpc_x")
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Reset()
	if !c.Connected(b.ID()) {
		t.Error("not connected")
	}
}

func TestStrangersAreNotFound(t *testing.T) {
	first := start(t, nil)
	a, stranger := start(t, through(first)), start(t, nil)
	if _, err := a.FindPeer(within(t), stranger.ID()); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "routing: not found") {
		t.Error(err)
	}
	if _, err := a.Open(within(t), stranger.ID(), "T.x"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	alone := start(t, func(cfg *config.Config) { cfg.DHTMode = config.DHTOff })
	if _, err := alone.FindPeer(within(t), stranger.ID()); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestDeadPeersFailFastAndByName(t *testing.T) {
	both := func(cfg *config.Config) { cfg.Listen = []string{loopbackTCP, loopbackQUIC} }
	first, dead := start(t, nil), start(t, both)
	a := start(t, func(cfg *config.Config) { both(cfg); through(first)(cfg) })
	target := info(t, dead)
	dead.Close()
	for _, try := range []func() error{
		func() error { return a.Connect(within(t), target) },
		func() error { _, err := a.Open(within(t), target.ID, "T.x"); return err },
	} {
		begun := time.Now()
		err := try()
		if !errors.Is(err, ErrUnreachable) {
			t.Error(err)
		}
		if took := time.Since(begun); took > hasty {
			t.Errorf("took %s", took)
		}
		for _, addr := range target.Addrs {
			if err != nil && !strings.Contains(err.Error(), addr.String()) {
				t.Errorf("%s is not named in: %s", addr, err)
			}
		}
	}
	if err := a.Connect(within(t), target); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("no reason: %v", err)
	}
}

func TestSilentPeersFailAtTheDeadline(t *testing.T) {
	a, other := start(t, nil), start(t, nil)
	silent := ma.StringCast("/ip4/192.0.2.1/tcp/1") // a network for documentation: nobody answers, or nothing routes there
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	err := a.Connect(ctx, peer.AddrInfo{ID: other.ID(), Addrs: []ma.Multiaddr{silent}})
	if err == nil || !strings.Contains(err.Error(), silent.String()) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begun); took > hasty {
		t.Errorf("took %s", took)
	}
}

func TestSelfIsNoPeer(t *testing.T) {
	a := start(t, nil)
	if err := a.Connect(within(t), info(t, a)); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "dial to self attempted") {
		t.Error(err)
	}
}

func TestWrongIdentityIsUnreachable(t *testing.T) {
	a, b, c := start(t, nil), start(t, nil), start(t, nil)
	impostor := peer.AddrInfo{ID: c.ID(), Addrs: info(t, b).Addrs}
	if err := a.Connect(within(t), impostor); !errors.Is(err, ErrUnreachable) || strings.Contains(err.Error(), "swarm key") {
		t.Error(err)
	}
}

func TestPeersComeAndGo(t *testing.T) {
	off := func(cfg *config.Config) { cfg.DHTMode = config.DHTOff } // the routing would connect again
	a, b := start(t, off), start(t, off)
	if err := a.Connect(within(t), info(t, b)); err != nil {
		t.Fatal(err)
	}
	if peers := a.Peers(); len(peers) != 1 || peers[0].ID != b.ID() || !peers[0].Addrs[0].Equal(info(t, b).Addrs[0]) {
		t.Error(peers)
	}
	if err := a.Disconnect(b.ID()); err != nil || a.Connected(b.ID()) || len(a.Peers()) != 0 {
		t.Errorf("still connected: %v", err)
	}
}

func TestEverySecurityTransportServes(t *testing.T) {
	for name, change := range map[string]func(*config.Config){
		"tls only":   func(cfg *config.Config) { cfg.Noise = false },
		"noise only": func(cfg *config.Config) { cfg.TLS = false },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := start(t, change), start(t, nil)
			if err := a.Connect(within(t), info(t, b)); err != nil {
				t.Error(err)
			}
		})
	}
	a := start(t, func(cfg *config.Config) { cfg.Noise = false })
	b := start(t, func(cfg *config.Config) { cfg.TLS = false })
	if err := a.Connect(within(t), info(t, b)); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nothing in common: %v", err)
	}
}

func TestBootstrapFailures(t *testing.T) {
	dead := start(t, nil)
	addrs := texts(dead.Addrs())
	dead.Close()
	cfg := testConfig()
	cfg.Bootstrap = addrs
	begun := time.Now()
	_, err := New(within(t), &cfg, slog.New(slog.DiscardHandler))
	if !errors.Is(err, ErrBootstrap) || !strings.Contains(err.Error(), "failed to connect to bootstrap peers") ||
		!strings.Contains(err.Error(), strings.Split(addrs[0], "/p2p/")[0]) {
		t.Error(err)
	}
	if took := time.Since(begun); took > hasty {
		t.Errorf("took %s", took)
	}
}

func TestOneBootstrapPeerIsEnough(t *testing.T) {
	dead, live := start(t, nil), start(t, nil)
	addrs := append(texts(dead.Addrs()), texts(live.Addrs())...)
	dead.Close()
	n := start(t, func(cfg *config.Config) { cfg.Bootstrap = addrs })
	if !n.Connected(live.ID()) {
		t.Error("not connected")
	}
}

func TestLatecomersAreJoinedInTheBackground(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	first := start(t, func(cfg *config.Config) { cfg.IdentityPath = path })
	addrs := texts(first.Addrs())
	first.Close()
	n := start(t, func(cfg *config.Config) { cfg.Bootstrap, cfg.RequireBootstrap = addrs, false })
	again := start(t, func(cfg *config.Config) {
		cfg.IdentityPath = path
		cfg.Listen = []string{strings.Split(addrs[0], "/p2p/")[0]}
	})
	deadline := time.Now().Add(patience)
	for !n.Connected(again.ID()) {
		if time.Now().After(deadline) {
			t.Fatal("not joined")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestAddressesThatCannotBeHad(t *testing.T) {
	taken := start(t, nil)
	cfg := testConfig()
	cfg.Listen = []string{info(t, taken).Addrs[0].String()}
	if _, err := New(within(t), &cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrListen) {
		t.Error(err)
	}
}

func TestAnnouncedAddressesReplaceOwn(t *testing.T) {
	const announced = "/ip4/198.51.100.7/tcp/4000"
	n := start(t, func(cfg *config.Config) { cfg.Announce = []string{announced} })
	if got := texts(n.Addrs()); len(got) != 1 || got[0] != announced+"/p2p/"+n.ID().String() {
		t.Error(got)
	}
}

func TestPeersThatDoNotListenCanCall(t *testing.T) {
	b := start(t, nil)
	a := start(t, func(cfg *config.Config) { cfg.NoListen = true; through(b)(cfg) })
	if addrs := a.Addrs(); len(addrs) != 0 {
		t.Error(addrs)
	}
	a.Handle("T.x", func(s network.Stream) { _ = s.Close() })
	s, err := b.Open(within(t), a.ID(), "T.x") // back through a's connection
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Reset()
}

func TestDialsAreRanked(t *testing.T) {
	const (
		lan, lanQUIC       = "/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1/udp/1/quic-v1"
		public, publicQUIC = "/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/udp/1/quic-v1"
		way                = "/p2p/12D3KooWDkoDGH4nombUoQhXxEbkG7JYCxY3GexGA3XsQqPL4vqW/p2p-circuit"
		relay, relayQUIC   = "/ip4/1.2.3.5/tcp/1" + way, "/ip4/1.2.3.5/udp/1/quic-v1" + way
		known              = "12D3KooWB1b3qZxWJanuhtseF3DmPggHCtG36KZ9ixkqHtdKH9fh"
		near, nearQUIC     = "/ip4/1.2.3.6/tcp/1/p2p/" + known + "/p2p-circuit", "/ip4/1.2.3.6/udp/1/quic-v1/p2p/" + known + "/p2p-circuit"
	)
	for name, want := range map[string]map[string]time.Duration{
		"a public peer":         {lan: 0, lanQUIC: quicDelay, public: 0, publicQUIC: quicDelay},
		"a peer behind a NAT":   {lan: 0, lanQUIC: quicDelay, relay: relayDelay, relayQUIC: quicDelay + relayDelay},
		"not seen in any LAN":   {relay: 0, relayQUIC: quicDelay, public: hiddenDelay, publicQUIC: quicDelay + hiddenDelay},
		"all that a peer has":   {lan: 0, relay: relayDelay, public: hiddenDelay},
		"relays are all it has": {relay: 0},
		"one relay is near":     {near: 0, nearQUIC: quicDelay, relay: farDelay, relayQUIC: quicDelay + farDelay},
		"and it has a LAN":      {lan: 0, near: relayDelay, relay: relayDelay + farDelay, public: hiddenDelay},
	} {
		var addrs []ma.Multiaddr
		for text := range want {
			addrs = append(addrs, ma.StringCast(text))
		}
		for _, one := range rankDials(addrs, func(p peer.ID) bool { return p.String() == known }) {
			if one.Delay != want[one.Addr.String()] {
				t.Errorf("%s: %s waits %s, not %s", name, one.Addr, one.Delay, want[one.Addr.String()])
			}
		}
	}
}

func TestConnectionsAreTrimmedUnlessToldOtherwise(t *testing.T) {
	if _, trims := start(t, nil).host.ConnManager().(*basicconnmgr.BasicConnMgr); !trims {
		t.Error("nobody trims")
	}
	if _, trims := start(t, func(cfg *config.Config) { cfg.ConnManager = false }).host.ConnManager().(*basicconnmgr.BasicConnMgr); trims {
		t.Error("somebody trims")
	}
}
