package node

import (
	"strings"
	"testing"

	"hivemind/p2pd/internal/config"
)

func keyed(secret string) func(*config.Config) {
	return func(cfg *config.Config) {
		cfg.SwarmKey = "/key/swarm/psk/1.0.0/\n/base16/\n" + strings.Repeat(secret, 32) + "\n"
	}
}

func TestPeersOfAPrivateSwarmConnectAndNobodyElse(t *testing.T) {
	a := start(t, keyed("ab"))
	a.Handle("T.echo", echo)
	b := start(t, func(cfg *config.Config) { keyed("ab")(cfg); through(a)(cfg) })
	if err := exchange(t, b, a, 1<<20); err != nil {
		t.Error(err)
	}
	quick := func(cfg *config.Config) { cfg.DialTimeout = 2 }
	other := start(t, func(cfg *config.Config) { keyed("cd")(cfg); quick(cfg) })
	open := start(t, quick)
	for _, test := range []struct {
		name     string
		from, to *Node
		words    string
	}{
		{"another key", other, a, "this peer has a swarm key"},
		{"a key to none", other, open, "this peer has a swarm key"},
		{"no key", open, a, "may be in a private swarm"},
	} {
		err := test.from.Connect(within(t), info(t, test.to))
		if err == nil || !strings.Contains(err.Error(), test.words) || strings.Contains(err.Error(), "abab") {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	dead := start(t, keyed("ab"))
	target := info(t, dead)
	dead.Close()
	if err := b.Connect(within(t), target); err == nil || strings.Contains(err.Error(), "swarm key") {
		t.Errorf("the key has nothing to do with it: %v", err)
	}
}

func TestRelaysOfAPrivateSwarm(t *testing.T) {
	relay := startRelay(t, keyed("ab"))
	inside := start(t, hidden(relay, keyed("ab")))
	inside.Handle("T.echo", echo)
	caller := start(t, func(cfg *config.Config) { keyed("ab")(cfg); through(relay)(cfg); cfg.Relay = true })
	if err := exchange(t, caller, inside, 1<<20); err != nil {
		t.Error(err)
	}
}
