package node

import (
	"time"

	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
)

// tracers are two that both count what a relay does; the library takes one.
type tracers struct{ first, second relay.MetricsTracer }

func (t tracers) each(report func(relay.MetricsTracer)) {
	report(t.first)
	report(t.second)
}

func (t tracers) RelayStatus(on bool) { t.each(func(one relay.MetricsTracer) { one.RelayStatus(on) }) }
func (t tracers) ConnectionOpened()   { t.each(relay.MetricsTracer.ConnectionOpened) }
func (t tracers) ConnectionClosed(after time.Duration) {
	t.each(func(one relay.MetricsTracer) { one.ConnectionClosed(after) })
}
func (t tracers) ConnectionRequestHandled(status pb.Status) {
	t.each(func(one relay.MetricsTracer) { one.ConnectionRequestHandled(status) })
}
func (t tracers) ReservationAllowed(renewed bool) {
	t.each(func(one relay.MetricsTracer) { one.ReservationAllowed(renewed) })
}
func (t tracers) ReservationClosed(count int) {
	t.each(func(one relay.MetricsTracer) { one.ReservationClosed(count) })
}
func (t tracers) ReservationRequestHandled(status pb.Status) {
	t.each(func(one relay.MetricsTracer) { one.ReservationRequestHandled(status) })
}
func (t tracers) BytesTransferred(count int) {
	t.each(func(one relay.MetricsTracer) { one.BytesTransferred(count) })
}
