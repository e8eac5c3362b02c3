package node

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"hivemind/p2pd/internal/config"
)

func TestPeersMeetThroughTheIPFSNetwork(t *testing.T) {
	world := start(t, nil) // stands for the public network
	join := func(cfg *config.Config) { cfg.IPFS, cfg.IPFSPeers = true, texts(world.Addrs()) }
	a := start(t, join)
	b := start(t, func(cfg *config.Config) {
		join(cfg)
		cfg.Bootstrap = []string{"/p2p/" + a.ID().String()}
	})
	if !b.Connected(a.ID()) {
		t.Error("the id alone does not lead to the peer")
	}
	world.Close()
	nobody := testConfig()
	nobody.IPFS, nobody.IPFSPeers = true, texts(world.Addrs())
	if _, err := New(within(t), &nobody, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrBootstrap) || !strings.Contains(err.Error(), "IPFS: failed to connect") {
		t.Error(err)
	}
	nobody.RequireBootstrap = false
	alone, err := New(within(t), &nobody, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	alone.Close()
}

func TestWellKnownPeersOfIPFS(t *testing.T) {
	cfg := testConfig()
	if peers, err := ipfsPeers(&cfg); err != nil || len(peers) != 0 {
		t.Error(peers, err)
	}
	cfg.IPFS = true
	peers, err := ipfsPeers(&cfg)
	if err != nil || len(peers) == 0 {
		t.Fatal(peers, err)
	}
	for _, one := range peers {
		if len(one.Addrs) == 0 || !strings.Contains(one.Addrs[0].String(), "libp2p.io") && !strings.Contains(one.Addrs[0].String(), "/ip4/") {
			t.Error(one)
		}
	}
}
