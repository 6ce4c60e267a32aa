package trust

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// keyFile is where a coordinator keeps the cluster key if the configuration names no other file.
const keyFile = "cluster.key"

// ErrNoKey is what ReadKey answers where there is no key.
var ErrNoKey = errors.New("there is no cluster key")

// KeyPath is where the cluster key is in a data directory.
func KeyPath(dir string) string { return filepath.Join(dir, keyFile) }

// ReadKey reads a cluster key. A file that others can read is refused.
func ReadKey(path string) (pki.Key, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return pki.Key{}, fmt.Errorf("%w in %s", ErrNoKey, path)
	}
	if err != nil {
		return pki.Key{}, fmt.Errorf("cannot read the cluster key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return pki.Key{}, fmt.Errorf("cannot use the cluster key in %s: others can read it (mode %#o); run chmod 600 %s", path, info.Mode().Perm(), path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return pki.Key{}, fmt.Errorf("cannot read the cluster key: %w", err)
	}
	key, err := pki.ParseKey(strings.TrimSpace(string(data)))
	if err != nil {
		return pki.Key{}, fmt.Errorf("cannot use %s: %w; copy it from another coordinator of the cluster", path, err)
	}
	return key, nil
}

// WriteKey saves a cluster key in a data directory.
func WriteKey(f fsx.FS, dir string, key pki.Key) error {
	return save(f, "trust.key", KeyPath(dir), []byte(key.Reveal()+"\n"), 0o600)
}

func encodeKey(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }

func (k *Keeper) keyringContext() string { return "keyring/" + k.cluster }

func (k *Keeper) sealKeyring(keys []string) ([]byte, error) {
	plain, err := json.Marshal(keys)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the gossip keys: %w", err)
	}
	return pki.Seal(k.opts.Key, k.keyringContext(), plain)
}

func (k *Keeper) openKeyring(sealed []byte) ([]string, error) {
	plain, err := pki.Open(k.opts.Key, k.keyringContext(), sealed)
	if err != nil {
		return nil, err
	}
	var keys []string
	if err := json.Unmarshal(plain, &keys); err != nil || len(keys) == 0 {
		return nil, fmt.Errorf("cannot read the gossip keys: %w", errors.Join(err, errors.New("there is none")))
	}
	return keys, nil
}
