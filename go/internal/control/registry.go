package control

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/guard"
	"hivemind/p2pd/internal/node"
)

// maxPerHandler bounds the calls under way that peers can make one client hold.
const maxPerHandler = 4096

// registry knows which connections answer which handler names, and admits calls to them.
type registry struct {
	network *node.Node
	limits  *Limits
	serve   func(network.Stream, Mode)

	mu       sync.Mutex
	handlers map[string]*handler // mu
	budgets  map[peer.ID]*budget // mu: of those with calls under way
	closed   bool                // mu
}

// handler is a name with those who answer it.
type handler struct {
	mode     Mode
	balanced bool
	members  []*member
}

// member is one connection's part in a handler.
type member struct {
	conn     *conn
	limit    int
	inFlight int
}

func newRegistry(n *node.Node, limits *Limits, serve func(network.Stream, Mode)) *registry {
	return &registry{
		network: n, limits: limits, serve: serve, handlers: make(map[string]*handler), budgets: make(map[peer.ID]*budget),
	}
}

// add makes c answer name; limit 0 is the daemon's.
func (r *registry) add(c *conn, name string, mode Mode, balanced bool, limit int) error {
	if err := checkName(name); err != nil {
		return err
	}
	if !mode.valid() || limit < 0 {
		return faultf(CodeBadRequest, "listen: mode %d, max_in_flight %d", mode, limit)
	}
	if limit == 0 || limit > maxPerHandler {
		limit = maxPerHandler
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errClosing
	}
	h := r.handlers[name]
	switch {
	case h == nil && r.network.Handles(name):
		return faultf(CodeHandlerTaken, "%q is a protocol of the daemon itself", name)
	case h == nil:
		h = &handler{mode: mode, balanced: balanced}
		r.handlers[name] = h
		r.network.Handle(name, func(s network.Stream) { r.serve(s, mode) })
	case !h.balanced || !balanced:
		return faultf(CodeHandlerTaken, "%q has a handler already; several are possible if all are balanced", name)
	case h.mode != mode:
		return faultf(CodeHandlerTaken, "%q has a handler of mode %d, not %d", name, h.mode, mode)
	}
	h.members = append(h.members, &member{conn: c, limit: limit})
	return nil
}

// remove ends one registration of c; calls under way go on.
func (r *registry) remove(c *conn, name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.handlers[name]; h != nil {
		for i, m := range h.members {
			if m.conn == c {
				r.drop(name, h, i)
				return nil
			}
		}
	}
	return faultf(CodeBadRequest, "unlisten: this connection has no handler %q", name)
}

// removeConn ends all registrations of c.
func (r *registry) removeConn(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, h := range r.handlers {
		for i := len(h.members) - 1; i >= 0; i-- {
			if h.members[i].conn == c {
				r.drop(name, h, i)
			}
		}
	}
}

// drop removes a member, and the handler with its last; mu is held.
func (r *registry) drop(name string, h *handler, i int) {
	h.members = slices.Delete(h.members, i, i+1)
	if len(h.members) == 0 {
		delete(r.handlers, name)
		r.network.Unhandle(name)
	}
}

// close removes everything and refuses what would come.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for name := range r.handlers {
		delete(r.handlers, name)
		r.network.Unhandle(name)
	}
}

// admission is a call or stream that a member has been chosen for. Whoever admitted it releases it.
type admission struct {
	*member
	*budget
	registry *registry
	caller   peer.ID
	handled  sync.Once
}

// endingTime is how long a call waits for those of the same peer that are just ending: one who cancels calls and makes others has them
// under way here until the news of the cancellations is worked off.
const endingTime = 100 * time.Millisecond

// admit chooses who answers a call. One for which the caller has too many under way waits a moment.
func (r *registry) admit(ctx context.Context, name string, mode Mode, caller peer.ID) (*admission, error) {
	a, full, err := r.try(name, mode, caller)
	if full == nil {
		return a, err
	}
	ended := time.NewTimer(endingTime)
	defer ended.Stop()
	for waits := true; waits; {
		select {
		case <-full.left:
		case <-ended.C:
			waits = false
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if a, full, err = r.try(name, mode, caller); full == nil {
			return a, err
		}
	}
	r.network.Guard().Refused(caller, guard.Calls)
	return nil, faultf(CodeBusy, "%s has %d calls in flight", caller, r.limits.PeerCalls)
}

// try chooses the member with the least in flight. It returns the caller's budget if its calls are too many.
func (r *registry) try(name string, mode Mode, caller peer.ID) (a *admission, full *budget, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.handlers[name]
	if h == nil || h.mode != mode {
		return nil, nil, faultf(CodeNotSupported, "%s: no handler %q", node.ErrNotSupported, name)
	}
	b := r.budgets[caller]
	if b == nil {
		b = newBudget(r.limits.PeerBytes)
	}
	if b.calls >= r.limits.PeerCalls {
		return nil, b, nil
	}
	var best *member
	for _, m := range h.members {
		if m.inFlight < m.limit && (best == nil || m.inFlight < best.inFlight) {
			best = m
		}
	}
	if best == nil {
		return nil, nil, faultf(CodeBusy, "%q has as many calls in flight as it takes", name)
	}
	best.inFlight++
	b.calls++
	r.budgets[caller] = b
	return &admission{member: best, budget: b, registry: r, caller: caller}, nil, nil
}

// handlerDone makes room for the handler's next call. It comes before the caller can have read the answer, so that one
// who calls again right then is not told that the handler is busy.
func (a *admission) handlerDone() {
	a.handled.Do(func() {
		a.registry.mu.Lock()
		defer a.registry.mu.Unlock()
		a.inFlight--
	})
}

// release ends the admission; until then the call counts as the caller's, as what is not sent yet takes memory.
func (a *admission) release() {
	a.handlerDone()
	r := a.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.calls--; a.calls == 0 {
		delete(r.budgets, a.caller)
	}
	signal(a.left)
}
