package control

import (
	"context"
	"errors"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/semaphore"
)

// smallMessage: requests and messages up to this size are not counted, as the number of calls bounds them well enough: a ping
// must not wait for the tensors before it.
const smallMessage = 64 << 10

// budget is what one peer may have: calls under way, and bytes of requests and messages that are held for handlers.
type budget struct {
	calls int // the registry's mu
	most  int64
	bytes *semaphore.Weighted
	left  chan struct{} // signals that a call has ended
}

func newBudget(most int64) *budget {
	return &budget{most: most, bytes: semaphore.NewWeighted(most), left: make(chan struct{}, 1)}
}

// take waits for room for size bytes, in the order of the calls. One message that is larger than all of the budget has it for
// itself. What is returned gives the room back, and may be called again.
func (b *budget) take(ctx context.Context, size int) (give func(), err error) {
	if size <= smallMessage {
		return func() {}, nil
	}
	share := min(int64(size), b.most)
	if err := b.bytes.Acquire(ctx, share); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { b.bytes.Release(share) }), nil
}

// takeSoon is take within stallTimeout.
func (b *budget) takeSoon(ctx context.Context, size int) (give func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	give, err = b.take(ctx, size)
	if errors.Is(err, context.DeadlineExceeded) {
		err = faultf(CodeBusy, "the peer's calls hold %d bytes, as many as they may", b.most)
	}
	return give, err
}

// maxCallsOut bounds the unary calls of this peer that are under way at one other; more wait. It is less than other peers take by
// default, so that calls are not refused which only have to wait.
const maxCallsOut = 448

// callsOut are the calls under way to other peers.
type callsOut struct {
	mu    sync.Mutex
	gates map[peer.ID]*gate // mu; none without users
}

type gate struct {
	users int
	open  *semaphore.Weighted
}

// enter waits until a call to p may begin; leave ends it.
func (o *callsOut) enter(ctx context.Context, p peer.ID) (leave func(), err error) {
	o.mu.Lock()
	g := o.gates[p]
	if g == nil {
		g = &gate{open: semaphore.NewWeighted(maxCallsOut)}
		o.gates[p] = g
	}
	g.users++
	o.mu.Unlock()
	if err := g.open.Acquire(ctx, 1); err != nil {
		o.forget(p, g)
		return nil, context.Cause(ctx)
	}
	return func() {
		g.open.Release(1)
		o.forget(p, g)
	}, nil
}

func (o *callsOut) forget(p peer.ID, g *gate) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if g.users--; g.users == 0 {
		delete(o.gates, p)
	}
}
