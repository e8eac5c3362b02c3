package node

import (
	"context"
	"errors"
	"fmt"
	"strings"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multistream"
)

// What can be wrong with a peer; every error of a Node that speaks of one wraps one of these or a context's error.
var (
	// ErrUnreachable: no connection could be made.
	ErrUnreachable = errors.New("unreachable")
	// ErrNotFound: no address is known for the peer. The text is what hivemind's users know.
	ErrNotFound = errors.New("routing: not found")
	// ErrNotSupported: the peer has no such handler.
	ErrNotSupported = errors.New("protocol not supported")
	// ErrBusy: the peer, or a limit of this one, admits no more.
	ErrBusy = errors.New("busy")
)

// CodeBusy is the code of streams that a peer resets because too many calls are under way.
const CodeBusy = network.StreamResourceLimitExceeded

// classifyOpen names what kept a stream to p from being opened.
func classifyOpen(p peer.ID, handler string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotSupported), isNotSupported(err):
		return fmt.Errorf("%w: %s has no handler %q", ErrNotSupported, p, handler)
	case errors.Is(err, network.ErrResourceLimitExceeded):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case isBusyReset(err): // it was faster than its own word that it has the protocol
		return errBusy(p)
	}
	return classifyConnect(p, err)
}

// classifyConnect names what kept a connection to p from being made.
func classifyConnect(p peer.ID, err error) error {
	switch {
	case err == nil, errors.Is(err, ErrUnreachable), errors.Is(err, ErrNotFound):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, routing.ErrNotFound), errors.Is(err, kb.ErrLookupFailure), errors.Is(err, swarm.ErrNoAddresses):
		return fmt.Errorf("%w: no address of %s is known", ErrNotFound, p)
	case errors.Is(err, swarm.ErrDialToSelf):
		return errSelf(p)
	}
	return fmt.Errorf("%w: %s", ErrUnreachable, dialText(p, err))
}

// handshakeText is in the library's error when a connection was made, but the two sides did not understand each other.
const handshakeText = "failed to negotiate security protocol"

// mismatchText is in it as well when they did, and the other side is another peer.
const mismatchText = "peer id mismatch"

// hint adds what a swarm key may have to do with a failed connection: without the right one, the other side is noise.
func hint(private bool, err error) error {
	if err == nil || errors.Is(err, ErrNotFound) {
		return err
	}
	text := err.Error()
	handshake := strings.Contains(text, handshakeText) && !strings.Contains(text, mismatchText)
	switch {
	case private && (handshake || errors.Is(err, context.DeadlineExceeded)):
		return fmt.Errorf("%w (this peer has a swarm key: it connects only to peers that have the same one; compare their fingerprints)", err)
	case handshake:
		return fmt.Errorf("%w (the other side may be in a private swarm, for which a swarm key is needed, take no more connections from here, or be no libp2p peer)", err)
	}
	return err
}

func errSelf(p peer.ID) error {
	return fmt.Errorf("%w: dial to self attempted: %s is this peer", ErrUnreachable, p)
}

// dialText is one line with every address and why it failed.
func dialText(p peer.ID, err error) string {
	var dial *swarm.DialError
	if !errors.As(err, &dial) {
		return fmt.Sprintf("failed to connect to %s: %s", p, err)
	}
	parts := make([]string, 0, len(dial.DialErrors)+2)
	for i := range dial.DialErrors {
		one := &dial.DialErrors[i]
		parts = append(parts, fmt.Sprintf("[%s] %s", one.Address, one.Cause))
	}
	if dial.Skipped > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", dial.Skipped))
	}
	if len(parts) == 0 {
		parts = append(parts, fmt.Sprint(dial.Cause))
	}
	return fmt.Sprintf("failed to dial %s: %s", p, strings.Join(parts, "; "))
}

// ClassifyStream names what broke an open stream. Negotiation may be lazy, so that a missing handler shows at the first read.
func ClassifyStream(p peer.ID, handler string, err error) error {
	var reset *network.StreamError
	switch {
	case isNotSupported(err):
		return fmt.Errorf("%w: %s has no handler %q", ErrNotSupported, p, handler)
	case errors.As(err, &reset) && reset.Remote && reset.ErrorCode == network.StreamProtocolNegotiationFailed:
		return fmt.Errorf("%w: %s has no handler %q", ErrNotSupported, p, handler)
	case isBusyReset(err):
		return errBusy(p)
	}
	return err
}

// isBusyReset: the peer has reset the stream as it admits no more.
func isBusyReset(err error) bool {
	var reset *network.StreamError
	return errors.As(err, &reset) && reset.Remote && (reset.ErrorCode == CodeBusy || reset.ErrorCode == network.StreamRateLimited)
}

func errBusy(p peer.ID) error {
	return fmt.Errorf("%w: %s has too many calls in flight", ErrBusy, p)
}

func isNotSupported(err error) bool {
	var a multistream.ErrNotSupported[protocol.ID]
	var b multistream.ErrNotSupported[string]
	return errors.As(err, &a) || errors.As(err, &b)
}
