package portmap

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// pace says how often the manager does what it does.
type pace struct {
	find       time.Duration // bounds one search for a router
	findAgain  time.Duration // between two, where there was none; grows twofold
	findSeldom time.Duration // ...up to this
	request    time.Duration // bounds one round of requests
	renew      time.Duration // between two rounds; a router that was started anew has forgotten its mappings
	answer     time.Duration // how long the answer of a request under way is waited for in the end
	end        time.Duration // bounds the removal of all mappings
}

var usualPace = pace{
	find: 15 * time.Second, findAgain: time.Minute, findSeldom: 15 * time.Minute, request: 5 * time.Second,
	renew: 2 * time.Minute, answer: 200 * time.Millisecond, end: 600 * time.Millisecond,
}

// shortestRenewal: a router that grants less than twice this is asked no more often.
const shortestRenewal = time.Second

// Manager keeps the ports of a peer mapped. It implements the NATManager of the library's host, and is safe for concurrent use.
type Manager struct {
	log    *slog.Logger
	listen func() []ma.Multiaddr
	find   func(context.Context) (Router, error)
	tell   func()
	pace   pace
	begin  chan struct{}
	moved  chan struct{}
	cancel context.CancelFunc
	done   chan struct{}

	mu         sync.Mutex
	name       string          // mu: of the router's protocol; "" while nothing is mapped
	external   netip.Addr      // mu: the router's
	mapped     map[Port]uint16 // mu: ports of the outside
	interfaces string          // mu: addresses of this machine
}

// New makes a manager that does nothing until Start is called.
//
//   - listen are the addresses that the peer listens on
//   - tell is called, after Start, when other ports are mapped than before
func New(listen func() []ma.Multiaddr, tell func(), log *slog.Logger) *Manager {
	return newManager(listen, tell, log, Find, usualPace)
}

func newManager(
	listen func() []ma.Multiaddr, tell func(), log *slog.Logger, find func(context.Context) (Router, error), speed pace,
) *Manager {
	ctx, cancel := context.WithCancel(context.Background())
	m := &Manager{
		log: log, listen: listen, tell: tell, find: find, pace: speed, cancel: cancel,
		begin: make(chan struct{}), moved: make(chan struct{}, 1), done: make(chan struct{}),
		mapped: make(map[Port]uint16), interfaces: interfaceAddrs(),
	}
	go m.run(ctx)
	return m
}

// Start begins to look for a router: the peer listens. It is called once.
func (m *Manager) Start() { close(m.begin) }

// Close removes the mappings. It is idempotent.
func (m *Manager) Close() error {
	m.cancel()
	<-m.done
	return nil
}

// HasDiscoveredNAT implements NATManager.
func (m *Manager) HasDiscoveredNAT() bool { return m.MappedBy() != "" }

// MappedBy names the protocol by which ports are mapped now; "" if there are none.
func (m *Manager) MappedBy() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.name
}

// GetMapping is the address at which the outside reaches one that this peer listens on; nil if there is none.
func (m *Manager) GetMapping(addr ma.Multiaddr) ma.Multiaddr {
	port, ok := portOf(addr)
	if !ok {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	external, ok := m.mapped[port]
	if !ok {
		return nil
	}
	endpoint := netip.AddrPortFrom(m.external, external)
	var outside net.Addr = net.TCPAddrFromAddrPort(endpoint)
	if port.UDP {
		outside = net.UDPAddrFromAddrPort(endpoint)
	}
	mapped, err := manet.FromNetAddr(outside)
	if err != nil {
		return nil
	}
	return ma.Join(mapped, addr[2:])
}

// LookAgain is to be called when addresses have changed: where they are this machine's, it may have another router.
func (m *Manager) LookAgain() {
	now := interfaceAddrs()
	m.mu.Lock()
	same := m.interfaces == now
	m.interfaces = now
	m.mu.Unlock()
	if same {
		return
	}
	select {
	case m.moved <- struct{}{}:
	default:
	}
}

func (m *Manager) run(ctx context.Context) {
	defer close(m.done)
	select {
	case <-m.begin:
	case <-ctx.Done():
		return
	}
	var router Router
	search := m.pace.findAgain
	for {
		var wait time.Duration
		if router == nil {
			router = m.search(ctx)
		}
		if router != nil {
			wait = m.keep(ctx, router)
		}
		if wait > 0 {
			search = m.pace.findAgain
		} else {
			wait, router = search, nil
			search = min(2*search, m.pace.findSeldom)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			m.remove(router)
			return
		case <-m.moved:
			timer.Stop()
			router, search = nil, m.pace.findAgain
		case <-timer.C:
		}
	}
}

func (m *Manager) search(ctx context.Context) Router {
	if len(wanted(m.listen())) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.pace.find)
	defer cancel()
	router, err := m.find(ctx)
	if err != nil {
		m.log.Debug("no ports are mapped", "error", err)
		return nil
	}
	return router
}

// keep maps what is to be mapped, for the first time or again. It returns after how long that is to be done the next time; 0 if the router
// does not do it.
func (m *Manager) keep(running context.Context, router Router) time.Duration {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(running), m.pace.request)
	defer cancel()
	// what the router has been asked for in the end has to be known, to be removed
	defer context.AfterFunc(running, func() { time.AfterFunc(m.pace.answer, cancel) })()
	external, err := router.External(ctx)
	if err != nil && running.Err() == nil {
		m.forget(err)
		return 0
	}
	next, mapped := m.pace.renew, make(map[Port]uint16)
	for _, port := range wanted(m.listen()) {
		if running.Err() != nil {
			break
		}
		m.mu.Lock()
		before, held := m.mapped[port]
		m.mu.Unlock()
		if !held {
			before = port.Number
		}
		outside, granted, failed := router.Map(ctx, port, before, held)
		if failed != nil {
			err = failed
			m.log.Debug("a port is not mapped", "port", port.String(), "error", failed)
			continue
		}
		mapped[port] = outside
		if !held || outside != before {
			m.log.Info("the router forwards a port", "port", port.String(), "outside", netip.AddrPortFrom(external, outside).String(),
				"by", router.Name())
		}
		if granted > 0 {
			next = min(next, max(granted/2, shortestRenewal))
		}
	}
	if running.Err() != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		maps.Copy(m.mapped, mapped)
		return m.pace.renew
	}
	if len(mapped) == 0 {
		m.forget(err)
		return 0
	}
	m.set(router.Name(), external, mapped)
	return next
}

// forget notes that nothing is mapped.
func (m *Manager) forget(why error) {
	if m.MappedBy() != "" {
		m.log.Info("the router forwards no port any more", "error", why)
	}
	m.set("", netip.Addr{}, make(map[Port]uint16))
}

func (m *Manager) set(name string, external netip.Addr, mapped map[Port]uint16) {
	m.mu.Lock()
	same := m.name == name && m.external == external && maps.Equal(m.mapped, mapped)
	m.name, m.external, m.mapped = name, external, mapped
	m.mu.Unlock()
	if !same {
		m.tell()
	}
}

// remove ends the mappings at the router that made them.
func (m *Manager) remove(router Router) {
	m.mu.Lock()
	mapped := m.mapped
	m.name, m.mapped = "", make(map[Port]uint16)
	m.mu.Unlock()
	if router == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.pace.end)
	defer cancel()
	var all sync.WaitGroup
	for port, external := range mapped {
		all.Go(func() {
			if err := router.Unmap(ctx, port, external); err != nil {
				m.log.Debug("a port stays mapped until its lease ends", "port", port.String(), "error", err)
			}
		})
	}
	all.Wait()
}

// wanted are the ports to be mapped, each once.
func wanted(listen []ma.Multiaddr) (ports []Port) {
	for _, addr := range listen {
		if port, ok := portOf(addr); ok && !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports
}

// portOf is the port of an address that other machines can use by way of a router of IPv4.
func portOf(addr ma.Multiaddr) (port Port, ok bool) {
	if len(addr) < 2 || addr[0].Code() != ma.P_IP4 {
		return port, false
	}
	ip, valid := netip.AddrFromSlice(addr[0].RawValue())
	if !valid || !ip.IsGlobalUnicast() && !ip.IsUnspecified() {
		return port, false
	}
	code := addr[1].Code()
	if code != ma.P_TCP && code != ma.P_UDP {
		return port, false
	}
	number, err := strconv.ParseUint(addr[1].Value(), 10, 16)
	return Port{UDP: code == ma.P_UDP, Number: uint16(number)}, err == nil && number != 0
}

func interfaceAddrs() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	texts := make([]string, 0, len(addrs))
	for _, addr := range addrs {
		texts = append(texts, addr.String())
	}
	slices.Sort(texts)
	return strings.Join(texts, " ")
}
