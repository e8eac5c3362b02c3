package config

func (c *Config) validatePeerLimits(fail func(field, format string, args ...any)) {
	for _, limit := range []struct {
		name               string
		value, least, most int64
	}{
		{"peer_calls", int64(c.PeerCalls), 1, 1 << 16},
		{"peer_streams", int64(c.PeerStreams), 16, 1 << 16},
		{"peer_bytes", c.PeerBytes, 1 << 20, 1 << 40},
		{"flood_limit", int64(c.FloodLimit), 0, 1 << 30},
	} {
		if limit.value < limit.least || limit.value > limit.most {
			fail(limit.name, "%d is not in %d..%d", limit.value, limit.least, limit.most)
		}
	}
	if !(c.FloodBan >= 1 && c.FloodBan <= 86400) {
		fail("flood_ban", "%v is not in 1..86400 seconds", float64(c.FloodBan))
	}
}
