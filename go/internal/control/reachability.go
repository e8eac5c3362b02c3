package control

import (
	"encoding/json"
	"slices"
	"strings"
)

// reachabilityAnswer is the answer of the request reachability and, with a name, the payload of the event.
type reachabilityAnswer struct {
	Event   string        `json:"event,omitempty"`
	Verdict string        `json:"verdict"`
	Forced  bool          `json:"forced"`
	Relays  []relayAnswer `json:"relays"`
	Addrs   []addrAnswer  `json:"addrs"`
	Peers   peersAnswer   `json:"peers"`
	NAT     natAnswer     `json:"nat"`
	// MappedBy is "NAT-PMP", "UPnP" or "".
	MappedBy string `json:"mapped_by"`
	// Observed are the addresses at which peers have seen this one, those with the most witnesses first.
	Observed []observedAnswer `json:"observed"`
	// Widest is the scope of the farthest peer so far: "machine", "network", "internet", or "" before there was one.
	Widest string `json:"widest"`
}

// natAnswer is the type of the NAT for each transport: "none", "cone", "symmetric" or "unknown".
type natAnswer struct {
	TCP string `json:"tcp"`
	UDP string `json:"udp"`
}

type observedAnswer struct {
	Addr  string `json:"addr"`
	Peers int    `json:"peers"`
}

// relayAnswer is a relay that takes calls for this peer; the limits are those of one circuit, 0 is none.
type relayAnswer struct {
	ID      string  `json:"id"`
	Seconds float64 `json:"seconds"`
	Bytes   uint64  `json:"bytes"`
}

type addrAnswer struct {
	Addr  string `json:"addr"`
	State string `json:"state"`
}

// peersAnswer counts connected peers: directly, those of them by a hole punch, and through a relay.
type peersAnswer struct {
	Direct  int `json:"direct"`
	Punched int `json:"punched"`
	Relayed int `json:"relayed"`
}

func (srv *Server) reachability() *reachabilityAnswer {
	state := srv.network.Reachability()
	answer := &reachabilityAnswer{Verdict: state.Verdict, Forced: state.Forced, Relays: []relayAnswer{}, Addrs: []addrAnswer{}}
	answer.NAT, answer.Widest = natAnswer{state.NATOfTCP, state.NATOfUDP}, state.Widest
	answer.MappedBy, answer.Observed = state.MappedBy, []observedAnswer{}
	for _, one := range state.Observed {
		answer.Observed = append(answer.Observed, observedAnswer{one.Addr.String(), one.Peers})
	}
	for p, limit := range state.Relays {
		answer.Relays = append(answer.Relays, relayAnswer{p.String(), limit.Duration.Seconds(), limit.Data})
	}
	slices.SortFunc(answer.Relays, func(a, b relayAnswer) int { return strings.Compare(a.ID, b.ID) })
	for _, one := range state.Addrs {
		answer.Addrs = append(answer.Addrs, addrAnswer{one.Addr.String(), one.State})
	}
	for _, one := range srv.network.Peers() {
		if one.Punched {
			answer.Peers.Punched++
		}
		if one.Relayed {
			answer.Peers.Relayed++
		} else {
			answer.Peers.Direct++
		}
	}
	return answer
}

// tellReachability sends the event. It does not wait: a client that does not read is served no other way either.
func (c *conn) tellReachability() {
	answer := c.server.reachability()
	answer.Event = "reachability"
	payload, err := json.Marshal(answer)
	if err != nil || len(payload) > MaxPayload {
		c.server.log.Error("the reachability does not fit a frame", "error", err)
		return
	}
	c.out.send(frame{head: header{kind: typeEvent}, payload: payload})
}
