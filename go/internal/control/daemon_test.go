package control

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/node"
)

// daemon is a node with a server and an owner's client.
type daemon struct {
	*client
	node   *node.Node
	server *Server
}

func testConfig() config.Config {
	cfg := config.Default()
	cfg.AutoNAT, cfg.Relay = false, false
	return cfg
}

func startNode(t testing.TB, cfg config.Config) *node.Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n, err := node.New(ctx, &cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func startDaemon(t testing.TB, change func(*config.Config)) *daemon {
	t.Helper()
	cfg := testConfig()
	if change != nil {
		change(&cfg)
	}
	n := startNode(t, cfg)
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("P2PD_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	d := &daemon{node: n, server: NewServer(n, LimitsOf(&cfg), log)}
	t.Cleanup(d.server.Close)
	d.client = d.connect(t, true)
	return d
}

// connect makes another control connection, as a guest or as the owner.
func (d *daemon) connect(t testing.TB, owner bool) *client {
	t.Helper()
	ours, theirs := socketPair(t)
	go d.server.ServeConn(theirs, owner)
	c := newClient(t, ours)
	c.must(map[string]any{"op": "hello", "version": Version})
	return c
}

func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := Inherited(fds[0])
	b, errB := Inherited(fds[1])
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// startPair starts two daemons that are connected.
func startPair(t testing.TB) (a, b *daemon) {
	t.Helper()
	a, b = startDaemon(t, nil), startDaemon(t, nil)
	a.meet(b)
	return a, b
}

func pattern(n int) []byte {
	return bytes.Repeat([]byte("hivemind"), n/8+1)[:n]
}

// meet connects a to b.
func (d *daemon) meet(other *daemon) {
	d.t.Helper()
	d.must(map[string]any{
		"op": "connect", "peer": other.node.ID().String(), "addrs": Texts(other.node.Addrs()), "timeout": patience.Seconds(),
	})
}

func peerAddr(d *daemon) peer.AddrInfo {
	infos, err := peer.AddrInfosFromP2pAddrs(d.node.Addrs()...)
	if err != nil || len(infos) != 1 {
		d.t.Fatalf("own addresses %v: %v", d.node.Addrs(), err)
	}
	return infos[0]
}
