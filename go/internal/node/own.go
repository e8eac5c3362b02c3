package node

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// ownWay is how this peer calls itself, which the library does not dial: streams of a connection whose two ends are here. Only what
// was registered by Node.Handle is reached by it. The connection is made when it is first used. Safe for concurrent use.
type ownWay struct {
	id peer.ID

	mu       sync.Mutex
	handlers map[protocol.ID]func(network.Stream) // mu
	near     network.MuxedConn                    // mu: where streams are opened; nil before the first
	far      network.MuxedConn                    // mu: where they arrive
	closed   bool                                 // mu

	running sync.WaitGroup // those who accept
}

func newOwnWay(id peer.ID) *ownWay {
	return &ownWay{id: id, handlers: make(map[protocol.ID]func(network.Stream))}
}

func (o *ownWay) handle(name protocol.ID, serve func(network.Stream)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.handlers[name] = serve
}

func (o *ownWay) unhandle(name protocol.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.handlers, name)
}

func (o *ownWay) handlerOf(name protocol.ID) func(network.Stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.handlers[name]
}

// open opens a stream to the handler of the first of the names that has one.
func (o *ownWay) open(ctx context.Context, names ...protocol.ID) (network.Stream, error) {
	for _, name := range names {
		if o.handlerOf(name) == nil {
			continue
		}
		conn, err := o.connect()
		if err != nil {
			return nil, err
		}
		raw, err := conn.OpenStream(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := raw.Write(append(binary.AppendUvarint(nil, uint64(len(name))), name...)); err != nil {
			_ = raw.Reset()
			return nil, err
		}
		return &ownStream{MuxedStream: raw, conn: &ownConn{MuxedConn: conn, way: o}, name: name}, nil
	}
	return nil, ErrNotSupported
}

func (o *ownWay) connect() (network.MuxedConn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, net.ErrClosed
	}
	if o.near != nil {
		return o.near, nil
	}
	one, other := net.Pipe()
	// the two greet each other
	greeted := make(chan error, 1)
	var far network.MuxedConn
	go func() {
		var err error
		far, err = muxer().NewConn(other, true, nil)
		greeted <- err
	}()
	near, err := muxer().NewConn(one, false, nil)
	if other := <-greeted; err == nil {
		err = other
	}
	if err != nil {
		return nil, err
	}
	o.near, o.far = near, far
	o.running.Add(1)
	go o.accept(far)
	return near, nil
}

func (o *ownWay) accept(conn network.MuxedConn) {
	defer o.running.Done()
	for {
		raw, err := conn.AcceptStream()
		if err != nil {
			return
		}
		go o.serve(&ownStream{MuxedStream: raw, conn: &ownConn{MuxedConn: conn, way: o}})
	}
}

func (o *ownWay) serve(s *ownStream) {
	size, err := binary.ReadUvarint(oneByte{s})
	name := make([]byte, min(size, maxOwnName))
	if err == nil {
		_, err = io.ReadFull(s, name)
	}
	s.name = protocol.ID(name)
	serve := o.handlerOf(s.name)
	switch {
	case err != nil:
		_ = s.Reset()
	case serve == nil: // it was removed meanwhile
		_ = s.ResetWithError(network.StreamProtocolNegotiationFailed)
	default:
		serve(s)
	}
}

// maxOwnName is what no name passes.
const maxOwnName = 4096

// oneByte takes no byte too many.
type oneByte struct{ io.Reader }

// ReadByte implements io.ByteReader.
func (r oneByte) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r.Reader, b[:])
	return b[0], err
}

func (o *ownWay) close() {
	o.mu.Lock()
	o.closed = true
	near, far := o.near, o.far
	o.mu.Unlock()
	if near != nil {
		_ = near.Close()
		_ = far.Close()
	}
	o.running.Wait()
}

// ownStream is one end of a stream of this peer to itself.
type ownStream struct {
	network.MuxedStream
	conn *ownConn
	name protocol.ID
}

func (s *ownStream) ID() string                       { return "own" }
func (s *ownStream) Protocol() protocol.ID            { return s.name }
func (s *ownStream) SetProtocol(id protocol.ID) error { s.name = id; return nil }
func (s *ownStream) Stat() network.Stats              { return network.Stats{} }
func (s *ownStream) Conn() network.Conn               { return s.conn }
func (s *ownStream) Scope() network.StreamScope       { return &network.NullScope{} }

// ownConn is one end of the connection of this peer to itself.
type ownConn struct {
	network.MuxedConn
	way *ownWay
}

func (c *ownConn) ID() string                         { return "own" }
func (c *ownConn) LocalPeer() peer.ID                 { return c.way.id }
func (c *ownConn) RemotePeer() peer.ID                { return c.way.id }
func (c *ownConn) RemotePublicKey() ic.PubKey         { key, _ := c.way.id.ExtractPublicKey(); return key }
func (c *ownConn) ConnState() network.ConnectionState { return network.ConnectionState{} }
func (c *ownConn) LocalMultiaddr() ma.Multiaddr       { return nil }
func (c *ownConn) RemoteMultiaddr() ma.Multiaddr      { return nil }
func (c *ownConn) Stat() network.ConnStats            { return network.ConnStats{} }
func (c *ownConn) Scope() network.ConnScope           { return &network.NullScope{} }
func (c *ownConn) GetStreams() []network.Stream       { return nil }
func (c *ownConn) NewStream(ctx context.Context) (network.Stream, error) {
	raw, err := c.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return &ownStream{MuxedStream: raw, conn: c}, nil
}
