package node

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/config"
)

func TestIdentityOfASeed(t *testing.T) {
	cfg := config.Default()
	cfg.IdentitySeed = strings.Repeat("07", config.SeedSize)
	first, err := identityOf(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	again, err := identityOf(&cfg)
	if err != nil || !again.Equals(first) || first.Type() != crypto.Ed25519 {
		t.Error("a seed is one key", err)
	}
	cfg.IdentitySeed = strings.Repeat("08", config.SeedSize)
	if other, err := identityOf(&cfg); err != nil || other.Equals(first) {
		t.Error("another seed is another key", err)
	}
	if cfg.IdentitySeed = ""; cfg.IdentityPath != "" {
		t.Fatal(cfg.IdentityPath)
	}
	if fresh, err := identityOf(&cfg); err != nil || fresh.Equals(first) {
		t.Error("none is a fresh key", err)
	}
}

func TestIdentityFiles(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "fresh")
	made, err := Identity(path)
	if err != nil || made.Type() != crypto.Ed25519 {
		t.Fatal(made, err)
	}
	if stat, err := os.Stat(path); err != nil || stat.Mode().Perm() != 0o400 {
		t.Error(stat, err)
	}
	again, err := Identity(path)
	if err != nil || !again.Equals(made) {
		t.Error("another key the second time", err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) != 1 {
		t.Error("files are left", left, err)
	}

	// As hivemind 1.1 writes it: PrivateKey{RSA, PKCS#1 DER}.
	rsa, _, err := crypto.GenerateRSAKeyPair(2048, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	data, err := crypto.MarshalPrivateKey(rsa)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(folder, "rsa")
	if err := os.WriteFile(path, data, 0o400); err != nil {
		t.Fatal(err)
	}
	n := start(t, func(cfg *config.Config) { cfg.IdentityPath = path })
	if id, err := peer.IDFromPrivateKey(rsa); err != nil || n.ID() != id || !strings.HasPrefix(id.String(), "Qm") {
		t.Error(n.ID(), id, err)
	}

	for name, content := range map[string][]byte{"empty": {}, "garbage": []byte("garbage"), "huge": make([]byte, maxIdentitySize+1)} {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Identity(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Identity(filepath.Join(folder, "missing", "key")); err == nil {
		t.Error("made a key where there is no folder")
	}
}
