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

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/guard"
	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/node"
)

// Limits are the bounds of messages, and of what one peer may have under way.
type Limits struct {
	MaxMessage int64 // one message of a stream
	MaxUnary   int64 // one unary message with its envelope
	PeerCalls  int   // calls of a peer that handlers work on
	PeerBytes  int64 // of a peer's requests and messages that are held for them
}

// LimitsOf are those of a configuration.
func LimitsOf(cfg *config.Config) Limits {
	return Limits{MaxMessage: cfg.MaxMessage, MaxUnary: cfg.MaxUnary, PeerCalls: cfg.PeerCalls, PeerBytes: cfg.PeerBytes}
}

// Server serves control connections on one node. It is safe for concurrent use.
type Server struct {
	network  *node.Node
	limits   Limits
	log      *slog.Logger
	registry *registry
	counters counters
	out      callsOut
	idle     idleStreams

	ctx    context.Context // ends with Close; cause errClosing
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	closing bool               // mu: no new connections and streams
	open    map[*conn]struct{} // mu
	guests  net.Listener
	// guestFolder was made for the guests' socket, and goes with it; "" if it was there.
	guestFolder string
	conns       sync.WaitGroup
	serving     sync.WaitGroup // streams that peers opened
	active      atomic.Int64   // streams of all connections

	// Metrics is where Prometheus text is served; "" is nowhere. Set before connections are served.
	Metrics string

	// Shutdown is closed when the owner asks the daemon to stop.
	Shutdown     chan struct{}
	shutdownOnce sync.Once
}

// NewServer makes a server without connections.
func NewServer(network *node.Node, limits Limits, log *slog.Logger) *Server {
	srv := &Server{network: network, limits: limits, log: log, Shutdown: make(chan struct{})}
	srv.registry = newRegistry(network, &srv.limits, srv.serve)
	srv.open = make(map[*conn]struct{})
	srv.out.gates = make(map[peer.ID]*gate)
	srv.idle.peers = make(map[peer.ID][]idleStream)
	srv.ctx, srv.cancel = context.WithCancelCause(context.Background())
	network.Handle(node.CallsProtocol, srv.serveCalls)
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
	c := newConn(srv, sock, owner)
	srv.open[c] = struct{}{}
	srv.mu.Unlock()
	defer srv.conns.Done()
	defer srv.forget(c)
	stop := context.AfterFunc(srv.ctx, c.shut)
	defer stop()
	if err := c.serve(); err != nil && srv.ctx.Err() == nil {
		srv.log.Error("control connection ended", "owner", owner, "error", err)
	}
}

func (srv *Server) forget(c *conn) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.open, c)
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
	srv.network.Unhandle(node.CallsProtocol)
	srv.cancel(errClosing)
	srv.idle.close()
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
	call := srv.network.Meter().Begin(meter.Out, p, t.name)
	defer call.End()
	err = srv.callPeer(s, call, p, t.name)
	if err != nil {
		cause := err
		if ended := context.Cause(s.ctx); ended != nil {
			cause = ended // what broke the rest
		}
		countFailure(call, meter.Out, cause)
	}
	return err
}

// callPeer runs a stream to a peer, to its end.
func (srv *Server) callPeer(s *stream, call *meter.Call, p peer.ID, name string) error {
	if s.mode == ModeUnary {
		srv.counters.unaryOut.Add(1)
		leave, err := srv.out.enter(s.ctx, p)
		if err != nil {
			return err
		}
		defer leave()
		return srv.callUnary(s, call, p, name)
	}
	srv.counters.streamsOut.Add(1)
	return srv.withStream(s, call, p, name, func(ns *netStream) error {
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
func (srv *Server) withStream(s *stream, call *meter.Call, p peer.ID, name string, run func(*netStream) error) error {
	raw, err := srv.network.Open(s.ctx, p, name)
	if err != nil {
		return err
	}
	ns := newNetStream(raw, call, name)
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
	if !srv.beginServing(raw) {
		return
	}
	defer srv.serving.Done()
	name := string(raw.Protocol())
	call := srv.network.Meter().Begin(meter.In, raw.Conn().RemotePeer(), name)
	ns := newNetStream(raw, call, name)
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
	countFailure(call, meter.In, err)
	call.End()
	if err != nil {
		srv.refuse(ns, err)
		return
	}
	ns.linger()
}

// beginServing counts a stream that a peer opens, unless the server closes; it is to end with serving.Done.
func (srv *Server) beginServing(raw network.Stream) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closing {
		_ = raw.ResetWithError(network.StreamShutdown)
		return false
	}
	srv.serving.Add(1)
	return true
}

// refuse resets the stream of a call that failed.
func (srv *Server) refuse(ns *netStream, err error) {
	caller, fault := ns.Conn().RemotePeer(), faultOf(err)
	if fault.Code == CodeMalformed || fault.Code == CodeTooLarge {
		srv.network.Guard().Refused(caller, guard.Malformed)
	}
	srv.log.Debug("incoming call failed", "peer", caller, "handler", ns.name, "error", err)
	ns.abort(fault)
}

// serveStream hands an incoming stream of messages or bytes to its handler.
func (srv *Server) serveStream(ns *netStream, mode Mode) error {
	name, caller := string(ns.Protocol()), ns.Conn().RemotePeer()
	handler, err := srv.registry.admit(srv.ctx, name, mode, caller)
	if err != nil {
		return err
	}
	defer handler.release()
	s, err := handler.conn.accept(mode, &target{peer: []byte(caller), name: name}, nil)
	if err != nil {
		return err
	}
	defer s.conn.running.Done()
	s.budget = handler.budget
	defer s.giveAllShares()
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
