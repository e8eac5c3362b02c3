// Package portmap asks the router of a home network to forward ports to this peer, by NAT-PMP (RFC 6886) or UPnP (the service WANIPConnection
// of an Internet Gateway Device), keeps the mappings while the peer runs, and removes them when it ends.
package portmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Port is one that this peer listens on.
type Port struct {
	UDP    bool // else TCP
	Number uint16
}

func (p Port) String() string {
	if p.UDP {
		return fmt.Sprintf("udp/%d", p.Number)
	}
	return fmt.Sprintf("tcp/%d", p.Number)
}

// Router forwards ports. Its methods are called one at a time, but for Unmap.
type Router interface {
	// Name is that of the protocol that it speaks.
	Name() string
	// External is its address on the other side.
	External(ctx context.Context) (netip.Addr, error)
	// Map has a port of the outside forwarded to the given one of this machine, or keeps it so.
	//
	//   - wanted is the port of the outside to ask for
	//   - held tells that this peer has had that one forwarded before
	//
	// It returns the port of the outside, and for how long it is forwarded; 0 is for ever.
	Map(ctx context.Context, port Port, wanted uint16, held bool) (external uint16, lease time.Duration, err error)
	// Unmap ends it.
	Unmap(ctx context.Context, port Port, external uint16) error
}

// lease is for how long routers are asked to forward a port: a peer that is killed leaves no more than that.
const lease = 10 * time.Minute

// errNoRouter: nobody in this network forwards ports.
var errNoRouter = errors.New("no router speaks NAT-PMP or UPnP")

// Find looks for a router by both protocols at once; the first answer is taken.
func Find(ctx context.Context) (Router, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ways := []func(context.Context) (Router, error){findNATPMP, findUPnP}
	type found struct {
		router Router
		err    error
	}
	all := make(chan found, len(ways))
	for _, find := range ways {
		go func() {
			router, err := find(ctx)
			all <- found{router, err}
		}()
	}
	failed := errNoRouter
	for range ways {
		select {
		case one := <-all:
			if one.err == nil {
				return one.router, nil
			}
			failed = fmt.Errorf("%w; %w", failed, one.err)
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; %w", failed, ctx.Err())
		}
	}
	return nil, failed
}
