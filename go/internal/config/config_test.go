package config

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestDefaultsAreValid(t *testing.T) {
	cfg, err := Read(strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.BootstrapTimeout.Duration() != 15*time.Second || !cfg.TLS || cfg.MaxUnary != 4<<20 || cfg.Listen[0] != "/ip4/127.0.0.1/tcp/0" {
		t.Errorf("%+v", cfg)
	}
	if level, err := cfg.Level(); level != slog.LevelWarn || err != nil {
		t.Error(level, err)
	}
}

func TestFieldsReplaceDefaults(t *testing.T) {
	cfg, err := Read(strings.NewReader(`{"listen": ["/ip4/0.0.0.0/udp/0/quic-v1"], "tls": false, "dial_timeout": 0.5, "log_level": "debug"}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Listen) != 1 || cfg.TLS || cfg.DialTimeout.Duration() != 500*time.Millisecond {
		t.Errorf("%+v", cfg)
	}
}

func TestEveryFaultIsNamed(t *testing.T) {
	_, err := Read(strings.NewReader(`{
		"parent_pid": -1, "owner_fd": 1, "control_path": "relative", "listen": ["nonsense"],
		"announce": ["/ip4/1.2.3.4/tcp/0"], "bootstrap": ["/ip4/1.2.3.4/tcp/1"], "dht_mode": "lan",
		"tls": false, "noise": false, "max_message": 0, "max_unary": 1, "bootstrap_timeout": 0, "dial_timeout": -1,
		"log_level": "LOUD", "relay": false, "auto_relay": true, "trusted_relays": ["/ip4/1.2.3.4/tcp/1"],
		"force_reachability": "perhaps", "relay_reservations": 0, "relay_circuits": 99999, "relay_buffer": -1,
		"relay_circuit_bytes": 0, "relay_circuit_time": 0, "relay_allow": ["nobody"], "ipfs_peers": ["/ip4/1.2.3.4/tcp/1"], "identity_seed": "0123"
	}`))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, field := range []string{
		"parent_pid", "owner_fd", "control_path", "listen", "announce", "bootstrap:", "dht_mode", "tls", "max_message", "max_unary",
		"bootstrap_timeout", "dial_timeout", "log_level", "relay:", "trusted_relays", "force_reachability", "relay_reservations",
		"relay_circuits", "relay_buffer", "relay_circuit_bytes", "relay_circuit_time", "relay_allow", "ipfs_peers", "identity_seed",
	} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not named in:\n%v", field, err)
		}
	}
}

func TestTextsThatAreNoConfiguration(t *testing.T) {
	for _, text := range []string{
		"", "[]", `{"unknown": 1}`, `{"owner_fd": "three"}`, "{} {}", "{", `{"listen": []}`,
		`{"own_folder": true}`, `{"identity_path": "/x", "identity_seed": "` + strings.Repeat("ab", SeedSize) + `"}`,
		`{"control_path": "/` + strings.Repeat("x", 200) + `"}`, `{"log_level": "` + strings.Repeat("x", maxConfigSize) + `"}`,
	} {
		if _, err := Read(strings.NewReader(text)); err == nil {
			t.Errorf("accepted %.40q", text)
		}
	}
}

func TestBootstrapPeersMerge(t *testing.T) {
	const id = "12D3KooWDkoDGH4nombUoQhXxEbkG7JYCxY3GexGA3XsQqPL4vqW"
	cfg, err := Read(strings.NewReader(`{"bootstrap": ["/ip4/127.0.0.1/tcp/1/p2p/` + id + `", "/ip4/127.0.0.1/udp/1/quic-v1/p2p/` + id + `"]}`))
	if err != nil {
		t.Fatal(err)
	}
	peers, err := cfg.BootstrapPeers()
	if err != nil || len(peers) != 1 || len(peers[0].Addrs) != 2 {
		t.Errorf("%v %v", peers, err)
	}
}

func TestRelayedPeers(t *testing.T) {
	const id = "12D3KooWDkoDGH4nombUoQhXxEbkG7JYCxY3GexGA3XsQqPL4vqW"
	for text, want := range map[string]int{"null": -1, "[]": 0, `["` + id + `"]`: 1} {
		cfg, err := Read(strings.NewReader(`{"relay_allow": ` + text + `}`))
		if err != nil {
			t.Fatal(err)
		}
		peers, err := cfg.RelayedPeers()
		if err != nil || (peers == nil) != (want < 0) || len(peers) != max(want, 0) {
			t.Errorf("%s: %v %v", text, peers, err)
		}
	}
}

func TestSwarmKeysAreNeverTold(t *testing.T) {
	secret := strings.Repeat("ab", 32)
	for _, text := range []string{
		"/key/swarm/psk/1.0.0/\\n/base16/\\n" + secret[1:], "/key/swarm/psk/1.0.0/\\n/base17/\\n" + secret, secret, "/key/swarm/psk/2.0.0/\\n/base16/\\n" + secret,
	} {
		_, err := Read(strings.NewReader(`{"swarm_key": "` + text + `"}`))
		if err == nil || !strings.Contains(err.Error(), "swarm_key") || strings.Contains(err.Error(), "abab") {
			t.Errorf("%s: %v", text, err)
		}
	}
	good := `{"swarm_key": "/key/swarm/psk/1.0.0/\n/base16/\n` + secret + `\n", "listen": ["/ip4/127.0.0.1/%s"]}`
	cfg, err := Read(strings.NewReader(strings.Replace(good, "%s", "tcp/0", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if key, err := cfg.PrivateNetwork(); err != nil || len(key) != 32 || key[0] != 0xab {
		t.Error(err)
	}
	if _, err := Read(strings.NewReader(strings.Replace(good, "%s", "udp/0/quic-v1", 1))); err == nil || !strings.Contains(err.Error(), "only TCP") {
		t.Error(err)
	}
}

func TestWhatExcludesIPFS(t *testing.T) {
	for _, text := range []string{`"dht_mode": "off"`, `"swarm_key": "/key/swarm/psk/1.0.0/\n/base16/\n` + strings.Repeat("ab", 32) + `"`} {
		if _, err := Read(strings.NewReader(`{"ipfs": true, ` + text + `}`)); err == nil || !strings.Contains(err.Error(), "ipfs: ") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
