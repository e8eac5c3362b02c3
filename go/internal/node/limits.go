package node

import (
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/x/rate"

	"hivemind/p2pd/internal/config"
)

// Connections from one address. The library's 8 a /32 refuses 16 of 24 volunteers behind one router; a laboratory or a
// carrier's NAT has many more. Loopback is exempt in the library.
const (
	connsPerIPv4   = 256
	connsPerIPv6   = 256  // per /56, a household
	connsPerIPv6L  = 1024 // per /48, a site
	connRatePerIP  = 10   // new connections a second and address
	connBurstPerIP = 256
)

// Streams. A call is a stream, so these bound calls under way; the library's 75 a protocol and peer are too few for a peer
// that sends its parts to everybody at once. What one peer may open is the configuration's.
const (
	streamsToPeer   = 4096
	streamsPerProto = 16384
	streamsTotal    = 32768
	connsTotal      = 4096
	connsPerPeer    = 16
	// memoryPerPeer is what the windows of one peer's streams may reserve; yamux counts 256 KiB a stream at least.
	memoryPerPeer = 1 << 30
	// memoryTotal is reserved memory, most of which is never used.
	memoryTotal = 8 << 30
)

// resourceManager is the library's with its scaled defaults, raised where a swarm of one-stream calls needs it.
func resourceManager(cfg *config.Config) (network.ResourceManager, error) {
	fromPeer := rcmgr.LimitVal(cfg.PeerStreams)
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	ours := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Streams: streamsTotal, StreamsInbound: streamsTotal, StreamsOutbound: streamsTotal,
			Conns: connsTotal, ConnsInbound: connsTotal, ConnsOutbound: connsTotal, Memory: memoryTotal,
		},
		Transient: rcmgr.ResourceLimits{
			Streams: 4096, StreamsInbound: 4096, StreamsOutbound: 4096,
			Conns: 1024, ConnsInbound: 1024, ConnsOutbound: 1024, Memory: memoryPerPeer,
		},
		ProtocolDefault: rcmgr.ResourceLimits{
			Streams: streamsPerProto, StreamsInbound: streamsPerProto, StreamsOutbound: streamsPerProto, Memory: memoryTotal,
		},
		ProtocolPeerDefault: rcmgr.ResourceLimits{
			Streams: streamsToPeer + fromPeer, StreamsInbound: fromPeer, StreamsOutbound: streamsToPeer, Memory: memoryPerPeer,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Streams: streamsToPeer + fromPeer, StreamsInbound: fromPeer, StreamsOutbound: streamsToPeer,
			Conns: connsPerPeer, ConnsInbound: connsPerPeer, ConnsOutbound: connsPerPeer, Memory: memoryPerPeer,
		},
	}
	if cfg.RelayService {
		allowRelaying(&ours, cfg)
	}
	limiter := rcmgr.NewFixedLimiter(ours.Build(scaling.AutoScale()))
	options := []rcmgr.Option{
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIPv4}},
			[]rcmgr.ConnLimitPerSubnet{
				{PrefixLength: 56, ConnCount: connsPerIPv6},
				{PrefixLength: 48, ConnCount: connsPerIPv6L},
			},
		),
		rcmgr.WithConnRateLimiters(connRateLimiter()),
	}
	if cfg.MetricsListen == "" {
		options = append(options, rcmgr.WithMetricsDisabled())
	}
	return rcmgr.NewResourceManager(limiter, options...)
}

// allowRelaying raises the library's limits of the relay service, made for its circuits of 128 KiB.
func allowRelaying(limits *rcmgr.PartialLimitConfig, cfg *config.Config) {
	onePeer := rcmgr.ResourceLimits{
		Streams: rcmgr.LimitVal(4 * cfg.RelayCircuits), StreamsInbound: rcmgr.LimitVal(2 * cfg.RelayCircuits),
		StreamsOutbound: rcmgr.LimitVal(2 * cfg.RelayCircuits), Memory: memoryPerPeer,
	}
	all := rcmgr.ResourceLimits{
		Streams: streamsPerProto, StreamsInbound: streamsPerProto, StreamsOutbound: streamsPerProto, Memory: memoryTotal,
	}
	limits.Service = map[string]rcmgr.ResourceLimits{relay.ServiceName: all}
	limits.ServicePeer = map[string]rcmgr.ResourceLimits{relay.ServiceName: onePeer}
	limits.Protocol = map[protocol.ID]rcmgr.ResourceLimits{circuit.ProtoIDv2Hop: all, circuit.ProtoIDv2Stop: all}
	limits.ProtocolPeer = map[protocol.ID]rcmgr.ResourceLimits{circuit.ProtoIDv2Hop: onePeer, circuit.ProtoIDv2Stop: onePeer}
}

func connRateLimiter() *rate.Limiter { return rateLimiter(connRatePerIP, connBurstPerIP) }

// rateLimiter admits so many a second, and so many at once, from one address or household; all from this machine.
func rateLimiter(perSecond float64, burst int) *rate.Limiter {
	limit := rate.Limit{RPS: perSecond, Burst: burst}
	return &rate.Limiter{
		NetworkPrefixLimits: []rate.PrefixLimit{
			{Prefix: netip.MustParsePrefix("127.0.0.0/8")},
			{Prefix: netip.MustParsePrefix("::1/128")},
		},
		SubnetRateLimiter: rate.SubnetLimiter{
			IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: limit}},
			IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: limit}},
			GracePeriod:      time.Minute,
		},
	}
}
