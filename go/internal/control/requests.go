package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"hivemind/p2pd/internal/config"
)

// request is the payload of a REQUEST: an op with those of the fields it takes.
type request struct {
	Op          string   `json:"op"`
	Version     int      `json:"version"`
	WatchPeers  bool     `json:"watch_peers"`
	Name        string   `json:"name"`
	Mode        Mode     `json:"mode"`
	Balanced    bool     `json:"balanced"`
	MaxInFlight int      `json:"max_in_flight"`
	Peer        string   `json:"peer"`
	Addrs       []string `json:"addrs"`
	Timeout     float64  `json:"timeout"`
	Peers       []string `json:"peers"`
	After       string   `json:"after"`
	Seconds     float64  `json:"seconds"`
}

type helloAnswer struct {
	Version    int    `json:"version"`
	PeerID     string `json:"peer_id"`
	Window     int    `json:"window"`
	MaxFrame   int    `json:"max_frame"`
	MaxMessage int64  `json:"max_message"`
	MaxUnary   int64  `json:"max_unary"`
	Metrics    string `json:"metrics"`
}

type peerAnswer struct {
	ID    string   `json:"id"`
	Addrs []string `json:"addrs"`
}

// connectedAnswer is a peer that is connected.
type connectedAnswer struct {
	peerAnswer
	Relayed   bool   `json:"relayed"`
	Punched   bool   `json:"punched"`
	Transport string `json:"transport"`
}

type errorAnswer struct {
	Code  Code   `json:"code"`
	Error string `json:"error"`
}

// request handles a REQUEST. Those that wait for the network run on their own; the others are answered in order.
func (c *conn) request(id uint32, payload []byte) error {
	var req request
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&req); err != nil {
		c.respond(id, nil, faultf(CodeBadRequest, "not a request: %s", err))
		return nil
	}
	if !c.greeted {
		if req.Op != "hello" || req.Version != Version {
			fault := faultf(CodeBadRequest, "the first request is hello with version %d", Version)
			c.respond(id, nil, fault)
			c.out.close(true)
			<-c.out.done
			return fmt.Errorf("%w: %s", errProtocol, fault.Text)
		}
		c.greeted = true
	}
	if slow := c.slowOps()[req.Op]; slow != nil {
		c.mu.Lock()
		live := c.streams != nil
		if live {
			c.running.Add(1)
		}
		c.mu.Unlock()
		if !live {
			c.respond(id, nil, errClosing)
			return nil
		}
		go func() {
			defer c.running.Done()
			answer, err := slow(c.ctx, &req)
			c.respond(id, answer, err)
		}()
		return nil
	}
	answer, err := c.fast(&req)
	c.respond(id, answer, err)
	if c.unwatch == nil { // the answer to hello comes before all events
		c.watch(req.WatchPeers)
	}
	if err == nil && req.Op == "shutdown" {
		c.server.shutdownOnce.Do(func() { close(c.server.Shutdown) })
	}
	return nil
}

// fast answers requests from what the daemon knows.
func (c *conn) fast(req *request) (any, error) {
	srv := c.server
	switch req.Op {
	case "hello":
		return &helloAnswer{
			Version: Version, PeerID: srv.network.ID().String(), Window: Window, MaxFrame: MaxPayload,
			MaxMessage: srv.limits.MaxMessage, MaxUnary: srv.limits.MaxUnary, Metrics: srv.Metrics,
		}, nil
	case "listen":
		return struct{}{}, srv.registry.add(c, req.Name, req.Mode, req.Balanced, req.MaxInFlight)
	case "unlisten":
		return struct{}{}, srv.registry.remove(c, req.Name)
	case "peers":
		connected := srv.network.Peers()
		peers := make([]connectedAnswer, 0, len(connected))
		for _, one := range connected {
			peers = append(peers, connectedAnswer{peerText(one.AddrInfo), one.Relayed, one.Punched, one.Transport})
		}
		return map[string]any{"peers": peers}, nil
	case "reachability":
		return srv.reachability(), nil
	case "addrs":
		return map[string]any{"addrs": Texts(srv.network.Addrs())}, nil
	case "relay_allow":
		return c.allowRelaying(req)
	case "stats":
		return srv.stats(), nil
	case "unban":
		return srv.unban(req)
	case "bans":
		return srv.bans(), nil
	case "protocol_metrics":
		return srv.protocolMetrics(req.After)
	case "peer_metrics":
		return srv.peerMetrics(req.After)
	case "shutdown":
		if !c.owner {
			return nil, faultf(CodeBadRequest, "only the owner may stop the daemon")
		}
		return struct{}{}, nil
	}
	return nil, faultf(CodeBadRequest, "unknown op %q", req.Op)
}

// allowRelaying says who may use this relay. A list that is missing is an error: it must not open a closed relay.
func (c *conn) allowRelaying(req *request) (any, error) {
	if req.Peers == nil {
		return nil, faultf(CodeBadRequest, "peers: no list")
	}
	ids, err := config.PeerIDs(req.Peers)
	if err != nil {
		return nil, faultf(CodeBadRequest, "peers: %s", err)
	}
	return struct{}{}, c.server.network.AllowRelaying(ids)
}

// slowOps are the requests that wait for the network.
func (c *conn) slowOps() map[string]func(context.Context, *request) (any, error) {
	return map[string]func(context.Context, *request) (any, error){
		"connect": ofPeer(c.connect), "disconnect": ofPeer(c.disconnect),
		"find_peer": ofPeer(c.findPeer), "ping": ofPeer(c.ping), "ban": c.ban,
	}
}

// ofPeer is a request about one peer that ends with its timeout.
func ofPeer(op func(context.Context, peer.AddrInfo) (any, error)) func(context.Context, *request) (any, error) {
	return func(ctx context.Context, req *request) (any, error) {
		info, err := peerInfo(req)
		if err != nil {
			return nil, err
		}
		ctx, cancel, err := bounded(ctx, req)
		if err != nil {
			return nil, err
		}
		defer cancel()
		return op(ctx, info)
	}
}

func (c *conn) connect(ctx context.Context, info peer.AddrInfo) (any, error) {
	return struct{}{}, c.server.network.Connect(ctx, info)
}

func (c *conn) disconnect(_ context.Context, info peer.AddrInfo) (any, error) {
	return struct{}{}, c.server.network.Disconnect(info.ID)
}

func (c *conn) findPeer(ctx context.Context, info peer.AddrInfo) (any, error) {
	found, err := c.server.network.FindPeer(ctx, info.ID)
	if err != nil {
		return nil, err
	}
	return peerText(found), nil
}

// requestTimeout bounds requests that set no timeout.
const requestTimeout = time.Minute

func bounded(ctx context.Context, req *request) (context.Context, context.CancelFunc, error) {
	timeout := requestTimeout
	const most = 24 * 60 * 60
	switch {
	case !(req.Timeout >= 0 && req.Timeout <= most):
		return nil, nil, faultf(CodeBadRequest, "timeout: %v is not in 0..%d seconds", req.Timeout, most)
	case req.Timeout > 0:
		timeout = time.Duration(req.Timeout * float64(time.Second))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	return ctx, cancel, nil
}

func peerInfo(req *request) (peer.AddrInfo, error) {
	id, err := peer.Decode(req.Peer)
	if err != nil {
		return peer.AddrInfo{}, faultf(CodeBadRequest, "peer: %q: %s", req.Peer, err)
	}
	info := peer.AddrInfo{ID: id}
	for _, text := range req.Addrs {
		addr, err := ma.NewMultiaddr(text)
		if err != nil {
			return info, faultf(CodeBadRequest, "addrs: %q: %s", text, err)
		}
		bare, named := peer.SplitAddr(addr)
		if named != "" && named != id {
			return info, faultf(CodeBadRequest, "addrs: %q is not an address of %s", text, id)
		}
		if bare != nil {
			info.Addrs = append(info.Addrs, bare)
		}
	}
	return info, nil
}

func peerText(info peer.AddrInfo) peerAnswer {
	return peerAnswer{ID: info.ID.String(), Addrs: Texts(info.Addrs)}
}

// Texts are the text forms of addresses.
func Texts(addrs []ma.Multiaddr) []string {
	texts := make([]string, 0, len(addrs))
	for _, addr := range addrs {
		texts = append(texts, addr.String())
	}
	return texts
}

// respond answers a request; an answer over the size of a frame becomes an error.
func (c *conn) respond(id uint32, answer any, err error) {
	head := header{kind: typeResponse, stream: id}
	if err != nil {
		fault := faultOf(err)
		head.flags = flagError
		answer = errorAnswer{Code: fault.Code, Error: string(truncate(fault.Text))}
	}
	payload, err := json.Marshal(answer)
	if err != nil || len(payload) > MaxPayload {
		head.flags = flagError
		payload = fmt.Appendf(nil, `{"code": %d, "error": "the answer does not fit a frame"}`, CodeInternal)
	}
	c.out.send(frame{head: head, payload: payload})
}
