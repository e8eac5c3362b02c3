package node

import (
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	basicconnmgr "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/portmap"
)

// UserAgent is what identify tells other peers.
const UserAgent = "p2pd/2.0"

// Yamux windows. The first window decides how fast one message on a fresh stream travels a long link: 2 MiB hold the usual
// message at 50 ms. The window may grow once only: streams were seen to stall for ever when it grew many times.
const (
	initialWindow = 2 << 20
	maxWindow     = 4 << 20
)

// keepAlive is between the multiplexer's questions whether the other side is still there; it has 10 s to answer. Each wakes both processes: the kernel
// watches the connection (boundSilence), so that it is only for peers that have stopped while their machine goes on.
const keepAlive = 30 * time.Second

// Connections are trimmed to lowWater when there are more than highWater, none younger than the grace period.
const (
	lowWater    = 256
	highWater   = 512
	trimmingAge = 2 * time.Minute
)

// newHost makes a libp2p host that listens and dials as configured.
func newHost(cfg *config.Config, key crypto.PrivKey, n *Node, watch *guardedManager) (host.Host, error) {
	if err := checkPorts(cfg); err != nil {
		return nil, err
	}
	limits, err := resourceManager(cfg)
	if err != nil {
		return nil, fmt.Errorf("resource limits: %w", err)
	}
	watch.ResourceManager = limits
	var manager connmgr.ConnManager = connmgr.NullConnMgr{}
	if cfg.ConnManager {
		if manager, err = basicconnmgr.NewConnManager(lowWater, highWater, basicconnmgr.WithGracePeriod(trimmingAge)); err != nil {
			return nil, fmt.Errorf("connection manager: %w", err)
		}
	}
	store, err := pstoremem.NewPeerstore(pstoremem.WithMaxProtocols(pushProtocols))
	if err != nil {
		return nil, fmt.Errorf("peerstore: %w", err)
	}
	var built atomic.Pointer[host.Host]
	rank := func(addrs []ma.Multiaddr) []network.AddrDelay {
		return rankDials(addrs, func(p peer.ID) bool { h := built.Load(); return h != nil && reaches(*h, p) })
	}
	options := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.Peerstore(store),
		libp2p.UserAgent(UserAgent),
		libp2p.ResourceManager(watch),
		libp2p.ConnectionGater(gater{watch.guard}),
		libp2p.ConnectionManager(manager),
		libp2p.BandwidthReporter(n.traffic),
		libp2p.SwarmOpts(swarm.WithDialRanker(rank)),
		libp2p.WithDialTimeout(cfg.DialTimeout.Duration()),
		libp2p.Muxer(yamux.ID, muxer()),
		libp2p.Transport(tcp.NewTCPTransport),
	}
	secret, err := cfg.PrivateNetwork()
	if err != nil {
		return nil, fmt.Errorf("swarm_key: %w", err)
	}
	if secret != nil {
		options = append(options, libp2p.PrivateNetwork(secret)) // QUIC has no place for the key
	} else {
		options = append(options, libp2p.Transport(newQUIC))
	}
	if n.metrics != nil {
		options = append(options, libp2p.PrometheusRegisterer(n.metrics))
	} else {
		options = append(options, libp2p.DisableMetrics())
	}
	options = append(options, securityOptions(cfg)...)
	options = append(options, addressOptions(cfg)...)
	options = append(options, traversalOptions(cfg)...)
	if cfg.NATPortMap && !cfg.NoListen {
		options = append(options, libp2p.NATManager(func(of network.Network) basichost.NATManager {
			n.ports = portmap.New(of.ListenAddresses, n.tellMapped, n.log)
			return n.ports
		}))
	}
	h, err := libp2p.New(options...)
	if err != nil {
		_ = store.Close() // it has no error to return
		return nil, fmt.Errorf("%w: %w", ErrListen, err)
	}
	built.Store(&h)
	return h, nil
}

// checkPorts refuses TCP ports that another process listens on. The library shares them (SO_REUSEPORT, for hole punching), so that two
// daemons of one user would take each other's connections.
func checkPorts(cfg *config.Config) error {
	if cfg.NoListen {
		return nil
	}
	for _, text := range cfg.Listen {
		addr := ma.StringCast(text) // Validate has parsed it
		if port, err := addr.ValueForProtocol(ma.P_TCP); err != nil || port == "0" {
			continue
		}
		network, host, err := manet.DialArgs(addr)
		if err != nil {
			continue // not plain TCP
		}
		probe, err := net.Listen(network, host)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrListen, text, err)
		}
		probe.Close()
	}
	return nil
}

func muxer() *yamux.Transport {
	settings := *yamux.DefaultTransport.Config()
	settings.InitialStreamWindowSize = initialWindow
	settings.MaxStreamWindowSize = maxWindow
	settings.KeepAliveInterval = keepAlive
	return (*yamux.Transport)(&settings)
}

func newQUIC(
	key crypto.PrivKey, manager *quicreuse.ConnManager, psk pnet.PSK, gater connmgr.ConnectionGater,
	limits network.ResourceManager,
) (transport.Transport, error) {
	boundQUICSilence(manager.ClientConfig())
	inner, err := quic.NewTransport(key, manager, psk, gater, limits)
	if err != nil {
		return nil, err
	}
	return quicTransport{inner}, nil
}

func securityOptions(cfg *config.Config) []libp2p.Option {
	var options []libp2p.Option
	if cfg.TLS {
		options = append(options, libp2p.Security(libp2ptls.ID, newTLS))
	}
	if cfg.Noise {
		options = append(options, libp2p.Security(noise.ID, noise.New))
	}
	return options
}

func addressOptions(cfg *config.Config) []libp2p.Option {
	var options []libp2p.Option
	if cfg.NoListen {
		options = append(options, libp2p.NoListenAddrs)
	} else {
		options = append(options, libp2p.ListenAddrStrings(cfg.Listen...))
	}
	if len(cfg.Announce) > 0 {
		announce := make([]ma.Multiaddr, 0, len(cfg.Announce))
		for _, text := range cfg.Announce {
			announce = append(announce, ma.StringCast(text)) // Validate has parsed it
		}
		options = append(options, libp2p.AddrsFactory(func(own []ma.Multiaddr) []ma.Multiaddr {
			addrs := slices.Clone(announce)
			for _, addr := range own {
				if isRelayed(addr) {
					addrs = append(addrs, addr)
				}
			}
			return addrs
		}))
	}
	return options
}

func traversalOptions(cfg *config.Config) []libp2p.Option {
	var options []libp2p.Option
	if cfg.Relay {
		options = append(options, libp2p.EnableRelay())
	} else {
		options = append(options, libp2p.DisableRelay())
	}
	switch {
	case cfg.ForceReachability == ReachPublic:
		options = append(options, libp2p.ForceReachabilityPublic())
	case cfg.ForceReachability == ReachPrivate, cfg.AutoRelay && !cfg.AutoNAT:
		// Without AutoNAT nothing ever finds out, and the library advertises relays of peers only that are private.
		options = append(options, libp2p.ForceReachabilityPrivate())
	}
	if cfg.AutoNAT {
		options = append(options, libp2p.EnableNATService(), libp2p.EnableAutoNATv2())
	}
	return options
}
