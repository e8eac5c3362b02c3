package control

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/guard"
	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/node"
	"hivemind/p2pd/internal/wire"
)

// Between peers of this library a stream carries one unary call after another (node.CallsProtocol), with the envelopes of hivemind 1.1.
// One call at a time has it, so that calls never wait for each other's bytes, and cancelling one is resetting its stream. Unlike with 1.1,
// what has gone wrong besides the handler is the code of a reset.

// withCallStream runs a unary call on a stream that an earlier one has left, or on a new one.
func (srv *Server) withCallStream(s *stream, call *meter.Call, p peer.ID, name string, run func(*netStream) error) error {
	raw := srv.idle.take(p)
	if raw == nil {
		var err error
		if raw, err = srv.network.OpenCalls(s.ctx, p, name); err != nil {
			return err
		}
	}
	ns := newNetStream(raw, call, name)
	defer ns.free()
	stop := abortWith(s, ns)
	if err := run(ns); err != nil {
		s.cancel(err) // aborts ns
		return err
	}
	switch {
	case !stop(): // it is being reset
	case ns.spoiled, ns.in.Buffered() > 0, raw.Protocol() != node.CallsProtocol:
		_ = ns.Close()
	default:
		srv.idle.give(p, raw)
	}
	return nil
}

// serveCalls answers the calls that a peer makes on one stream, until it closes it.
func (srv *Server) serveCalls(raw network.Stream) {
	if !srv.beginServing(raw) {
		return
	}
	defer srv.serving.Done()
	stop := context.AfterFunc(srv.ctx, func() { _ = raw.ResetWithError(network.StreamShutdown) })
	defer stop()
	ns := newNetStream(raw, nil, node.CallsProtocol)
	defer ns.free()
	_, err := ns.in.Peek(1)
	for err == nil {
		c, fault := srv.acceptCall(ns)
		if fault == nil {
			answered := make(chan error, 1)
			go func() { answered <- c.answer(raw) }()
			// The next call begins after the answer to this one; whatever comes before it, its end included, means that the caller has given up.
			_, err = ns.in.Peek(1)
			c.giveUp()
			fault = <-answered
		}
		if fault != nil {
			srv.refuse(ns, fault)
			return
		}
		if pause := srv.network.Guard().Called(raw.Conn().RemotePeer()); pause > 0 && err == nil {
			time.Sleep(pause)
		}
	}
	_ = raw.Close()
}

// servedCall is a call of serveCalls that its handler has been given.
type servedCall struct {
	server   *Server
	handler  *admission
	give     func() // gives back the room for the request
	call     *meter.Call
	id       [wire.CallIDSize]byte
	stream   *stream     // of the handler's client
	answered atomic.Bool // the answer begins to come
}

// acceptCall reads the next request on a stream and gives it to its handler.
func (srv *Server) acceptCall(ns *netStream) (*servedCall, error) {
	if !holdsMessage(ns) {
		_ = ns.SetReadDeadline(time.Now().Add(stallTimeout))
		defer func() { _ = ns.SetReadDeadline(time.Time{}) }()
	}
	size, err := readSize(ns, srv.limits.MaxUnary)
	if err != nil {
		return nil, err
	}
	req, body, size, err := readRequest(ns, size)
	if err != nil {
		return nil, err
	}
	caller := ns.Conn().RemotePeer()
	handler, err := srv.registry.admit(srv.ctx, req.Handler, ModeUnary, caller)
	if err != nil && faultOf(err).Code == CodeNotSupported {
		srv.network.Meter().UnknownProtocol()
		srv.network.Guard().Refused(caller, guard.Unknown)
		return nil, err
	}
	srv.active.Add(1)
	srv.counters.unaryIn.Add(1)
	c := &servedCall{
		server: srv, handler: handler, call: srv.network.Meter().Begin(meter.In, caller, req.Handler), id: req.CallID,
	}
	ns.call = c.call
	ns.call.Received(ns.early)
	if err == nil {
		if c.give, err = handler.takeSoon(srv.ctx, size); err == nil {
			c.stream, err = deliverRequest(handler.conn, ns, &target{peer: []byte(caller), name: req.Handler}, body, size)
		}
	}
	ns.call, ns.early = nil, 0
	if err != nil {
		c.end(err)
		return nil, err
	}
	return c, nil
}

// holdsMessage tells whether a whole envelope is in the read buffer.
func holdsMessage(ns *netStream) bool {
	head, _ := ns.in.Peek(ns.in.Buffered())
	size, used := binary.Uvarint(head)
	return used > 0 && size <= uint64(len(head)-used)
}

// answer waits for the handler's answer, sends it, and ends the call.
func (c *servedCall) answer(raw network.Stream) error {
	ns := &netStream{Stream: raw, name: node.CallsProtocol, call: c.call, bounded: true}
	stop := abortWith(c.stream, ns)
	err := sendHandlerAnswer(c.stream, ns, c.server.limits.MaxUnary, c.id, func() {
		c.answered.Store(true)
		c.handler.handlerDone()
	})
	if err == nil {
		stop()
		c.stream.over(errFinished)
	} else {
		c.stream.cancel(err)
		c.stream.fail(err)
	}
	c.stream.conn.running.Done()
	c.end(err)
	return err
}

// giveUp cancels the call if it is not answered.
func (c *servedCall) giveUp() {
	if !c.answered.Load() {
		c.stream.cancel(faultf(CodeCancelled, "the caller has cancelled the call or is gone"))
	}
}

// end gives back what the call has taken.
func (c *servedCall) end(err error) {
	if c.give != nil {
		c.give()
	}
	if c.handler != nil {
		c.handler.release()
	}
	countFailure(c.call, meter.In, err)
	c.call.End()
	c.server.active.Add(-1)
}
