package portmap

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// fakeRouter forwards what it is asked to, unless it is broken.
type fakeRouter struct {
	mu     sync.Mutex
	broken bool            // mu
	asked  int             // mu: calls of Map
	holds  map[Port]uint16 // mu
	lease  time.Duration
	mapped func() // called by Map before it answers; nil is nothing
	shift  uint16 // between the port that is asked for and the one that is given, to who does not hold it
}

func (r *fakeRouter) Name() string { return "fake" }

func (r *fakeRouter) External(context.Context) (netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken {
		return netip.Addr{}, errors.New("broken")
	}
	return netip.MustParseAddr("192.0.0.200"), nil
}

func (r *fakeRouter) Map(_ context.Context, port Port, wanted uint16, held bool) (uint16, time.Duration, error) {
	if r.mapped != nil {
		defer r.mapped()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if !held {
		wanted += r.shift
	}
	r.holds[port] = wanted
	return wanted, r.lease, nil
}

func (r *fakeRouter) Unmap(_ context.Context, port Port, external uint16) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds[port] == external {
		delete(r.holds, port)
	}
	return nil
}

func (r *fakeRouter) look() (asked int, holds map[Port]uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked, maps.Clone(r.holds)
}

var quickPace = pace{
	find: 5 * time.Second, findAgain: time.Millisecond, findSeldom: 4 * time.Millisecond, request: 5 * time.Second,
	renew: 2 * time.Millisecond, answer: 5 * time.Second, end: 5 * time.Second,
}

func listening() []ma.Multiaddr {
	var addrs []ma.Multiaddr
	for _, text := range []string{
		"/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/127.0.0.1/tcp/4002", "/ip6/::/tcp/4003", "/p2p-circuit",
	} {
		addrs = append(addrs, ma.StringCast(text))
	}
	return addrs
}

func start(t *testing.T, find func(context.Context) (Router, error)) *Manager {
	t.Helper()
	m := newManager(listening, func() {}, slog.New(slog.DiscardHandler), find, quickPace)
	t.Cleanup(func() { _ = m.Close() })
	m.Start()
	return m
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

// TestMappingsAreKeptAndRemoved: those that the outside can use, at the ports that the router has given, again and again until the end.
func TestMappingsAreKeptAndRemoved(t *testing.T) {
	router := &fakeRouter{holds: make(map[Port]uint16), shift: 10}
	m := start(t, func(context.Context) (Router, error) { return router, nil })
	eventually(t, "it is renewed", func() bool { asked, _ := router.look(); return asked >= 10 })
	if _, holds := router.look(); !maps.Equal(holds, map[Port]uint16{{false, 4001}: 4011, {true, 4001}: 4011}) {
		t.Errorf("the router holds %v", holds)
	}
	for listen, want := range map[string]string{
		"/ip4/0.0.0.0/tcp/4001": "/ip4/192.0.0.200/tcp/4011", "/ip4/0.0.0.0/udp/4001/quic-v1": "/ip4/192.0.0.200/udp/4011/quic-v1",
		"/ip4/127.0.0.1/tcp/4001": "", "/ip6/::/tcp/4003": "", "/ip4/0.0.0.0/tcp/5000": "",
	} {
		got := ""
		if addr := m.GetMapping(ma.StringCast(listen)); addr != nil {
			got = addr.String()
		}
		if got != want {
			t.Errorf("%s is mapped to %q, not %q", listen, got, want)
		}
	}
	if by := m.MappedBy(); by != "fake" {
		t.Errorf("mapped by %q", by)
	}
	_ = m.Close()
	if _, holds := router.look(); len(holds) != 0 {
		t.Errorf("in the end the router holds %v", holds)
	}
}

// TestEndDuringTheFirstRequest: what the router does while the peer ends is undone.
func TestEndDuringTheFirstRequest(t *testing.T) {
	router, asked, ending := &fakeRouter{holds: make(map[Port]uint16)}, make(chan struct{}), make(chan struct{})
	router.mapped = sync.OnceFunc(func() {
		close(asked)
		<-ending
	})
	m := start(t, func(context.Context) (Router, error) { return router, nil })
	<-asked
	m.cancel()
	close(ending)
	_ = m.Close()
	if asked, holds := router.look(); asked != 1 || len(holds) != 0 {
		t.Errorf("asked %d times, in the end the router holds %v", asked, holds)
	}
}

// TestRouterIsLookedForAgain: where there was none, and when it answers no more.
func TestRouterIsLookedForAgain(t *testing.T) {
	first, second := &fakeRouter{holds: make(map[Port]uint16)}, &fakeRouter{holds: make(map[Port]uint16)}
	routers := []Router{nil, first, nil, nil, second}
	m := start(t, func(context.Context) (Router, error) {
		next := routers[0]
		if len(routers) > 1 {
			routers = routers[1:]
		}
		if next == nil {
			return nil, errNoRouter
		}
		return next, nil
	})
	eventually(t, "the first is used", func() bool { asked, _ := first.look(); return asked > 0 })
	first.mu.Lock()
	first.broken = true
	first.mu.Unlock()
	eventually(t, "the second is used", func() bool { _, holds := second.look(); return len(holds) == 2 && m.MappedBy() != "" })
}

// TestManagerThatWasNotStartedCloses: a peer that fails to start.
func TestManagerThatWasNotStartedCloses(t *testing.T) {
	m := newManager(listening, func() {}, slog.New(slog.DiscardHandler), Find, quickPace)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}
