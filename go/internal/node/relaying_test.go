package node

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/config"
)

// member makes an identity file and returns it with its id.
func member(t *testing.T) (path string, id peer.ID) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "key")
	key, err := Identity(path)
	if err != nil {
		t.Fatal(err)
	}
	if id, err = peer.IDFromPrivateKey(key); err != nil {
		t.Fatal(err)
	}
	return path, id
}

func TestARelayServesOnlyWhomItAllows(t *testing.T) {
	path, id := member(t)
	callerPath, callerID := member(t)
	relay := startRelay(t, func(cfg *config.Config) { cfg.RelayAllow = []string{id.String(), callerID.String()} })
	unhurried := func(cfg *config.Config) { cfg.ForceReachability = "" } // so that the start does not wait for a relay
	stranger := start(t, hidden(relay, unhurried))
	until(t, "the stranger is refused", func() bool { return relay.Relayed().Refused > 0 })
	inside := start(t, hidden(relay, func(cfg *config.Config) { cfg.IdentityPath = path }))
	inside.Handle("T.echo", echo)
	if got := relay.Relayed(); got.Reservations != 1 || len(stranger.relays.inUse()) != 0 {
		t.Errorf("%+v", got)
	}
	caller := start(t, func(cfg *config.Config) {
		through(relay)(cfg)
		cfg.Relay, cfg.IdentityPath = true, callerPath
	})
	const size = 1 << 20
	if err := exchange(t, caller, inside, size); err != nil {
		t.Error(err)
	}
	if got := relay.Relayed(); got.Circuits != 1 || got.AllCircuits != 1 || got.Bytes < 2*size {
		t.Errorf("%+v", got)
	}
	outsider := start(t, func(cfg *config.Config) { through(relay)(cfg); cfg.Relay = true })
	if err := outsider.Connect(within(t), info(t, inside)); err == nil || !strings.Contains(err.Error(), "PERMISSION_DENIED") {
		t.Error(err)
	}
	if err := relay.AllowRelaying([]peer.ID{id, outsider.ID()}); err != nil {
		t.Error(err)
	}
	target := info(t, inside)
	until(t, "the outsider may call", func() bool { return outsider.Connect(within(t), target) == nil }) // dials may share an old one's end
	caller.Close()
	until(t, "its circuit has ended", func() bool { return relay.Relayed().Circuits == 1 })
	again := start(t, func(cfg *config.Config) {
		cfg.Relay, cfg.IdentityPath, cfg.DHTMode = true, callerPath, config.DHTOff // nobody has a reason to call it
	})
	if err := again.Connect(within(t), info(t, inside)); err == nil || !strings.Contains(err.Error(), "PERMISSION_DENIED") {
		t.Error("a caller that is no longer allowed has called", err)
	}
}

func TestAnEmptyListIsNobody(t *testing.T) {
	relay := startRelay(t, nil)
	if !relay.service.allowed.has("somebody") {
		t.Error("no list is everybody")
	}
	if err := relay.AllowRelaying(nil); err != nil || relay.service.allowed.has("somebody") {
		t.Error("an empty list is nobody", err)
	}
	if err := start(t, nil).AllowRelaying(nil); !errors.Is(err, ErrNotSupported) {
		t.Error(err)
	}
}
