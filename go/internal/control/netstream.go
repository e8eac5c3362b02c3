package control

import (
	"bufio"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"hivemind/p2pd/internal/meter"
)

// netStream is a stream of the network, read through a small buffer.
type netStream struct {
	network.Stream
	in   *bufio.Reader
	name string      // of the handler
	call *meter.Call // counts the bytes; nil between two calls
	// early are bytes that came between two calls.
	early int
	// spoiled: it can carry no more calls.
	spoiled bool
	// bounded: a write that makes no progress for stallTimeout fails.
	bounded bool
}

// Write implements io.Writer.
func (s *netStream) Write(p []byte) (int, error) {
	if s.bounded {
		_ = s.SetWriteDeadline(time.Now().Add(stallTimeout))
	}
	n, err := s.Stream.Write(p)
	s.call.Sent(n)
	return n, err
}

// Read implements io.Reader, past the buffer.
func (s *netStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if s.call == nil {
		s.early += n
	} else {
		s.call.Received(n)
	}
	return n, err
}

// boundedReader reads the stream through its buffer; a read that makes no progress for stallTimeout fails.
type boundedReader struct{ *netStream }

// Read implements io.Reader.
func (r boundedReader) Read(p []byte) (int, error) {
	if r.in.Buffered() == 0 {
		_ = r.SetReadDeadline(time.Now().Add(stallTimeout))
	}
	return r.in.Read(p)
}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}

func newNetStream(raw network.Stream, call *meter.Call, name string) *netStream {
	in, _ := readers.Get().(*bufio.Reader)
	s := &netStream{Stream: raw, in: in, call: call, name: name}
	in.Reset(s)
	return s
}

// free gives the read buffer back, when no goroutine reads any more.
func (s *netStream) free() {
	s.in.Reset(nil)
	readers.Put(s.in)
	s.in = nil
}

// stallTimeout bounds how long a peer may leave a unary message half sent or half read.
const stallTimeout = time.Minute

// lingerTimeout bounds the wait for a caller to close its side after it has had everything.
const lingerTimeout = 10 * time.Second

// abort resets the stream: the peer must see that it did not end well.
func (s *netStream) abort(fault *Fault) {
	_ = s.ResetWithError(resetCode(fault)) // a stream that is gone already needs none
}

// linger reads and drops what the peer still sends, until it closes its side or lingerTimeout has passed, and closes the
// stream. Closing before that may lose the tail of what was sent, over QUIC.
func (s *netStream) linger() {
	_ = s.SetReadDeadline(time.Now().Add(lingerTimeout))
	if _, err := io.Copy(io.Discard, s.in); err != nil {
		_ = s.Reset()
		return
	}
	_ = s.Close()
}
