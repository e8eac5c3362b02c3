package control

import (
	"encoding/json"
	"testing"

	"hivemind/p2pd/internal/config"
)

func TestReachabilityIsToldAndAsked(t *testing.T) {
	relay := startDaemon(t, func(cfg *config.Config) { cfg.Relay, cfg.RelayService = true, true })
	d := startDaemon(t, func(cfg *config.Config) {
		cfg.Relay, cfg.AutoRelay, cfg.AutoNAT = true, true, true
	})
	if answer := d.must(map[string]any{"op": "reachability"}); answer["verdict"] != "unknown" || len(answer["relays"].([]any)) != 0 {
		t.Errorf("%v", answer)
	}
	var addrs []string
	for _, addr := range relay.node.Addrs() {
		addrs = append(addrs, addr.String())
	}
	d.must(map[string]any{"op": "connect", "peer": relay.node.ID().String(), "addrs": addrs})
	var told struct {
		Event, Verdict string
		Relays         []struct {
			ID      string
			Seconds float64
			Bytes   float64
		}
		Addrs []struct{ Addr, State string }
		Peers struct{ Direct, Relayed int }
	}
	for len(told.Relays) == 0 || len(told.Addrs) < 2 {
		ev := d.next(0)
		if ev.kind != typeEvent {
			t.Fatalf("frame type %d", ev.kind)
		}
		if err := json.Unmarshal(ev.payload, &told); err != nil {
			t.Fatal(err)
		}
	}
	if told.Event != "reachability" || told.Relays[0].ID != relay.node.ID().String() || told.Relays[0].Seconds != 1800 || told.Peers.Direct != 1 {
		t.Errorf("%+v", told)
	}
	states := map[string]int{}
	for _, one := range told.Addrs {
		states[one.State]++
	}
	if states["local"] != 1 || states["relayed"] != 1 {
		t.Errorf("%v", told.Addrs)
	}
	peers := d.must(map[string]any{"op": "peers"})["peers"].([]any)
	if one := peers[0].(map[string]any); one["relayed"] != false || one["transport"] != "tcp" || one["id"] != told.Relays[0].ID {
		t.Errorf("%v", one)
	}
}
