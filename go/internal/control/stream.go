package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// item is a DATA or FIN frame on its way from the client to the network.
type item struct {
	fin     bool
	isError bool
	toCome  uint32 // bytes of the message from this payload on
	payload []byte
	owned   *buffer
}

// cost is the credit that a frame takes.
func (it *item) cost() int {
	if it.fin {
		return 0
	}
	return len(it.payload) + frameCost
}

// stream is one stream of a control connection. Its runner goroutines move messages between it and a network stream; the
// connection's reader only fills the inbox and never waits.
type stream struct {
	conn *conn
	id   uint32
	mode Mode
	// ctx ends with the stream; its cause tells why.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu        sync.Mutex
	inbox     []item  // mu: frames from the client in order
	allowance int     // mu: what the client may still send
	credit    int     // mu: what this side may still send
	unread    int     // mu: what this side has sent and was not granted anew: the client may not have read it
	shares    []share // mu: of the peer's budget, for messages that the client may not have read; the oldest first
	shared    int     // mu: bytes of shares

	arrived chan struct{} // signals a change of inbox
	granted chan struct{} // signals a change of credit

	budget   *budget     // of the peer whose messages come, if it is the caller; set before the runners start
	opening  *time.Timer // OPEN's timeout; nil if none, set before the runners start
	consumed int         // of the runner that reads the inbox: what was taken since the last WINDOW
	finSent  bool        // of the runner that reads the network
}

func newStream(c *conn, id uint32, mode Mode) *stream {
	s := &stream{
		conn: c, id: id, mode: mode, allowance: Window, credit: Window,
		arrived: make(chan struct{}, 1), granted: make(chan struct{}, 1),
	}
	s.ctx, s.cancel = context.WithCancelCause(c.ctx)
	return s
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// put takes a frame from the client; its payload must be within the credit.
func (s *stream) put(it item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if over := it.cost() - s.allowance; over > 0 {
		return fmt.Errorf("%w: stream %d sent %d bytes over its credit", errProtocol, s.id, over)
	}
	s.allowance -= it.cost()
	s.inbox = append(s.inbox, it)
	signal(s.arrived)
	return nil
}

// next waits for the client's next frame; the caller hands it to done.
func (s *stream) next(ctx context.Context) (item, error) {
	for {
		s.mu.Lock()
		if len(s.inbox) > 0 {
			it := s.inbox[0]
			s.inbox[0] = item{}
			s.inbox = s.inbox[1:]
			s.mu.Unlock()
			return it, nil
		}
		s.mu.Unlock()
		select {
		case <-s.arrived:
		case <-ctx.Done():
			return item{}, context.Cause(ctx)
		}
	}
}

// share is what a message has of the peer's budget.
type share struct {
	size int
	give func()
}

// keep gives a message's share of the budget back once the client has read the message: when its credit was granted anew. Of what the client may
// have read without granting it, as it grants in portions, nothing is kept.
func (s *stream) keep(one share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shares = append(s.shares, one)
	s.shared += one.size
	s.giveShares()
}

// giveShares gives back what is read. mu is held.
func (s *stream) giveShares() {
	for len(s.shares) > 0 && (s.ctx.Err() != nil || s.shared-s.shares[0].size >= s.unread-portion) {
		s.shares[0].give()
		s.shared -= s.shares[0].size
		s.shares[0] = share{}
		s.shares = s.shares[1:]
	}
}

// giveAllShares is for the end of the stream, when ctx has ended: the client keeps nothing of it.
func (s *stream) giveAllShares() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveShares()
}

// done frees a frame's buffer and grants the client new credit, in portions.
func (s *stream) done(it item) {
	s.consumed += it.cost()
	it.owned.free()
	if s.consumed < portion {
		return
	}
	s.mu.Lock()
	s.allowance += s.consumed
	s.mu.Unlock()
	s.conn.out.send(frame{head: header{kind: typeWindow, stream: s.id, aux: uint32(s.consumed)}})
	s.consumed = 0
}

// grant adds to the credit of this side.
func (s *stream) grant(n uint32) error {
	const most = 1 << 30
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.credit+int(n) > most {
		return fmt.Errorf("%w: stream %d was granted more than %d bytes", errProtocol, s.id, most)
	}
	s.credit += int(n)
	s.unread -= int(n)
	s.giveShares()
	signal(s.granted)
	return nil
}

// takeCredit waits for credit and takes that of one frame, of up to want bytes.
func (s *stream) takeCredit(want int) (int, error) {
	for {
		s.mu.Lock()
		n, enough := min(want, s.credit-frameCost), s.credit >= min(want, leastPart)+frameCost
		if enough {
			s.credit -= n + frameCost
			s.unread += n + frameCost
		}
		s.mu.Unlock()
		if enough {
			return n, nil
		}
		select {
		case <-s.granted:
		case <-s.ctx.Done():
			return 0, context.Cause(s.ctx)
		}
	}
}

// giveBack returns credit that was taken and not used.
func (s *stream) giveBack(n int) {
	s.mu.Lock()
	s.credit += n
	s.unread -= n
	s.mu.Unlock()
}

// awaitCredit waits until there is credit, which is when the network may be read.
func (s *stream) awaitCredit() error {
	n, err := s.takeCredit(0)
	if err == nil {
		s.giveBack(n + frameCost)
	}
	return err
}

// relay sends one message of size bytes from r to the client, in pieces as they come. An error of r comes as readError.
func (s *stream) relay(r io.Reader, size int, flags uint8) error {
	toCome := size
	for first := true; first || toCome > 0; first = false {
		n, err := s.takeCredit(min(toCome, MaxPayload))
		if err != nil {
			return err
		}
		buf := newBuffer(n)
		if _, err := io.ReadFull(r, buf.data); err != nil {
			buf.free()
			return &readError{err}
		}
		head := header{kind: typeData, flags: flags, stream: s.id, aux: uint32(toCome)}
		if !s.conn.out.sendData(frame{head: head, payload: buf.data, owned: buf}) {
			return errClientGone
		}
		toCome -= n
	}
	return nil
}

// readError is an error of the network stream, not of the client's side.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// fin tells the client that no more messages come.
func (s *stream) fin() {
	s.finSent = true
	s.conn.out.send(frame{head: header{kind: typeFin, stream: s.id}})
}

// reset tells the client that the stream is over, and why.
func (s *stream) reset(fault *Fault) {
	s.conn.out.send(frame{
		head:    header{kind: typeReset, code: uint16(fault.Code), stream: s.id},
		payload: truncate(fault.Text),
	})
}

// maxText bounds the text of a RESET; a peer's text may be inside.
const maxText = 16 << 10

func truncate(text string) []byte {
	if len(text) > maxText {
		text = text[:maxText]
	}
	return []byte(text)
}

// over ends the stream: it is unknown from here on, and its runners stop.
func (s *stream) over(cause error) {
	s.cancel(cause)
	s.conn.forget(s)
	s.mu.Lock()
	for _, it := range s.inbox {
		it.owned.free()
	}
	s.inbox = nil
	s.mu.Unlock()
}

// withDetail adds to a deadline's text what was being waited for.
func withDetail(cause, err error) error {
	var fault *Fault
	if errors.As(cause, &fault) && fault.Code == CodeDeadline && errors.Is(err, context.Canceled) {
		return faultf(CodeDeadline, "%s: %s", fault.Text, err)
	}
	return cause
}

// fail ends the stream with a RESET, unless it was the client that ended it.
func (s *stream) fail(err error) {
	if cause := context.Cause(s.ctx); cause != nil {
		err = withDetail(cause, err)
	}
	if !errors.Is(err, errClientReset) && !errors.Is(err, errClientGone) && !errors.Is(err, errFinished) {
		s.reset(faultOf(err))
	}
	s.over(err)
}
