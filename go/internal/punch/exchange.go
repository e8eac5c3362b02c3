package punch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch/pb"
	"github.com/libp2p/go-msgio/pbio"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
)

// ProtocolID names DCUtR on the wire.
const ProtocolID protocol.ID = "/libp2p/dcutr"

const (
	// maxMessage bounds one message of the exchange.
	maxMessage = 4 << 10
	// maxAddrs bounds the addresses of a peer that are dialled.
	maxAddrs = 16
	// exchangeTime bounds the exchange.
	exchangeTime = 15 * time.Second
)

var errNoAddrs = errors.New("no public address")

// plan is what both peers of an exchange know when it is done.
type plan struct {
	addrs []ma.Multiaddr // the other peer's
	rtt   time.Duration  // through the relay; measured by the initiator
	open  bool           // the other peer seems to be on no network of its own: it is dialled without being asked to dial
}

// openOn opens a stream on this very connection: the host would choose among several, and the other peer takes the stream only on one that
// it has dialled.
func openOn(ctx context.Context, conn network.Conn) (network.Stream, error) {
	stream, err := conn.NewStream(network.WithAllowLimitedConn(ctx, "hole punching"))
	if err != nil {
		return nil, err
	}
	if err := stream.SetDeadline(time.Now().Add(exchangeTime)); err != nil {
		_ = stream.Reset()
		return nil, err
	}
	if _, err := multistream.SelectOneOf([]protocol.ID{ProtocolID}, stream); err != nil {
		_ = stream.Reset()
		return nil, err
	}
	if err := stream.SetProtocol(ProtocolID); err != nil {
		_ = stream.Reset()
		return nil, err
	}
	return stream, nil
}

// initiate is the exchange as the peer that was called through the relay has it. The other side dials when it reads SYNC, half a round trip
// after initiate returns. Where plain is set, a peer on no network of its own is sent none.
func initiate(stream io.ReadWriter, own []ma.Multiaddr, plain bool) (plan, error) {
	reader, writer := pbio.NewDelimitedReader(stream, maxMessage), pbio.NewDelimitedWriter(stream)
	asked := time.Now()
	if err := writer.WriteMsg(connectMessage(own)); err != nil {
		return plan{}, err
	}
	addrs, err := readConnect(reader)
	if err != nil {
		return plan{}, err
	}
	found := plan{addrs: addrs, rtt: time.Since(asked)}
	if plain && hasOnlyPublic(addrs) {
		found.open = true
		return found, nil
	}
	return found, writer.WriteMsg(&pb.HolePunch{Type: pb.HolePunch_SYNC.Enum()})
}

// respond is the exchange as the peer that called through the relay has it, which dials when respond returns.
func respond(stream io.ReadWriter, own []ma.Multiaddr) (plan, error) {
	reader, writer := pbio.NewDelimitedReader(stream, maxMessage), pbio.NewDelimitedWriter(stream)
	addrs, err := readConnect(reader)
	if err != nil {
		return plan{}, err
	}
	if err := writer.WriteMsg(connectMessage(own)); err != nil {
		return plan{}, err
	}
	var sync pb.HolePunch
	if err := reader.ReadMsg(&sync); err != nil {
		return plan{}, err
	}
	if sync.GetType() != pb.HolePunch_SYNC {
		return plan{}, fmt.Errorf("%s came instead of SYNC", sync.GetType())
	}
	return plan{addrs: addrs}, nil
}

func connectMessage(addrs []ma.Multiaddr) *pb.HolePunch {
	message := &pb.HolePunch{Type: pb.HolePunch_CONNECT.Enum()}
	for _, addr := range addrs {
		message.ObsAddrs = append(message.ObsAddrs, addr.Bytes())
	}
	return message
}

func readConnect(reader pbio.Reader) ([]ma.Multiaddr, error) {
	var message pb.HolePunch
	if err := reader.ReadMsg(&message); err != nil {
		return nil, err
	}
	if message.GetType() != pb.HolePunch_CONNECT {
		return nil, fmt.Errorf("%s came instead of CONNECT", message.GetType())
	}
	var addrs []ma.Multiaddr
	for _, raw := range message.GetObsAddrs() {
		addr, err := ma.NewMultiaddrBytes(raw)
		if err == nil && !IsRelayed(addr) && len(addrs) < maxAddrs {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("the other peer knows of %w", errNoAddrs)
	}
	return addrs, nil
}
