// Package control is the daemon's side of the control protocol (docs/control-protocol.md): connections of Python
// processes on one hand, streams of the network on the other, and the messages between them.
package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/node"
)

// Limits are the bounds of messages.
type Limits struct {
	MaxMessage int64 // one message of a stream
	MaxUnary   int64 // one unary message with its envelope
}

// Server serves control connections on one node. It is safe for concurrent use.
type Server struct {
	network  *node.Node
	limits   Limits
	log      *slog.Logger
	registry *registry
	counters counters

	ctx    context.Context // ends with Close; cause errClosing
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	closing bool // mu: no new connections and streams
	guests  net.Listener
	// guestFolder was made for the guests' socket, and goes with it; "" if it was there.
	guestFolder string
	conns       sync.WaitGroup
	serving     sync.WaitGroup // streams that peers opened
	active      atomic.Int64   // streams of all connections

	// Shutdown is closed when the owner asks the daemon to stop.
	Shutdown     chan struct{}
	shutdownOnce sync.Once
}

// NewServer makes a server without connections.
func NewServer(network *node.Node, limits Limits, log *slog.Logger) *Server {
	srv := &Server{network: network, limits: limits, log: log, Shutdown: make(chan struct{})}
	srv.registry = newRegistry(network, srv.serve)
	srv.ctx, srv.cancel = context.WithCancelCause(context.Background())
	return srv
}

// ServeConn serves a connection until it ends. Only the owner may stop the daemon.
func (srv *Server) ServeConn(sock net.Conn, owner bool) {
	srv.mu.Lock()
	if srv.closing {
		srv.mu.Unlock()
		sock.Close()
		return
	}
	srv.conns.Add(1)
	srv.mu.Unlock()
	defer srv.conns.Done()
	c := newConn(srv, sock, owner)
	stop := context.AfterFunc(srv.ctx, c.shut)
	defer stop()
	if err := c.serve(); err != nil && srv.ctx.Err() == nil {
		srv.log.Error("control connection ended", "owner", owner, "error", err)
	}
}

// Drain refuses new streams and waits until those under way have ended, or ctx.
func (srv *Server) Drain(ctx context.Context) {
	srv.mu.Lock()
	srv.closing = true
	guests, folder := srv.guests, srv.guestFolder
	srv.mu.Unlock()
	if guests != nil {
		guests.Close()
		if folder != "" {
			_ = os.Remove(folder) // not if somebody put something there
		}
	}
	srv.registry.close()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for srv.active.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Close ends all connections: their streams are RESET with CLOSING. It is idempotent.
func (srv *Server) Close() {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	srv.Drain(ended)
	srv.cancel(errClosing)
	srv.conns.Wait()
	srv.serving.Wait()
}

func (srv *Server) isClosing() bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.closing
}

// call runs a stream that a client opens, to its end.
func (srv *Server) call(s *stream, t *target, timeout time.Duration) {
	srv.active.Add(1)
	defer srv.active.Add(-1)
	if timeout > 0 {
		timer := time.AfterFunc(timeout, func() { s.cancel(faultf(CodeDeadline, "no answer of %q within %s", t.name, timeout)) })
		defer timer.Stop()
		s.opening = timer
	}
	if err := srv.callTarget(s, t); err != nil {
		s.fail(err)
		return
	}
	s.over(errFinished)
}

func (srv *Server) callTarget(s *stream, t *target) error {
	p, err := peer.IDFromBytes(t.peer)
	if err != nil {
		return faultf(CodeBadRequest, "not a peer id: %s", err)
	}
	if err := checkName(t.name); err != nil {
		return err
	}
	if srv.isClosing() {
		return errClosing
	}
	if s.mode == ModeUnary {
		srv.counters.unaryOut.Add(1)
		return srv.callUnary(s, p, t.name)
	}
	srv.counters.streamsOut.Add(1)
	return srv.withStream(s, p, t.name, func(ns *netStream) error {
		if s.opening != nil {
			s.opening.Stop()
		}
		s.conn.out.send(frame{head: header{kind: typeOpened, stream: s.id}})
		if s.mode == ModeRaw {
			return pipeRaw(s, ns)
		}
		return srv.callMessages(s, ns)
	})
}

// withStream opens a stream of the network for s and runs it; the stream is closed if that ends well and reset if not.
func (srv *Server) withStream(s *stream, p peer.ID, name string, run func(*netStream) error) error {
	raw, err := srv.network.Open(s.ctx, p, name)
	if err != nil {
		return err
	}
	ns := newNetStream(raw)
	defer ns.free()
	stop := abortWith(s, ns)
	err = run(ns)
	if err != nil && !errors.Is(err, errFinished) {
		s.cancel(err) // aborts ns
		return err
	}
	stop()
	_ = ns.Close()
	return err
}

// abortWith resets ns when s ends other than well, and tells the peer why as far as it may know.
func abortWith(s *stream, ns *netStream) (stop func() bool) {
	return context.AfterFunc(s.ctx, func() {
		if cause := context.Cause(s.ctx); !errors.Is(cause, errFinished) {
			ns.abort(faultOf(cause))
		}
	})
}

// serve runs a stream that a peer opens for a registered handler, to its end.
func (srv *Server) serve(raw network.Stream, mode Mode) {
	srv.mu.Lock()
	if srv.closing {
		srv.mu.Unlock()
		_ = raw.ResetWithError(network.StreamShutdown)
		return
	}
	srv.serving.Add(1)
	srv.mu.Unlock()
	defer srv.serving.Done()
	ns := newNetStream(raw)
	defer ns.free()
	stop := context.AfterFunc(srv.ctx, func() { _ = raw.ResetWithError(network.StreamShutdown) })
	defer stop()

	srv.active.Add(1)
	var err error
	if mode == ModeUnary {
		srv.counters.unaryIn.Add(1)
		err = srv.serveUnary(ns)
	} else {
		srv.counters.streamsIn.Add(1)
		err = srv.serveStream(ns, mode)
	}
	srv.active.Add(-1)
	if err != nil {
		srv.log.Debug("incoming call failed", "peer", raw.Conn().RemotePeer(), "handler", raw.Protocol(), "error", err)
		ns.abort(faultOf(err))
		return
	}
	ns.linger()
}

// serveStream hands an incoming stream of messages or bytes to its handler.
func (srv *Server) serveStream(ns *netStream, mode Mode) error {
	name, caller := string(ns.Protocol()), ns.Conn().RemotePeer()
	handler, err := srv.registry.admit(name, mode, caller)
	if err != nil {
		return err
	}
	defer handler.release()
	s, err := handler.conn.accept(mode, &target{peer: []byte(caller), name: name}, nil)
	if err != nil {
		return err
	}
	defer s.conn.running.Done()
	stop := abortWith(s, ns)
	defer stop()
	if mode == ModeRaw {
		err = pipeRaw(s, ns)
	} else {
		err = srv.serveMessages(s, ns)
	}
	if err != nil && !errors.Is(err, errFinished) {
		s.fail(err)
		return err
	}
	stop()
	s.over(errFinished)
	return nil
}

// maxName bounds handler names; multistream takes no more than 1024 bytes.
const maxName = 1000

func checkName(name string) error {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) {
		return faultf(CodeBadRequest, "a handler name is 1 to %d bytes of UTF-8, not %q", maxName, name)
	}
	return nil
}
