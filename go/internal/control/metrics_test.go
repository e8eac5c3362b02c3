package control

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// metrics asks for all pages of a table.
func (c *client) metrics(op, key string) map[string]map[string]any {
	c.t.Helper()
	found := make(map[string]map[string]any)
	for after, more := "", true; more; {
		page := c.must(map[string]any{"op": op, "after": after})
		entries, _ := page["entries"].([]any)
		for _, one := range entries {
			entry, _ := one.(map[string]any)
			after, _ = entry[key].(string)
			found[after] = entry
		}
		more, _ = page["more"].(bool)
	}
	return found
}

// flowOf is the part of an entry for one direction.
func flowOf(t *testing.T, entry map[string]any, direction string) map[string]any {
	t.Helper()
	flow, ok := entry[direction].(map[string]any)
	if !ok {
		t.Fatalf("no %q in %v", direction, entry)
	}
	return flow
}

// eventuallyFlow waits until an entry of a table has the wanted values.
func eventuallyFlow(t *testing.T, c *client, op, key, name, direction string, want map[string]float64, errs map[string]float64) {
	t.Helper()
	var flow map[string]any
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		flow = flowOf(t, c.metrics(op, key)[name], direction)
		same := true
		for field, value := range want {
			same = same && flow[field] == value
		}
		found, _ := flow["errors"].(map[string]any)
		same = same && len(found) == len(errs)
		for kind, value := range errs {
			same = same && found[kind] == value
		}
		if same {
			return
		}
	}
	t.Fatalf("%s %s %s: %v, want %v %v", op, name, direction, flow, want, errs)
}

func TestCallsAreCounted(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.rpc_a", ModeUnary)
	b.listen("T.stream", ModeMessages)
	to := b.node.ID()

	go func() {
		for _, answer := range []struct {
			message []byte
			flags   uint8
		}{{pattern(1000), 0}, {pattern(1000), flagError}, {nil, flagError}, {[]byte("HandlerBusy('full', 2.5)"), flagError}} {
			id, _, _ := b.acceptUnary()
			b.message(id, answer.message, answer.flags)
		}
	}()
	for range 4 {
		if _, _, fault := a.call(to, "T.rpc_a", pattern(100)); fault != nil {
			t.Fatal(fault)
		}
	}
	a.mustReset(a.open(to, "T.rpc_unknown", ModeUnary, patience, pattern(1)), CodeNotSupported)
	out := a.open(to, "T.stream", ModeMessages, patience, nil)
	a.message(out, pattern(5000), 0)
	in, _, _ := b.accept()
	b.mustReceive(in, pattern(5000))

	names := a.metrics("protocol_metrics", "name")
	if flow := flowOf(t, names["T.stream"], "out"); flow["in_flight"] != 1.0 || flow["calls"] != 1.0 {
		t.Errorf("under way: %v", flow)
	}
	a.send(header{kind: typeReset, stream: out}, nil)
	b.mustReset(in, CodeRemoteReset)

	calls := func(n float64) map[string]float64 { return map[string]float64{"calls": n, "in_flight": 0} }
	for _, c := range []struct {
		who       *daemon
		name      string
		direction string
		calls     float64
		errors    map[string]float64
	}{
		{a, "T.rpc_a", "out", 4, map[string]float64{"handler": 2, "busy": 1}},
		{b, "T.rpc_a", "in", 4, map[string]float64{"handler": 2, "busy": 1}},
		{a, "T.rpc_unknown", "out", 1, map[string]float64{"not_supported": 1}},
		{a, "T.stream", "out", 1, map[string]float64{"cancelled": 1}},
		{b, "T.stream", "in", 1, map[string]float64{"reset": 1}},
	} {
		eventuallyFlow(t, c.who.client, "protocol_metrics", "name", c.name, c.direction, calls(c.calls), c.errors)
	}
	eventuallyFlow(t, a.client, "peer_metrics", "id", to.String(), "out", calls(6),
		map[string]float64{"handler": 2, "busy": 1, "not_supported": 1, "cancelled": 1})

	sent, _ := flowOf(t, a.metrics("protocol_metrics", "name")["T.stream"], "out")["sent"].(float64)
	if sent < 5000 || sent > 5100 {
		t.Errorf("a message of 5000 bytes counts as %v", sent)
	}
	entry := a.metrics("peer_metrics", "id")[to.String()]
	if entry["connection"] != "direct" || entry["slowed"] != false {
		t.Error(entry)
	}
	if connects, _ := entry["connects"].(float64); connects < 1 {
		t.Error("connects", connects)
	}
	if b.node.Meter().UnknownProtocols() != 1 {
		t.Error("unknown protocols", b.node.Meter().UnknownProtocols())
	}
}

// TestPagesHoldAll: tables that are larger than a frame come in parts.
func TestPagesHoldAll(t *testing.T) {
	a := startDaemon(t, nil)
	stranger := peerAddr(startDaemon(t, nil)).ID
	for i := range 250 {
		a.node.Meter().Begin(0, stranger, fmt.Sprintf("%03d%s", i, strings.Repeat("n", 900))).End()
	}
	if names := a.metrics("protocol_metrics", "name"); len(names) != 251 {
		t.Errorf("%d names", len(names))
	}
}
