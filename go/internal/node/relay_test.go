package node

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/config"
)

// nowhere is an address at which nobody listens: peers that announce it are found there in vain, as behind a NAT.
const nowhere = "/ip4/127.0.0.1/tcp/1"

func startRelay(t *testing.T, change func(*config.Config)) *Node {
	t.Helper()
	return start(t, func(cfg *config.Config) {
		cfg.Relay, cfg.RelayService = true, true
		if change != nil {
			change(cfg)
		}
	})
}

// hidden is a peer that can be reached through relays only.
func hidden(through *Node, change func(*config.Config)) func(*config.Config) {
	return func(cfg *config.Config) {
		cfg.Relay, cfg.AutoRelay, cfg.ForceReachability = true, true, ReachPrivate
		cfg.Announce, cfg.Bootstrap = []string{nowhere}, texts(through.Addrs())
		if change != nil {
			change(cfg)
		}
	}
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: " + what)
		}
	}
}

func echo(s network.Stream) {
	_, _ = io.Copy(s, s)
	_ = s.Close()
}

// exchange sends size bytes to p's echo and reads them back.
func exchange(t *testing.T, from, to *Node, size int) error {
	t.Helper()
	s, err := from.Open(within(t), to.ID(), "T.echo")
	if err != nil {
		return err
	}
	defer func() { _ = s.Reset() }()
	go func() {
		_, _ = s.Write(make([]byte, size))
		_ = s.CloseWrite()
	}()
	back, err := io.Copy(io.Discard, s)
	if err == nil && back != int64(size) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func TestARelayThatIsReachedThroughAnotherOnlyIsNone(t *testing.T) {
	first := startRelay(t, nil)
	second := start(t, hidden(first, func(cfg *config.Config) { cfg.RelayService = true }))
	peer := start(t, hidden(first, nil))
	holds := func(relay *Node) bool { _, held := peer.relays.inUse()[relay.ID()]; return held }
	// by its id: through the first relay
	if err := peer.Connect(within(t), corepeer.AddrInfo{ID: second.ID()}); err != nil {
		t.Fatal(err)
	}
	if holds(second) || reaches(peer.host, second.ID()) {
		t.Fatal("a relay behind a relay was taken")
	}
	directly := network.WithForceDirectDial(within(t), "the test")
	at := corepeer.AddrInfo{ID: second.ID(), Addrs: second.ListenAddrs()}
	if err := peer.host.Connect(directly, at); err != nil {
		t.Fatal(err)
	}
	until(t, "the second relay is taken", func() bool { peer.relays.poke(); return holds(second) })
	for _, conn := range peer.host.Network().ConnsToPeer(second.ID()) {
		if !isRelayed(conn.RemoteMultiaddr()) {
			_ = conn.Close()
		}
	}
	if peer.host.Network().Connectedness(second.ID()) != network.Limited {
		t.Fatal("the relayed connection has ended too")
	}
	until(t, "it is lost", func() bool { return !holds(second) })
	if !holds(first) {
		t.Error("and so is the first")
	}
}

func TestHiddenPeersAreCalledByIDThroughARelay(t *testing.T) {
	relay := startRelay(t, nil)
	a, b := start(t, hidden(relay, nil)), start(t, hidden(relay, nil))
	state := a.Reachability()
	limit, held := state.Relays[relay.ID()]
	if !held || state.Verdict != ReachPrivate || !state.Forced {
		t.Fatalf("%+v", state)
	}
	if limit.Data != 16<<30 || limit.Duration != 30*time.Minute {
		t.Errorf("not made for training: %+v", limit)
	}
	if !slices.ContainsFunc(state.Addrs, func(one ReachAddr) bool { return one.State == "relayed" }) {
		t.Errorf("%+v", state.Addrs)
	}
	a.Handle("T.echo", echo)
	b.Handle("T.echo", echo)
	for _, pair := range [][2]*Node{{a, b}, {b, a}} {
		if err := exchange(t, pair[0], pair[1], 4<<20); err != nil {
			t.Error(err)
		}
	}
	for _, one := range a.Peers() {
		if one.Relayed != (one.ID == b.ID()) || one.Transport != "tcp" {
			t.Errorf("%+v", one)
		}
	}
}

func TestCircuitsEndAtTheirLimitAndAreMadeAnew(t *testing.T) {
	relay := startRelay(t, func(cfg *config.Config) { cfg.RelayCircuitBytes = 1 << 20 })
	a, b := start(t, hidden(relay, nil)), start(t, hidden(relay, nil))
	a.Handle("T.echo", echo)
	if err := exchange(t, b, a, 4<<20); err == nil {
		t.Fatal("the circuit carries more than its limit")
	}
	until(t, "a new circuit", func() bool { return exchange(t, b, a, 1<<10) == nil })
}

func TestRelaysHaveOnlySoManyReservations(t *testing.T) {
	relay := startRelay(t, func(cfg *config.Config) { cfg.RelayReservations = 1 })
	first := start(t, hidden(relay, nil))
	second := start(t, hidden(relay, func(cfg *config.Config) { cfg.ForceReachability = "" }))
	until(t, "a refusal", func() bool {
		second.relays.mu.Lock()
		defer second.relays.mu.Unlock()
		return !second.relays.refused[relay.ID()].IsZero()
	})
	if used := second.Reachability().Relays; len(used) != 0 || len(first.Reachability().Relays) != 1 {
		t.Error(used)
	}
	if slices.ContainsFunc(second.host.Addrs(), isRelayed) {
		t.Error(second.host.Addrs())
	}
}

func TestAnotherRelayTakesOver(t *testing.T) {
	one, two := startRelay(t, nil), startRelay(t, nil)
	spare := startRelay(t, func(cfg *config.Config) { cfg.Bootstrap = texts(two.Addrs()) })
	a := start(t, hidden(two, func(cfg *config.Config) {
		cfg.DHTMode = config.DHTOff
		cfg.TrustedRelays = append(texts(one.Addrs()), texts(two.Addrs())...)
	}))
	until(t, "both trusted relays", func() bool { return len(a.Reachability().Relays) == relaysWanted })
	if err := a.Connect(within(t), info(t, spare)); err != nil {
		t.Fatal(err)
	}
	if _, used := a.Reachability().Relays[spare.ID()]; used {
		t.Error("more relays than wanted")
	}
	one.Close()
	until(t, "the spare", func() bool {
		_, used := a.Reachability().Relays[spare.ID()]
		advertised := strings.Join(texts(a.Addrs()), " ")
		return used && strings.Contains(advertised, spare.ID().String()) && !strings.Contains(advertised, one.ID().String())
	})
}

func TestPublicPeersNeedNoRelay(t *testing.T) {
	relay := startRelay(t, nil)
	a := start(t, hidden(relay, func(cfg *config.Config) { cfg.ForceReachability, cfg.AutoNAT = "", true }))
	if verdict := a.Reachability().Verdict; verdict != ReachUnknown {
		t.Error(verdict)
	}
	until(t, "a relay while nothing is known", func() bool {
		return len(a.Reachability().Relays) == 1 && slices.ContainsFunc(a.host.Addrs(), isRelayed)
	})
	told := make(chan string, 64)
	stop := a.WatchReachability(func() { told <- a.Reachability().Verdict })
	defer stop()
	a.follow(event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPublic})
	until(t, "the verdict", func() bool {
		select {
		case verdict := <-told:
			return verdict == ReachPublic
		default:
			return false
		}
	})
	until(t, "no relay", func() bool {
		return len(a.Reachability().Relays) == 0 && !slices.ContainsFunc(a.host.Addrs(), isRelayed)
	})
}

func TestForcedVerdicts(t *testing.T) {
	relay := startRelay(t, func(cfg *config.Config) { cfg.ForceReachability = ReachPublic })
	if state := relay.Reachability(); state.Verdict != ReachPublic || !state.Forced {
		t.Errorf("%+v", state)
	}
	a := start(t, hidden(relay, func(cfg *config.Config) { cfg.ForceReachability = ReachPublic }))
	if a.relays != nil {
		t.Error("a public peer looks for relays")
	}
}

func TestPeersThatCannotFindOutAreRelayed(t *testing.T) {
	relay := startRelay(t, nil)
	a := start(t, hidden(relay, func(cfg *config.Config) { cfg.ForceReachability, cfg.AutoNAT = "", false }))
	until(t, "a relay", func() bool { return slices.ContainsFunc(a.host.Addrs(), isRelayed) })
	if state := a.Reachability(); state.Verdict != ReachPrivate || state.Forced {
		t.Errorf("%+v", state)
	}
}
