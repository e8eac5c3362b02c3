package control

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"hivemind/p2pd/internal/wire"
)

// callMessages runs a stream of messages that the client has opened, until the callee or the client ends it.
func (srv *Server) callMessages(s *stream, ns *netStream) error {
	sender := make(chan error, 1)
	go func() {
		err := s.sendRequests(ns)
		if err != nil {
			s.cancel(err)
		}
		sender <- err
	}()
	err := srv.receiveMessages(s, ns, true)
	var failed *remoteError
	if errors.As(err, &failed) {
		ns.call.Failed(failureTold([]byte(failed.text)))
		err = s.relay(strings.NewReader(failed.text), len(failed.text), flagError)
		if err == nil {
			err = errFinished // a failed call is over for both sides, whatever the client still sends
		}
	}
	if err != nil {
		s.cancel(err)
		<-sender
		return err
	}
	// The callee has ended its side, which is the end of the call: what the client still sends is dropped.
	_ = ns.SetWriteDeadline(time.Now())
	return <-sender
}

// sendRequests sends the client's messages until its FIN. The network is not told by closing: a callee takes that as a
// cancellation. Once writing fails it drops what comes, as the reading side knows why.
func (s *stream) sendRequests(ns *netStream) error {
	broken := false
	for {
		it, err := s.next(s.ctx)
		switch {
		case err != nil:
			return err
		case it.fin:
			if !broken {
				_, _ = ns.Write(wire.EndOfRequests[:]) // if it fails, the reading side knows why
			}
			return nil
		case it.isError:
			s.done(it)
			return faultf(CodeBadRequest, "only the callee's messages can be errors")
		case broken:
			s.done(it)
			continue
		}
		head := wire.AppendFrameHead(make([]byte, 0, headRoom(it)), wire.MarkerMessage, uint64(it.toCome))
		err = s.sendMessage(ns, head, it)
		if err != nil && !isNetwork(err) {
			return err
		}
		broken = err != nil
	}
}

// receiveMessages relays the peer's messages to the client and its end as FIN; the caller's side ends with the callee's EOF,
// the callee's with the end marker.
func (srv *Server) receiveMessages(s *stream, ns *netStream, caller bool) error {
	for {
		if err := s.awaitCredit(); err != nil {
			return err
		}
		marker, size, err := readFrameHead(ns)
		if err == io.EOF { //nolint:errorlint // a wrapped EOF is a broken connection
			if !caller {
				return faultf(CodeCancelled, "the caller closed the stream before the end of its requests")
			}
			s.fin()
			return nil
		}
		if err != nil {
			return err
		}
		if marker == wire.MarkerMessage {
			if size > uint64(srv.limits.MaxMessage) {
				return faultf(CodeTooLarge, "the peer announces a message of %d bytes; the limit is %d", size, srv.limits.MaxMessage)
			}
			if err := s.relayMessage(ns, int(size)); err != nil {
				return err
			}
			continue
		}
		text, err := readRPCError(ns, size)
		if !caller && (err == nil || errors.Is(err, wire.ErrMalformed)) {
			s.fin() // whatever the caller's error holds
			return nil
		}
		if err != nil {
			return err
		}
		return &remoteError{text}
	}
}

// relayMessage relays a message to the client once the peer's budget, if there is one, has room for it, until the client has read it.
func (s *stream) relayMessage(ns *netStream, size int) error {
	if s.budget != nil {
		give, err := s.budget.take(s.ctx, size)
		if err != nil {
			return context.Cause(s.ctx)
		}
		defer s.keep(share{size, give})
	}
	return networkFault(ns, s.relay(ns.in, size, 0))
}

// remoteError is the RPCError of a callee.
type remoteError struct{ text string }

func (e *remoteError) Error() string { return e.text }

// readFrameHead returns a bare io.EOF if the stream ends before the frame.
func readFrameHead(ns *netStream) (marker byte, size uint64, err error) {
	var head [wire.FrameHeadSize]byte
	if head[0], err = ns.in.ReadByte(); err != nil {
		if err == io.EOF { //nolint:errorlint // see readFault
			return 0, 0, io.EOF
		}
		return 0, 0, streamFault(ns, err)
	}
	if _, err := io.ReadFull(ns.in, head[1:]); err != nil {
		return 0, 0, readFault(ns, err)
	}
	return wire.ParseFrameHead(head)
}

// readRPCError reads the payload of an error frame.
func readRPCError(ns *netStream, size uint64) (string, error) {
	if size > wire.MaxErrorSize {
		return "", faultf(CodeTooLarge, "the peer announces an error of %d bytes; the limit is %d", size, wire.MaxErrorSize)
	}
	message, err := readWhole(ns.in, int(size))
	if err != nil {
		return "", readFault(ns, err)
	}
	return wire.ParseError(message)
}

// serveMessages runs a stream of messages that a peer has opened, until the handler or the caller ends it.
func (srv *Server) serveMessages(s *stream, ns *netStream) error {
	receiver := make(chan struct{})
	go func() {
		defer close(receiver)
		s.cancel(srv.receiveRequests(s, ns))
	}()
	failed, err := s.sendAnswers(ns)
	if err == nil {
		err = ns.CloseWrite()
	}
	if err != nil {
		s.cancel(err)
		<-receiver
		return err
	}
	// The handler has ended, and with it the call: what the caller still sends is dropped.
	s.cancel(errFinished)
	_ = ns.SetReadDeadline(time.Now())
	<-receiver
	if !failed && !s.finSent {
		s.fin()
	}
	return errFinished
}

// receiveRequests relays the caller's messages, and then watches it: anything after the end marker, its end included, means
// that it has given up. The error says how.
func (srv *Server) receiveRequests(s *stream, ns *netStream) error {
	if err := srv.receiveMessages(s, ns, false); err != nil {
		return err
	}
	if _, err := ns.in.Peek(1); err != nil {
		return faultf(CodeCancelled, "the caller has cancelled the call or is gone")
	}
	return faultf(CodeMalformed, "bytes after the end of the requests")
}

// sendAnswers sends the handler's messages until its FIN, or its error, which is the last.
func (s *stream) sendAnswers(ns *netStream) (failed bool, err error) {
	for {
		it, err := s.next(s.ctx)
		if err != nil || it.fin {
			return false, err
		}
		head := make([]byte, 0, headRoom(it))
		if it.isError {
			ns.call.Failed(failureTold(it.payload))
			head = wire.AppendErrorHead(head, int(it.toCome))
		} else {
			head = wire.AppendFrameHead(head, wire.MarkerMessage, uint64(it.toCome))
		}
		if err := s.sendMessage(ns, head, it); err != nil || it.isError {
			return it.isError, err
		}
	}
}
