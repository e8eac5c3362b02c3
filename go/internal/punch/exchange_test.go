package punch

import (
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch/pb"
	"github.com/libp2p/go-msgio/pbio"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	publicTCP  = "/ip4/192.0.0.194/tcp/4001"
	publicQUIC = "/ip4/192.0.0.194/udp/4001/quic-v1"
	elsewhere  = "/ip4/192.0.0.198/tcp/4001"
	inLAN      = "/ip4/10.1.0.2/tcp/4001"
	inOtherLAN = "/ip4/10.2.0.2/tcp/4001"
	relayed    = "/ip4/192.0.0.129/tcp/4001/p2p/12D3KooWLKifE42tchWXuDRntRwJN85zKCKziLH4mp1iUyZhgiec/p2p-circuit"
)

func addrs(texts ...string) []ma.Multiaddr {
	found := make([]ma.Multiaddr, 0, len(texts))
	for _, text := range texts {
		found = append(found, ma.StringCast(text))
	}
	return found
}

func equal(a, b []ma.Multiaddr) bool { return slices.EqualFunc(a, b, ma.Multiaddr.Equal) }

// pipe is a connection whose two ends give up in time.
func pipe(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	a, b := net.Pipe()
	for _, end := range []net.Conn{a, b} {
		if err := end.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { end.Close() })
	}
	return a, b
}

func TestBothSidesLearnWhereToDial(t *testing.T) {
	caller, called := pipe(t)
	answered := make(chan error, 1)
	var theirs plan
	go func() {
		var err error
		theirs, err = respond(caller, addrs(publicTCP, publicQUIC))
		answered <- err
	}()
	ours, err := initiate(called, addrs(elsewhere), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if !equal(ours.addrs, addrs(publicTCP, publicQUIC)) || !equal(theirs.addrs, addrs(elsewhere)) {
		t.Errorf("the caller has %v, the called %v", theirs.addrs, ours.addrs)
	}
	if ours.rtt <= 0 {
		t.Error("no round trip was measured")
	}
}

// TestPeersWithoutRouterAreDialled: they offer public addresses only, and need not dial as well.
func TestPeersWithoutRouterAreDialled(t *testing.T) {
	for name, c := range map[string]struct {
		offered []ma.Multiaddr
		open    bool
	}{
		"public":          {addrs(publicTCP, publicQUIC), true},
		"behind a router": {addrs(publicTCP, inLAN), false},
	} {
		caller, called := pipe(t)
		synced := make(chan error, 1)
		go func() {
			_, err := respond(caller, c.offered)
			synced <- err
		}()
		found, err := initiate(called, addrs(elsewhere), true)
		if err != nil || found.open != c.open {
			t.Errorf("%s: open %v, %v", name, found.open, err)
		}
		called.Close()
		if err := <-synced; (err != nil) != c.open {
			t.Errorf("%s: SYNC came: %v", name, err)
		}
	}
}

func TestHostileMessages(t *testing.T) {
	many := connectMessage(slices.Repeat(addrs(publicTCP), 3*maxAddrs))
	for name, message := range map[string]*pb.HolePunch{
		"another type": {Type: pb.HolePunch_SYNC.Enum(), ObsAddrs: many.GetObsAddrs()},
		"no type":      {ObsAddrs: many.GetObsAddrs()},
		"no address":   {Type: pb.HolePunch_CONNECT.Enum()},
		"garbage":      {Type: pb.HolePunch_CONNECT.Enum(), ObsAddrs: [][]byte{{0xff, 0xff}, nil}},
		"only relayed": connectMessage(addrs(relayed)),
		"too long":     {Type: pb.HolePunch_CONNECT.Enum(), ObsAddrs: [][]byte{make([]byte, maxMessage)}},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := pipe(t)
			go func() { _ = pbio.NewDelimitedWriter(there).WriteMsg(message) }()
			if found, err := readConnect(pbio.NewDelimitedReader(here, maxMessage)); err == nil {
				t.Errorf("taken: %v", found)
			}
		})
	}
	here, there := pipe(t)
	go func() { _ = pbio.NewDelimitedWriter(there).WriteMsg(many) }()
	found, err := readConnect(pbio.NewDelimitedReader(here, maxMessage))
	if err != nil || len(found) != maxAddrs {
		t.Errorf("%d addresses, %v", len(found), err)
	}
}

func TestNobodyDialsBeforeSync(t *testing.T) {
	here, there := pipe(t)
	done := make(chan error, 1)
	go func() {
		_, err := respond(here, addrs(publicTCP))
		done <- err
	}()
	writer, reader := pbio.NewDelimitedWriter(there), pbio.NewDelimitedReader(there, maxMessage)
	if err := writer.WriteMsg(connectMessage(addrs(elsewhere))); err != nil {
		t.Fatal(err)
	}
	if _, err := readConnect(reader); err != nil {
		t.Fatal(err)
	}
	if err := writer.WriteMsg(connectMessage(addrs(elsewhere))); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("another CONNECT was taken for SYNC")
	}
	_, err := readConnect(pbio.NewDelimitedReader(&emptyReader{}, maxMessage))
	if err == nil || errors.Is(err, errNoAddrs) {
		t.Errorf("an ended stream gives %v", err)
	}
}

type emptyReader struct{}

func (*emptyReader) Read([]byte) (int, error) { return 0, net.ErrClosed }

func TestWhatOthersAreTold(t *testing.T) {
	told := offered(addrs("/ip4/127.0.0.1/tcp/4001", inLAN, relayed, publicTCP, "/ip6/::1/tcp/4001"))
	if !equal(told, addrs(publicTCP, inLAN)) {
		t.Errorf("told %v", told)
	}
	if n := len(offered(slices.Repeat(addrs(inLAN), 100))); n != maxAddrs {
		t.Errorf("%d addresses do not fit a message", n)
	}
}

func TestWhatIsDialled(t *testing.T) {
	for name, c := range map[string]struct {
		own, theirs, want []ma.Multiaddr
		isClient          bool
	}{
		"two networks":                   {addrs(publicTCP, inLAN), addrs(elsewhere, inOtherLAN), addrs(elsewhere), true},
		"one network, the client":        {addrs(publicTCP, inLAN), addrs(publicQUIC, inLAN), addrs(publicQUIC, inLAN), true},
		"one network, the server":        {addrs(publicTCP, inLAN), addrs(publicQUIC, inLAN), addrs(publicQUIC), false},
		"private addresses are no proof": {addrs(inLAN), addrs(inLAN), nil, true},
	} {
		if got := targets(c.own, c.theirs, c.isClient); !equal(got, c.want) {
			t.Errorf("%s: %v is dialled", name, got)
		}
	}
}

// way is a relayed connection.
type way struct {
	network.Conn
	direction network.Direction
}

func (w way) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Direction: w.direction}}
}

func TestOneOfTwoAsks(t *testing.T) {
	in, out := way{direction: network.DirInbound}, way{direction: network.DirOutbound}
	for name, c := range map[string]struct {
		own, remote string
		ways        []network.Conn
		asks        bool
	}{
		"who was called":            {"b", "a", []network.Conn{in}, true},
		"who called":                {"a", "b", []network.Conn{out}, false},
		"both called, smaller id":   {"a", "b", []network.Conn{out, in}, true},
		"both called, greater id":   {"b", "a", []network.Conn{in, out}, false},
		"no connection any more":    {"a", "b", nil, false},
		"called twice by the other": {"b", "a", []network.Conn{in, in}, true},
	} {
		got := wayToAsk(peer.ID(c.own), peer.ID(c.remote), c.ways)
		if (got != nil) != c.asks {
			t.Errorf("%s: asks on %v", name, got)
		}
		if got != nil && got.Stat().Direction != network.DirInbound {
			t.Errorf("%s: asks on a connection whose other end refuses", name)
		}
	}
}

func TestWhoSeemsPublic(t *testing.T) {
	for name, c := range map[string]struct {
		addrs []ma.Multiaddr
		want  bool
	}{
		"a server":           {addrs(publicTCP, inLAN), true},
		"with a relay":       {addrs(publicTCP, relayed), false},
		"only its own house": {addrs(inLAN), false},
		"nothing":            {nil, false},
	} {
		if seemsPublic(c.addrs) != c.want {
			t.Errorf("%s: %v", name, !c.want)
		}
	}
}
