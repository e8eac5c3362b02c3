package control

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxBan bounds the seconds of one ban.
const maxBan = 10 * 365 * 24 * 60 * 60

// ban closes the connections to a peer and refuses it for a time.
func (c *conn) ban(_ context.Context, req *request) (any, error) {
	info, err := peerInfo(req)
	if err != nil {
		return nil, err
	}
	if !(req.Seconds > 0 && req.Seconds <= maxBan) {
		return nil, faultf(CodeBadRequest, "seconds: %v is not in 0..%d", req.Seconds, maxBan)
	}
	return struct{}{}, c.server.network.Ban(info.ID, time.Duration(req.Seconds*float64(time.Second)))
}

// unban lets a peer in again.
func (srv *Server) unban(req *request) (any, error) {
	info, err := peerInfo(req)
	if err != nil {
		return nil, err
	}
	return map[string]any{"banned": srv.network.Guard().Unban(info.ID)}, nil
}

// maxBansTold bounds the answer of bans to a frame.
const maxBansTold = 2048

// bans are the peers that are refused now, with the seconds left.
func (srv *Server) bans() any {
	left := make(map[string]float64)
	for p, span := range srv.network.Guard().Bans() {
		if len(left) < maxBansTold {
			left[p.String()] = span.Seconds()
		}
	}
	return map[string]any{"bans": left}
}

// ping measures a round trip to a peer, without its handlers.
func (c *conn) ping(ctx context.Context, info peer.AddrInfo) (any, error) {
	took, err := c.server.network.Ping(ctx, info.ID)
	if err != nil {
		return nil, err
	}
	return map[string]any{"seconds": took.Seconds()}, nil
}
