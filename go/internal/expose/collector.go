package expose

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"hivemind/p2pd/internal/control"
	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/node"
)

// collector reads the daemon's own counters when it is asked. Protocols are labels, peers are not: there are too many.
type collector struct {
	node   *node.Node
	server *control.Server
}

// Register adds the daemon's families, and those of the Go runtime and the process, to the registry.
func Register(registry *prometheus.Registry, n *node.Node, server *control.Server) error {
	for _, one := range []prometheus.Collector{
		&collector{n, server}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(one); err != nil {
			return err
		}
	}
	return nil
}

func family(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hivemind_p2p_"+name, help, labels, nil)
}

var (
	calls    = family("calls_total", "Calls and streams begun; direction: in by peers, out by this one.", "protocol", "direction")
	inFlight = family("calls_in_flight", "Calls and streams under way.", "protocol", "direction")
	failures = family("call_errors_total", "Failed calls by kind.", "protocol", "direction", "kind")
	bytes    = family("call_bytes_total", "Bytes of calls, envelopes included; way: received or sent.", "protocol", "direction", "way")
	seconds  = family("call_seconds", "Duration of finished calls and streams.", "protocol", "direction")

	traffic    = family("bytes_total", "Bytes of all streams, the library's own services included.", "way")
	connected  = family("peers", "Connected peers; connection: direct, punched (directly, by a hole punch), or relayed only.", "connection")
	connects   = family("connects_total", "Connections made.")
	verdict    = family("reachability", "1 for what is known of the ways to this peer.", "verdict")
	relays     = family("relays", "Relays that take calls for this peer.")
	unknown    = family("unknown_protocol_streams_total", "Streams of peers that named no protocol of this one.")
	refused    = family("refused_total", "What peers were refused, by reason.", "reason")
	slowed     = family("peers_slowed_total", "Times that a peer was slowed down as it flooded this one.")
	dropped    = family("peers_dropped_total", "Times that a peer was dropped as it flooded this one.")
	banned     = family("peers_banned", "Peers that are refused now.")
	clients    = family("clients", "Control connections: the owner and guests.")
	streams    = family("client_streams", "Streams of control connections.")
	starved    = family("client_streams_without_credit", "Streams whose client takes no more bytes for now.")
	queued     = family("client_queue_bytes", "Bytes that wait to be written to clients.")
	everything = []*prometheus.Desc{
		calls, inFlight, failures, bytes, seconds, traffic, connected, connects, verdict, relays, unknown, refused, slowed, dropped,
		banned, clients, streams, starved, queued,
	}
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, one := range everything {
		out <- one
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	count := func(desc *prometheus.Desc, value int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	gauge := func(desc *prometheus.Desc, value int, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	readings, rest := c.node.Meter().Protocols()
	readings[control.OtherProtocols] = rest
	for name, reading := range readings {
		collectFlow(out, name, "in", &reading.In)
		collectFlow(out, name, "out", &reading.Out)
	}
	in, sent := c.node.Traffic()
	count(traffic, in, "received")
	count(traffic, sent, "sent")
	c.collectPeers(gauge)
	count(connects, c.node.Meter().Connects())
	count(unknown, c.node.Meter().UnknownProtocols())

	counts := c.node.Guard().Counts()
	for reason, value := range counts.Refused {
		count(refused, value, reason)
	}
	count(slowed, counts.Slowed)
	count(dropped, counts.Dropped)
	gauge(banned, counts.Banned)

	load := c.server.Load()
	gauge(clients, load.Clients)
	gauge(streams, load.Streams)
	gauge(starved, load.Starved)
	gauge(queued, load.Queued)
}

func (c *collector) collectPeers(gauge func(desc *prometheus.Desc, value int, labels ...string)) {
	peers := map[string]int{control.Direct: 0, control.Punched: 0, control.Relayed: 0}
	for _, one := range c.node.Peers() {
		peers[control.ConnectionOf(&one)]++
	}
	for how, count := range peers {
		gauge(connected, count, how)
	}
	state := c.node.Reachability()
	gauge(verdict, 1, state.Verdict)
	gauge(relays, len(state.Relays))
}

func collectFlow(out chan<- prometheus.Metric, name, direction string, flow *meter.Flow) {
	if flow.Calls == 0 {
		return
	}
	count := func(desc *prometheus.Desc, value int64, more ...string) {
		labels := append([]string{name, direction}, more...)
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	count(calls, flow.Calls)
	count(bytes, flow.Received, "received")
	count(bytes, flow.Sent, "sent")
	for kind, value := range flow.Errors {
		count(failures, value, kind)
	}
	out <- prometheus.MustNewConstMetric(inFlight, prometheus.GaugeValue, float64(flow.InFlight), name, direction)
	buckets, below := make(map[float64]uint64, len(meter.LatencyBounds)), uint64(0)
	for i, bound := range meter.LatencyBounds {
		below += uint64(flow.Buckets[i])
		buckets[bound] = below
	}
	finished := below + uint64(flow.Buckets[len(meter.LatencyBounds)])
	out <- prometheus.MustNewConstHistogram(seconds, finished, flow.Seconds, buckets, name, direction)
}
