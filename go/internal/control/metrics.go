package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"hivemind/p2pd/internal/meter"
	"hivemind/p2pd/internal/node"
)

// countFailure counts how a call failed, if it did. What its handler said is counted where it is seen.
func countFailure(call *meter.Call, way meter.Direction, err error) {
	var remote *remoteError
	switch {
	case err == nil, errors.Is(err, errFinished), errors.As(err, &remote):
	case errors.Is(err, errClientReset) && way == meter.In:
		call.Failed(meter.KindHandler)
	case errors.Is(err, errClientReset):
		call.Failed(meter.Kind(CodeCancelled))
	case errors.Is(err, errClientGone):
		call.Failed(meter.Kind(CodeClosing))
	default:
		call.Failed(meter.Kind(faultOf(err).Code))
	}
}

// busyText is how the text of an error begins of a handler that is busy: the repr of Python's HandlerBusy.
const busyText = "HandlerBusy("

// failureTold is what a handler's error counts as, by the beginning of its text.
func failureTold(text []byte) meter.Kind {
	if bytes.HasPrefix(text, []byte(busyText)) {
		return meter.Kind(CodeBusy)
	}
	return meter.KindHandler
}

// OtherProtocols is the name under which protocols are counted that have no place of their own; OtherPeers likewise.
const (
	OtherProtocols = "(other)"
	OtherPeers     = "(other)"
)

// protocolMetrics is a protocol's part of the answer of protocol_metrics.
type protocolMetrics struct {
	Name string `json:"name"`
	meter.Reading
}

// peerMetrics is a peer's part of the answer of peer_metrics.
type peerMetrics struct {
	ID string `json:"id"`
	meter.Reading
	// Connection is as ConnectionOf says, or "" if there is none.
	Connection string `json:"connection"`
	Slowed     bool   `json:"slowed"` // as it floods this peer
}

// page is one part of a table that may not fit a frame; the next begins after its last key.
type page[T any] struct {
	Entries []T  `json:"entries"`
	More    bool `json:"more"`
}

// pageBytes bounds the entries of a page.
const pageBytes = MaxPayload - 1<<10

// pageAfter returns the entries with keys greater than after, as many as fit.
func pageAfter[T any](entries []T, key func(T) string, after string) (page[T], error) {
	slices.SortFunc(entries, func(a, b T) int { return strings.Compare(key(a), key(b)) })
	answer, size := page[T]{Entries: []T{}}, 0
	for _, one := range entries {
		if key(one) <= after {
			continue
		}
		text, err := json.Marshal(one)
		if err != nil {
			return answer, err
		}
		if size += len(text) + 1; size > pageBytes {
			answer.More = true
			break
		}
		answer.Entries = append(answer.Entries, one)
	}
	return answer, nil
}

func (srv *Server) protocolMetrics(after string) (any, error) {
	readings, rest := srv.network.Meter().Protocols()
	entries := make([]protocolMetrics, 0, len(readings)+1)
	for name, reading := range readings {
		entries = append(entries, protocolMetrics{name, reading})
	}
	entries = append(entries, protocolMetrics{OtherProtocols, rest})
	return pageAfter(entries, func(p protocolMetrics) string { return p.Name }, after)
}

func (srv *Server) peerMetrics(after string) (any, error) {
	readings, rest := srv.network.Meter().Peers()
	connections := make(map[string]string)
	for _, one := range srv.network.Peers() {
		connections[one.ID.String()] = ConnectionOf(&one)
	}
	entries := make([]peerMetrics, 0, len(readings)+1)
	for p, reading := range readings {
		id := p.String()
		entries = append(entries, peerMetrics{id, reading, connections[id], srv.network.Guard().Slowed(p)})
	}
	entries = append(entries, peerMetrics{ID: OtherPeers, Reading: rest})
	return pageAfter(entries, func(p peerMetrics) string { return p.ID }, after)
}

// How peers are connected.
const (
	Direct  = "direct"
	Punched = "punched" // directly, by a hole punch
	Relayed = "relayed" // only through a relay
)

// ConnectionOf tells how a peer is connected.
func ConnectionOf(p *node.ConnectedPeer) string {
	switch {
	case p.Relayed:
		return Relayed
	case p.Punched:
		return Punched
	}
	return Direct
}
