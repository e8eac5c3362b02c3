package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"golang.org/x/sync/errgroup"
)

// dialsAtOnce of the crowd: more would only wait for the processor.
const dialsAtOnce = 16

// crowd makes peers that listen nowhere, says so, connects all of them when a line comes, says how long that took, and holds
// the connections until standard input ends.
func crowd(addr string, count int) error {
	target, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return err
	}
	hosts := make([]host.Host, count)
	for i := range hosts {
		if hosts[i], err = lightHost(); err != nil {
			return err
		}
		defer hosts[i].Close()
	}
	if err := emit(map[string]any{"made": count}); err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		return errors.New("nobody asked for the connections")
	}
	started := time.Now()
	var group errgroup.Group
	group.SetLimit(dialsAtOnce)
	for _, h := range hosts {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			return h.Connect(ctx, *target)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := emit(map[string]any{"seconds": time.Since(started).Seconds()}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

func lightHost() (host.Host, error) {
	return libp2p.New(
		libp2p.NoListenAddrs,
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
	)
}
