// Package config is the daemon's configuration: one JSON object, read once, checked before anything starts.
package config

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"
)

// Seconds is a duration that JSON writes as a number of seconds, whole or not.
type Seconds float64

// Duration converts to the standard type.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// DHT modes of the Kademlia routing.
const (
	DHTServer = "server"
	DHTClient = "client"
	DHTAuto   = "auto"
	DHTOff    = "off"
)

// Config is everything the daemon is told at its start. Durations are in seconds, sizes in bytes.
type Config struct {
	// ParentPID is the process whose end ends the daemon; 0 does not watch.
	ParentPID int `json:"parent_pid"`
	// OwnerFD is the inherited descriptor of the owner's control connection, whose end ends the daemon; 0 is none.
	OwnerFD int `json:"owner_fd"`
	// ControlPath is the unix socket for other processes of the same user; its folder is made with mode 0700.
	ControlPath string `json:"control_path"`
	// OwnFolder: the folder of ControlPath is this daemon's and its owner's alone. It goes with all that is in it, unless the owner lives on.
	OwnFolder bool `json:"own_folder"`

	// IdentityPath is the private key file, made with a fresh Ed25519 key if it does not exist; "" keeps a fresh key in memory.
	IdentityPath string `json:"identity_path"`
	// IdentitySeed, 32 bytes in hexadecimal digits, makes that fresh key: a daemon started again is the same peer.
	IdentitySeed string `json:"identity_seed"`

	// Listen are the addresses to listen on; port 0 takes a free one.
	Listen []string `json:"listen"`
	// Announce replaces the advertised addresses, as for a peer behind a forwarded port.
	Announce []string `json:"announce"`
	// NoListen listens nowhere: the peer can only call, or be called through connections it made.
	NoListen bool `json:"no_listen"`

	// Bootstrap are peers to join through, with their ids. One that answers is enough.
	Bootstrap []string `json:"bootstrap"`
	// BootstrapTimeout bounds the wait for the first of them.
	BootstrapTimeout Seconds `json:"bootstrap_timeout"`
	// RequireBootstrap makes it fatal that none answers; else the daemon keeps trying in the background.
	RequireBootstrap bool `json:"require_bootstrap"`
	// IPFS joins the public IPFS network's Kademlia besides, through IPFSPeers or, if there are none, its well-known peers. Bootstrap peers
	// may then be named by their ids alone.
	IPFS      bool     `json:"ipfs"`
	IPFSPeers []string `json:"ipfs_peers"`
	// DHTMode is the part this peer takes in the Kademlia routing.
	DHTMode string `json:"dht_mode"`

	// SwarmKey is the content of a swarm key file, "/key/swarm/psk/1.0.0/": only peers that have it can connect, over TCP. "" is an open
	// swarm.
	SwarmKey string `json:"swarm_key"`
	// ConnManager closes connections that are used least when there are too many.
	ConnManager bool `json:"conn_manager"`
	// TLS and Noise are the security transports; TLS is preferred, as AES is in the processor.
	TLS   bool `json:"tls"`
	Noise bool `json:"noise"`

	// Relay can be reached and can dial through circuit relays.
	Relay bool `json:"relay"`
	// AutoRelay keeps reservations at relays while this peer cannot be reached directly: at TrustedRelays first, else at connected peers
	// that offer to relay.
	AutoRelay     bool     `json:"auto_relay"`
	TrustedRelays []string `json:"trusted_relays"`
	// ForceReachability is "public" or "private" instead of finding out; "" finds out.
	ForceReachability string `json:"force_reachability"`
	// RelayService relays for others, within the limits.
	RelayService      bool `json:"relay_service"`
	RelayReservations int  `json:"relay_reservations"` // peers that may be reached through this one
	RelayCircuits     int  `json:"relay_circuits"`     // circuits of one peer at once
	RelayBuffer       int  `json:"relay_buffer"`       // bytes of each of a circuit's two buffers
	// RelayCircuitBytes and RelayCircuitTime end a circuit; the peers then make a new one.
	RelayCircuitBytes int64   `json:"relay_circuit_bytes"`
	RelayCircuitTime  Seconds `json:"relay_circuit_time"`
	// RelayAllow are the ids of the only peers that may use this relay; null is everybody.
	RelayAllow []string `json:"relay_allow"`
	// NATPortMap asks the router for a port by UPnP and NAT-PMP.
	NATPortMap bool `json:"nat_port_map"`
	// AutoNAT finds out whether the peer is reachable, serves this to others, and punches holes.
	AutoNAT bool `json:"auto_nat"`

	// MaxMessage bounds one message of a stream.
	MaxMessage int64 `json:"max_message"`
	// MaxUnary bounds one unary message with its envelope; hivemind 1.1 drops anything over the default.
	MaxUnary int64 `json:"max_unary"`
	// PeerCalls bounds the calls of one peer that handlers work on, PeerStreams all streams that it has open, and PeerBytes its
	// requests and messages that are held for handlers.
	PeerCalls   int   `json:"peer_calls"`
	PeerStreams int   `json:"peer_streams"`
	PeerBytes   int64 `json:"peer_bytes"`
	// FloodLimit is how much a peer may be refused before it is slowed down, and soon dropped; 0 never does either. FloodBan is
	// for how long it is then refused.
	FloodLimit int     `json:"flood_limit"`
	FloodBan   Seconds `json:"flood_ban"`
	// DialTimeout bounds one dial of one address.
	DialTimeout Seconds `json:"dial_timeout"`
	// MetricsListen is where Prometheus text is served: host:port, or unix: and a path; "" is nowhere. MetricsPublic allows a host
	// other than loopback. Pprof serves profiles there too.
	MetricsListen string `json:"metrics_listen"`
	MetricsPublic bool   `json:"metrics_public"`
	Pprof         bool   `json:"pprof"`
	// LogLevel is DEBUG, INFO, WARN or ERROR.
	LogLevel string `json:"log_level"`
}

// Default is the configuration of a peer on loopback.
func Default() Config {
	return Config{
		Listen:           []string{"/ip4/127.0.0.1/tcp/0"},
		BootstrapTimeout: 15,
		RequireBootstrap: true,
		DHTMode:          DHTServer,
		ConnManager:      true,
		TLS:              true,
		Noise:            true,
		Relay:            true,
		AutoNAT:          true,
		// What peers in training send each other is what a relay is there to carry: 128 KiB and 2 min, which the library has, end
		// a circuit within its first part of a tensor.
		RelayReservations: 512,
		RelayCircuits:     64,
		RelayBuffer:       64 << 10,
		RelayCircuitBytes: 16 << 30,
		RelayCircuitTime:  30 * 60,
		MaxMessage:        64 << 20,
		MaxUnary:          4 << 20,
		// Hundreds of calls of 1 MiB from one peer are usual in training.
		PeerCalls:   512,
		PeerStreams: 1024,
		PeerBytes:   256 << 20,
		FloodLimit:  2048,
		FloodBan:    60,
		DialTimeout: 15,
		LogLevel:    "WARN",
	}
}

// SeedSize is the length of an identity's seed in bytes.
const SeedSize = 32

// maxConfigSize bounds the JSON text.
const maxConfigSize = 1 << 20

// Read takes one JSON object from r until EOF, over the defaults, and checks it.
func Read(r io.Reader) (Config, error) {
	cfg := Default()
	text, err := io.ReadAll(io.LimitReader(r, maxConfigSize+1))
	if err != nil {
		return cfg, fmt.Errorf("cannot read the configuration: %w", err)
	}
	if len(text) > maxConfigSize {
		return cfg, fmt.Errorf("the configuration is larger than %d bytes", maxConfigSize)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&cfg); err != nil {
		return cfg, fmt.Errorf("the configuration is not one JSON object: %w", err)
	}
	if decoder.More() {
		return cfg, errors.New("the configuration has text after its JSON object")
	}
	return cfg, cfg.Validate()
}

// Validate returns every fault of the configuration, joined.
func (c *Config) Validate() error {
	var errs []error
	fail := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if c.ParentPID < 0 {
		fail("parent_pid", "%d is not a process", c.ParentPID)
	}
	if c.OwnerFD < 0 || c.OwnerFD == 1 || c.OwnerFD == 2 {
		fail("owner_fd", "%d cannot be a control connection", c.OwnerFD)
	}
	if c.ControlPath != "" && !filepath.IsAbs(c.ControlPath) {
		fail("control_path", "%q is not absolute", c.ControlPath)
	}
	if len(c.ControlPath) > maxSocketPath {
		fail("control_path", "%d bytes are too long for a socket; at most %d", len(c.ControlPath), maxSocketPath)
	}
	if c.OwnFolder && c.ControlPath == "" {
		fail("own_folder", "there is no control_path")
	}
	if seed, err := hex.DecodeString(c.IdentitySeed); err != nil || (len(seed) != 0 && len(seed) != SeedSize) {
		fail("identity_seed", "not %d bytes in hexadecimal digits", SeedSize) // it is a secret: not named
	}
	if c.IdentitySeed != "" && c.IdentityPath != "" {
		fail("identity_seed", "not together with identity_path")
	}
	c.validateAddrs(fail)
	switch c.DHTMode {
	case DHTServer, DHTClient, DHTAuto, DHTOff:
	default:
		fail("dht_mode", "%q; one of server, client, auto, off", c.DHTMode)
	}
	c.validateRelays(fail)
	c.validateSwarmKey(fail)
	c.validatePeerLimits(fail)
	c.validateMetrics(fail)
	if !c.TLS && !c.Noise {
		fail("tls", "with neither tls nor noise no connection could be made")
	}
	const maxSize = 1 << 31
	if c.MaxMessage < 1 || c.MaxMessage > maxSize {
		fail("max_message", "%d is not in 1..%d", c.MaxMessage, maxSize)
	}
	if c.MaxUnary < 1024 || c.MaxUnary > maxSize {
		fail("max_unary", "%d is not in 1024..%d", c.MaxUnary, maxSize)
	}
	for name, value := range map[string]Seconds{"bootstrap_timeout": c.BootstrapTimeout, "dial_timeout": c.DialTimeout} {
		if !(value > 0 && value <= 86400) {
			fail(name, "%v is not in 0..86400 seconds", float64(value))
		}
	}
	if _, err := c.Level(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// maxSocketPath is what sockaddr_un holds on the smallest of our systems.
const maxSocketPath = 103

func (c *Config) validateAddrs(fail func(field, format string, args ...any)) {
	for _, text := range c.Listen {
		if _, err := ma.NewMultiaddr(text); err != nil {
			fail("listen", "%q: %v", text, err)
		}
	}
	if len(c.Listen) == 0 && !c.NoListen {
		fail("listen", "no address; set no_listen for a peer that only calls")
	}
	for _, text := range c.Announce {
		addr, err := ma.NewMultiaddr(text)
		if err != nil {
			fail("announce", "%q: %v", text, err)
			continue
		}
		for _, code := range []int{ma.P_TCP, ma.P_UDP} {
			if port, err := addr.ValueForProtocol(code); err == nil && port == "0" {
				fail("announce", "%q: port 0 cannot be dialled", text)
			}
		}
	}
	for _, text := range c.Bootstrap {
		if _, err := peer.AddrInfoFromString(text); err != nil {
			fail("bootstrap", "%q: %v", text, err)
		}
	}
	for _, text := range c.IPFSPeers {
		if _, err := peer.AddrInfoFromString(text); err != nil {
			fail("ipfs_peers", "%q: %v", text, err)
		}
	}
	if c.IPFS && c.DHTMode == DHTOff {
		fail("ipfs", "it is found by the Kademlia routing: dht_mode must not be off")
	}
	if c.IPFS && c.SwarmKey != "" {
		fail("ipfs", "a peer with a swarm_key cannot connect to it")
	}
}

func (c *Config) validateRelays(fail func(field, format string, args ...any)) {
	for _, text := range c.TrustedRelays {
		if _, err := peer.AddrInfoFromString(text); err != nil {
			fail("trusted_relays", "%q: %v", text, err)
		}
	}
	switch c.ForceReachability {
	case "", "public", "private":
	default:
		fail("force_reachability", "%q; one of public, private or nothing", c.ForceReachability)
	}
	if _, err := c.RelayedPeers(); err != nil {
		fail("relay_allow", "%v", err)
	}
	if (c.AutoRelay || c.RelayService) && !c.Relay {
		fail("relay", "auto_relay and relay_service need it")
	}
	for _, limit := range []struct {
		name        string
		value, most int64
	}{
		{"relay_reservations", int64(c.RelayReservations), 1 << 16},
		{"relay_circuits", int64(c.RelayCircuits), 1 << 12},
		{"relay_buffer", int64(c.RelayBuffer), 1 << 20},
		{"relay_circuit_bytes", c.RelayCircuitBytes, 1 << 50},
	} {
		if limit.value < 1 || limit.value > limit.most {
			fail(limit.name, "%d is not in 1..%d", limit.value, limit.most)
		}
	}
	if !(c.RelayCircuitTime >= 1 && c.RelayCircuitTime <= 86400) {
		fail("relay_circuit_time", "%v is not in 1..86400 seconds", float64(c.RelayCircuitTime))
	}
}

// validateSwarmKey tells nothing of the key.
func (c *Config) validateSwarmKey(fail func(field, format string, args ...any)) {
	if c.SwarmKey == "" {
		return
	}
	if _, err := c.PrivateNetwork(); err != nil {
		fail("swarm_key", "not the content of a swarm key file")
	}
	for _, text := range c.Listen {
		addr, err := ma.NewMultiaddr(text)
		if err != nil {
			continue // said already
		}
		if _, err := addr.ValueForProtocol(ma.P_TCP); err != nil {
			fail("listen", "%q: with swarm_key only TCP can be used", text)
		}
	}
}

// PrivateNetwork is the key of the swarm; nil in an open one.
func (c *Config) PrivateNetwork() (pnet.PSK, error) {
	if c.SwarmKey == "" {
		return nil, nil
	}
	return pnet.DecodeV1PSK(strings.NewReader(c.SwarmKey))
}

// Relays are the trusted relays, addresses of one peer merged. The configuration must be valid.
func (c *Config) Relays() ([]peer.AddrInfo, error) { return peerInfos(c.TrustedRelays) }

// RelayedPeers are the only peers that may use this relay; nil is everybody.
func (c *Config) RelayedPeers() ([]peer.ID, error) {
	if c.RelayAllow == nil {
		return nil, nil
	}
	return PeerIDs(c.RelayAllow)
}

// PeerIDs are ids in their text form; never nil without an error.
func PeerIDs(texts []string) ([]peer.ID, error) {
	ids := make([]peer.ID, 0, len(texts))
	for _, text := range texts {
		id, err := peer.Decode(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// BootstrapPeers are the peers to join through, addresses of one peer merged. The configuration must be valid.
func (c *Config) BootstrapPeers() ([]peer.AddrInfo, error) { return peerInfos(c.Bootstrap) }

// IPFSBootstrap are the peers through which the IPFS network is joined, if not its well-known ones. The configuration must be valid.
func (c *Config) IPFSBootstrap() ([]peer.AddrInfo, error) { return peerInfos(c.IPFSPeers) }

func peerInfos(texts []string) ([]peer.AddrInfo, error) {
	addrs := make([]ma.Multiaddr, 0, len(texts))
	for _, text := range texts {
		addr, err := ma.NewMultiaddr(text)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, addr)
	}
	return peer.AddrInfosFromP2pAddrs(addrs...)
}

// Level is the log level as slog has it.
func (c *Config) Level() (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(c.LogLevel))); err != nil {
		return level, fmt.Errorf("log_level: %q; one of DEBUG, INFO, WARN, ERROR", c.LogLevel)
	}
	return level, nil
}
