package node

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"

	"hivemind/p2pd/internal/config"
)

// maxIdentitySize bounds the identity file; a 4096-bit RSA key has 2.4 KB.
const maxIdentitySize = 64 << 10

// identityOf is the private key of a configuration: of its file, of its seed, or a fresh one.
func identityOf(cfg *config.Config) (crypto.PrivKey, error) {
	if cfg.IdentitySeed == "" {
		return Identity(cfg.IdentityPath)
	}
	seed, err := hex.DecodeString(cfg.IdentitySeed)
	if err != nil {
		return nil, fmt.Errorf("identity_seed: %w", err)
	}
	return crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed))
}

// Identity returns the private key in the file at path: a libp2p PrivateKey message with a key of any type, as hivemind 1.1
// writes it with RSA. A missing file is made, mode 0400, with a fresh Ed25519 key; an empty path gives a fresh key that is
// kept nowhere.
func Identity(path string) (crypto.PrivKey, error) {
	if path == "" {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		return key, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createIdentity(path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the identity: %w", err)
	}
	if info.Size() > maxIdentitySize {
		return nil, fmt.Errorf("identity file %s has %d bytes, which is no private key", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the identity: %w", err)
	}
	key, err := crypto.UnmarshalPrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("identity file %s holds no libp2p private key: %w", path, err)
	}
	return key, nil
}

// createIdentity writes the whole key beside its final name first, so that no other process reads half of it; the first of
// two processes wins and both use its key.
func createIdentity(path string) (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	data, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".identity-*")
	if err != nil {
		return nil, fmt.Errorf("cannot make the identity: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(data)
	err = errors.Join(err, file.Chmod(0o400), file.Close())
	if err != nil {
		return nil, fmt.Errorf("cannot make the identity: %w", err)
	}
	switch err := os.Link(file.Name(), path); {
	case errors.Is(err, fs.ErrExist):
		return Identity(path)
	case err != nil:
		return nil, fmt.Errorf("cannot make the identity: %w", err)
	}
	return key, nil
}
