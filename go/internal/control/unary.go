package control

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/wire"
)

// inlineLimit: messages up to this size go out in one write with their head, and to the client in one frame.
const inlineLimit = 32 << 10

// callUnary runs a unary call of the client: its request out, the answer back.
func (srv *Server) callUnary(s *stream, call *meter.Call, p peer.ID, name string) error {
	first, err := s.next(s.ctx)
	if err != nil {
		return err
	}
	if first.fin || first.isError {
		first.owned.free()
		return faultf(CodeBadRequest, "a unary call begins with its request")
	}
	req := wire.Request{Peer: []byte(p), Handler: name}
	if _, err := rand.Read(req.CallID[:]); err != nil {
		return err
	}
	size := int(first.toCome)
	if whole := wire.RequestSize(&req, size); int64(whole) > srv.limits.MaxUnary {
		first.owned.free()
		return faultf(CodeTooLarge, "a request of %d bytes with its envelope; the limit is %d", whole, srv.limits.MaxUnary)
	}
	return srv.withCallStream(s, call, p, name, func(ns *netStream) error {
		head := wire.AppendRequest(make([]byte, 0, headRoom(first)), &req, size)
		if err := s.sendMessage(ns, head, first); err != nil {
			if !isNetwork(err) {
				return err
			}
			ns.spoiled = true
		}
		// A peer that refuses a request answers or resets before it has read all: what it says counts, not the broken write.
		return srv.receiveAnswer(s, ns)
	})
}

// receiveAnswer reads the answer of a unary call and relays it to the client.
func (srv *Server) receiveAnswer(s *stream, ns *netStream) error {
	size, err := readSize(ns, srv.limits.MaxUnary)
	if err != nil {
		return err
	}
	head, err := ns.in.Peek(min(size, wire.MaxEnvelopeHead))
	if err != nil {
		return readFault(ns, err)
	}
	body := ns.in
	res, used, ok := wire.SplitResponse(head, size)
	if ok {
		_, _ = ns.in.Discard(used) // it was peeked
		size -= used
	} else {
		message, err := readWhole(ns.in, size)
		if err != nil {
			return readFault(ns, err)
		}
		var data []byte
		if res, data, err = wire.ParseResponse(message); err != nil {
			return err
		}
		body, size = bufio.NewReader(bytes.NewReader(data)), len(data)
	}
	var flags uint8
	if res.IsError {
		flags = flagError
		begin, _ := body.Peek(min(size, len(busyText))) // if it fails, so does what follows
		ns.call.Failed(failureTold(begin))
	}
	return networkFault(ns, s.relay(body, size, flags))
}

// sendMessage writes a head and the message that begins with first to the network, as the client's frames come.
func (s *stream) sendMessage(ns *netStream, head []byte, first item) error {
	toCome := first.toCome
	for it := first; ; {
		if it.toCome != toCome || it.fin || it.isError != first.isError {
			s.done(it)
			return fmt.Errorf("%w: stream %d ended a message early", errProtocol, s.id)
		}
		err := writeBoth(ns, head, it.payload)
		toCome -= uint32(len(it.payload))
		s.done(it)
		if err != nil {
			return &writeError{streamFault(ns, err)}
		}
		if toCome == 0 {
			return nil
		}
		if it, err = s.next(s.ctx); err != nil {
			return err
		}
		head = nil
	}
}

// headRoom is the space for the head of a message, and for its first bytes where writeBoth puts them behind it.
func headRoom(first item) int {
	const most = 256 // a longer head, of a long handler name, costs an allocation more
	if len(first.payload) <= inlineLimit {
		return most + len(first.payload)
	}
	return most
}

// writeBoth writes head and payload, in one piece if they are small: each write is a record of its own on the network.
func writeBoth(ns *netStream, head, payload []byte) error {
	if len(payload) <= inlineLimit && len(head) > 0 {
		head, payload = append(head, payload...), nil
	}
	if len(head) > 0 {
		if _, err := ns.Write(head); err != nil {
			return err
		}
	}
	if len(payload) == 0 {
		return nil
	}
	_, err := ns.Write(payload)
	return err
}

// writeError is a failed write to the network.
type writeError struct{ fault *Fault }

func (e *writeError) Error() string { return e.fault.Text }
func (e *writeError) Unwrap() error { return e.fault }

func isNetwork(err error) bool {
	var write *writeError
	return errors.As(err, &write)
}

// networkFault turns a network stream's error of relay into its fault.
func networkFault(ns *netStream, err error) error {
	var read *readError
	if errors.As(err, &read) {
		return readFault(ns, read.err)
	}
	return err
}

// readSize reads the length prefix of an envelope.
func readSize(ns *netStream, limit int64) (int, error) {
	var size uint64
	for shift := 0; ; shift += 7 {
		b, err := ns.in.ReadByte()
		if err == io.EOF { //nolint:errorlint // a wrapped EOF is a broken connection
			return 0, faultf(CodeRemoteReset, "the peer closed the stream without a message")
		}
		if err != nil {
			return 0, streamFault(ns, err)
		}
		size |= uint64(b&0x7f) << shift
		switch {
		case shift >= 28 || size > uint64(limit):
			return 0, faultf(CodeTooLarge, "the peer announces a message over the limit of %d bytes", limit)
		case b < 0x80 && size == 0:
			return 0, faultf(CodeMalformed, "%s: an empty envelope", wire.ErrMalformed)
		case b < 0x80:
			return int(size), nil
		}
	}
}

// readWhole reads a message into memory that grows as it comes, as its announced size may be a lie.
func readWhole(in io.Reader, size int) ([]byte, error) {
	var message bytes.Buffer
	n, err := io.Copy(&message, io.LimitReader(in, int64(size)))
	if err == nil && n < int64(size) {
		err = io.ErrUnexpectedEOF
	}
	return message.Bytes(), err
}
