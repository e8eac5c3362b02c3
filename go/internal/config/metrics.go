package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
)

// unixPrefix begins a metrics_listen that is a socket's path.
const unixPrefix = "unix:"

// MetricsAddress is MetricsListen as net.Listen takes it.
func (c *Config) MetricsAddress() (network, address string) {
	if path, ok := strings.CutPrefix(c.MetricsListen, unixPrefix); ok {
		return "unix", path
	}
	return "tcp", c.MetricsListen
}

func (c *Config) validateMetrics(fail func(field, format string, args ...any)) {
	if c.MetricsListen == "" {
		if c.Pprof || c.MetricsPublic {
			fail("metrics_listen", "pprof and metrics_public need it")
		}
		return
	}
	network, address := c.MetricsAddress()
	if network == "unix" {
		if !filepath.IsAbs(address) || len(address) > maxSocketPath {
			fail("metrics_listen", "%q is not an absolute path of at most %d bytes", address, maxSocketPath)
		}
		return
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		fail("metrics_listen", "%q: %v", address, err)
		return
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		fail("metrics_listen", "%q: %v", address, err)
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		fail("metrics_listen", "%q is not an IP address", host)
	case !ip.IsLoopback() && !c.MetricsPublic:
		fail("metrics_listen", "%s can be reached by others; metrics_public allows that", host)
	}
}
