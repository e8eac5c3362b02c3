package config

import (
	"strings"
	"testing"
)

func TestWhereMetricsMayBeServed(t *testing.T) {
	for listen, allowed := range map[string]bool{
		"127.0.0.1:0": true, "[::1]:9100": true, "unix:/run/p2pd.sock": true, "": true,
		"0.0.0.0:9100": false, "192.0.2.1:9100": false, "localhost:9100": false, "127.0.0.1": false, "127.0.0.1:99999": false,
		"unix:relative": false, "unix:/" + strings.Repeat("x", 200): false,
	} {
		cfg := Default()
		cfg.MetricsListen = listen
		if err := cfg.Validate(); (err == nil) != allowed || err != nil && !strings.Contains(err.Error(), "metrics_listen") {
			t.Errorf("%q: %v", listen, err)
		}
	}
	cfg := Default()
	cfg.MetricsListen, cfg.MetricsPublic = "0.0.0.0:9100", true
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg = Default()
	cfg.Pprof = true
	if cfg.Validate() == nil {
		t.Error("profiles are served nowhere")
	}
}

func TestLimitsOfPeers(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"peer_calls":   func(c *Config) { c.PeerCalls = 0 },
		"peer_streams": func(c *Config) { c.PeerStreams = 15 },
		"peer_bytes":   func(c *Config) { c.PeerBytes = 1000 },
		"flood_limit":  func(c *Config) { c.FloodLimit = -1 },
		"flood_ban":    func(c *Config) { c.FloodBan = 0 },
	} {
		cfg := Default()
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
