package control

import (
	"bytes"
	"io"
	"time"

	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/wire"
)

// serveUnary answers a unary call that a peer makes. The name in the envelope decides, as in hivemind 1.1.
func (srv *Server) serveUnary(ns *netStream) error {
	ns.bounded = true
	_ = ns.SetReadDeadline(time.Now().Add(stallTimeout))
	size, err := readSize(ns, srv.limits.MaxUnary)
	if err != nil {
		return err
	}
	req, body, size, err := readRequest(ns, size)
	if err != nil {
		return err
	}
	caller := ns.Conn().RemotePeer()
	handler, err := srv.registry.admit(srv.ctx, req.Handler, ModeUnary, caller)
	if err != nil {
		fault := faultOf(err)
		if fault.Code != CodeNotSupported {
			return fault
		}
		ns.call.Failed(meter.Kind(fault.Code))
		return sendAnswer(ns, &wire.Response{CallID: req.CallID, IsError: true}, fault.Text)
	}
	defer handler.release()
	give, err := handler.takeSoon(srv.ctx, size)
	if err != nil {
		return err
	}
	defer give()

	s, err := deliverRequest(handler.conn, ns, &target{peer: []byte(caller), name: req.Handler}, body, size)
	if err != nil {
		return err
	}
	defer s.conn.running.Done()
	if err := runHandler(s, ns, srv.limits.MaxUnary, req.CallID, handler.handlerDone); err != nil {
		s.fail(err)
		return err
	}
	s.over(errFinished)
	return nil
}

// readRequest reads the head of a request and returns where its data comes from.
func readRequest(ns *netStream, size int) (wire.Request, io.Reader, int, error) {
	head, err := ns.in.Peek(min(size, wire.MaxEnvelopeHead))
	if err != nil {
		return wire.Request{}, nil, 0, readFault(ns, err)
	}
	req, used, ok := wire.SplitRequest(head, size)
	if ok {
		_, _ = ns.in.Discard(used) // it was peeked
		return req, boundedReader{ns}, size - used, nil
	}
	message, err := readWhole(boundedReader{ns}, size)
	if err != nil {
		return wire.Request{}, nil, 0, readFault(ns, err)
	}
	req, data, err := wire.ParseRequest(message)
	return req, bytes.NewReader(data), len(data), err
}

// deliverRequest announces a call to the handler's client and relays the request.
func deliverRequest(c *conn, ns *netStream, t *target, body io.Reader, size int) (*stream, error) {
	var first *buffer
	if size <= inlineLimit {
		room := targetSize(t)
		first = newBuffer(room + size)
		if _, err := io.ReadFull(body, first.data[room:]); err != nil {
			first.free()
			return nil, readFault(ns, err)
		}
	}
	s, err := c.accept(ModeUnary, t, first)
	if err != nil || first != nil {
		return s, err
	}
	if err := networkFault(ns, s.relay(body, size, 0)); err != nil {
		s.fail(err)
		s.conn.running.Done()
		return nil, err
	}
	return s, nil
}

// runHandler waits for the client's answer and sends it, while it watches the caller: whatever comes from it after the
// request, its end included, means that it has given up. It calls handled once the answer begins to come.
func runHandler(s *stream, ns *netStream, limit int64, callID [wire.CallIDSize]byte, handled func()) error {
	_ = ns.SetReadDeadline(time.Time{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		_, _ = ns.in.Peek(1) // also ends by the deadline below, when the stream is over already
		s.cancel(faultf(CodeCancelled, "the caller has cancelled the call or is gone"))
	}()
	stop := abortWith(s, ns)
	err := sendHandlerAnswer(s, ns, limit, callID, handled)
	if err == nil {
		s.cancel(errFinished)
		_ = ns.CloseWrite() // a caller that has read its answer may be gone already
	} else {
		s.cancel(err)
	}
	stop()
	_ = ns.SetReadDeadline(time.Now())
	<-watched
	return err
}

func sendHandlerAnswer(
	s *stream, ns *netStream, limit int64, callID [wire.CallIDSize]byte, handled func(),
) error {
	first, err := s.next(s.ctx)
	if err != nil {
		return err
	}
	handled()
	if first.fin {
		return faultf(CodeInternal, "the handler ended without an answer")
	}
	res := wire.Response{CallID: callID, IsError: first.isError}
	if first.isError {
		ns.call.Failed(failureTold(first.payload))
	}
	size := int(first.toCome)
	if int64(wire.ResponseSize(size)) > limit {
		first.owned.free()
		s.reset(faultf(CodeTooLarge, "%s", oversize))
		ns.call.Failed(meter.Kind(CodeTooLarge))
		res.IsError = true
		return sendAnswer(ns, &res, oversize)
	}
	head := wire.AppendResponse(make([]byte, 0, headRoom(first)), &res, size)
	return s.sendMessage(ns, head, first)
}

// oversize is what a caller is told whose answer does not fit the limit.
const oversize = "response size exceeds message size limit"

func sendAnswer(ns *netStream, res *wire.Response, text string) error {
	answer := append(wire.AppendResponse(nil, res, len(text)), text...)
	if _, err := ns.Write(answer); err != nil {
		return streamFault(ns, err)
	}
	return nil
}
