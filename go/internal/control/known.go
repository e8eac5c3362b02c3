package control

import (
	"encoding/json"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// watch begins the events of a connection.
func (c *conn) watch(peers bool) {
	c.unwatch = c.server.network.WatchReachability(c.tellReachability)
	if peers {
		reachability, known, bans := c.unwatch, c.server.network.WatchPeers(c.tellPeers), c.server.network.WatchBans(c.tellBan)
		c.unwatch = func() {
			reachability()
			known()
			bans()
		}
	}
}

// tellBan sends the event banned: a daemon that takes this one's place is to refuse that peer as well.
func (c *conn) tellBan(p peer.ID, span time.Duration) {
	payload, err := json.Marshal(map[string]any{"event": "banned", "peer": p.String(), "seconds": span.Seconds()})
	if err != nil { // a text and a number
		c.server.log.Error("event banned", "error", err)
		return
	}
	c.out.send(frame{head: header{kind: typeEvent}, payload: payload})
}

// tellPeers sends the event peers: by them a daemon that takes this one's place finds back into the swarm.
func (c *conn) tellPeers() {
	known := c.server.network.Known()
	peers := make([]peerAnswer, 0, len(known))
	for _, one := range known {
		peers = append(peers, peerText(one))
	}
	payload, err := json.Marshal(map[string]any{"event": "peers", "peers": peers})
	if err != nil || len(payload) > MaxPayload {
		c.server.log.Error("the known peers do not fit a frame", "error", err)
		return
	}
	c.out.send(frame{head: header{kind: typeEvent}, payload: payload})
}
