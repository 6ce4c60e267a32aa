package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// The files of a store. Each version of the three is a directory of its own, and the link names the one
// that counts: one rename switches all three, and a crash leaves the old or the new ones, never a mixture.
//
//	<dir>/current -> v-<16 hexadecimal digits>
//	<dir>/v-…/ca.pem, cert.pem, key.pem
const (
	currentLink = "current"
	versionMark = "v-"
	caFile      = "ca.pem"
	certFile    = "cert.pem"
	keyFile     = "key.pem"
)

// ErrEmpty is what Load answers where nothing was saved yet: the program has to join first.
var ErrEmpty = errors.New("no certificate is stored: join the cluster first")

// Store keeps credentials in a directory of its own. One process opens it (OpenStore clears what nobody
// names); others read its files.
type Store struct {
	fs  fsx.FS
	dir string
	mu  sync.Mutex // held by Save: two at a time would remove each other's version
}

// OpenStore makes the directory, below one that fs may touch, and clears what a crash left there.
func OpenStore(f fsx.FS, dir string) (*Store, error) {
	s := &Store{fs: f, dir: filepath.Clean(dir)}
	if err := f.MkdirAll("pki.mkdir", s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the directory of certificates: %w", err)
	}
	if err := fsx.RemoveTemps(f, "pki.temps", s.dir); err != nil {
		return nil, fmt.Errorf("cannot clear the directory of certificates: %w", err)
	}
	current, err := s.version()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return nil, err
	}
	return s, s.removeOthers(current)
}

// CAFile is the path of the trusted roots that count, for other programs (`demiurge --ca-cert`).
func (s *Store) CAFile() string { return filepath.Join(s.dir, currentLink, caFile) }

// CertFile is the path of the certificate that counts.
func (s *Store) CertFile() string { return filepath.Join(s.dir, currentLink, certFile) }

// Save makes the credentials the ones that count. After a crash the old ones count or the new ones; after
// its return the new ones for good.
func (s *Store) Save(c *Credentials) error {
	ca, certificate, key, err := c.texts()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	previous, err := s.version()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return err
	}
	name := versionMark + fmt.Sprintf("%x", newSerial().Bytes()[:8])
	dir := filepath.Join(s.dir, name)
	steps := []func() error{
		func() error { return s.fs.MkdirAll("pki.save.mkdir", dir, 0o755) },
		func() error {
			return s.fs.WriteSync("pki.save.key", filepath.Join(dir, keyFile), []byte(key), 0o600)
		},
		func() error {
			return s.fs.WriteSync("pki.save.cert", filepath.Join(dir, certFile), []byte(certificate), 0o644)
		},
		func() error { return s.fs.WriteSync("pki.save.ca", filepath.Join(dir, caFile), []byte(ca), 0o644) },
		func() error { return s.fs.SyncDir("pki.save.sync-version", dir) },
		func() error { return s.fs.SyncDir("pki.save.sync-entry", s.dir) }, // before the link names it
		func() error {
			return fsx.SymlinkAtomic(s.fs, "pki.save.switch", name, filepath.Join(s.dir, currentLink))
		},
		func() error { return s.fs.SyncDir("pki.save.sync", s.dir) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("cannot save the certificate of %s in %s: %w", c.identity, s.dir, err)
		}
	}
	// The version before stays until the next Save: somebody may have followed the link just now.
	return s.removeOthers(name, previous)
}

// Load reads the credentials that count and checks them: whole, matching, valid now, and the key readable
// by its owner only. ErrEmpty: nothing was saved yet.
func (s *Store) Load(now time.Time) (*Credentials, error) {
	for {
		name, err := s.version()
		if err != nil {
			return nil, err
		}
		c, err := s.load(name, now)
		if err == nil {
			return c, nil
		}
		if after, e := s.version(); e != nil || after == name {
			return nil, err
		}
		// Two saves went by in the middle of the reading. The link names another version now.
	}
}

// load reads one version.
func (s *Store) load(version string, now time.Time) (*Credentials, error) {
	dir := filepath.Join(s.dir, version)
	path := filepath.Join(dir, keyFile)
	if err := s.checkPrivate(path); err != nil {
		return nil, err
	}
	var texts [3]string
	for n, name := range []string{caFile, certFile, keyFile} {
		data, err := s.fs.ReadFile("pki.load", filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", filepath.Join(dir, name), err)
		}
		texts[n] = string(data)
	}
	bundle, err := ParseBundle(texts[0])
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", filepath.Join(dir, caFile), err)
	}
	der, err := onePEM(path, blockKey, texts[2])
	if err != nil {
		return nil, err
	}
	key, err := parseKeyDER(path, der)
	if err != nil {
		return nil, err
	}
	c, err := newCredentials(texts[1], key, bundle, now)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", filepath.Join(dir, certFile), err)
	}
	return c, nil
}

// checkPrivate refuses a key that others than its owner can read, and one that is a link to elsewhere.
func (s *Store) checkPrivate(path string) error {
	info, err := s.fs.Lstat("pki.load", path)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return refuse(Exposed, "cannot use the private key %s: it is no regular file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return refuse(Exposed, "cannot use the private key %s: its mode is %04o, so others can read or change it; run chmod 600 on it, and join again if somebody may have read it", path, perm)
	}
	return nil
}

// version is the name of the version that counts.
func (s *Store) version() (string, error) {
	target, err := s.fs.Readlink("pki.load", filepath.Join(s.dir, currentLink))
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrEmpty
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the link of the certificates that count: %w", err)
	}
	if target != filepath.Base(target) || !strings.HasPrefix(target, versionMark) {
		return "", refuse(Malformed, "cannot use %s: it leads to %q and must lead to a version beside it", filepath.Join(s.dir, currentLink), short(target))
	}
	return target, nil
}

// removeOthers removes all versions but those to keep.
func (s *Store) removeOthers(keep ...string) error {
	entries, err := s.fs.ReadDir("pki.clean.list", s.dir)
	if err != nil {
		return fmt.Errorf("cannot list the directory of certificates: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), versionMark) || slices.Contains(keep, entry.Name()) {
			continue
		}
		if err := s.fs.RemoveAll("pki.clean.remove", filepath.Join(s.dir, entry.Name())); err != nil {
			return fmt.Errorf("cannot remove old certificates: %w", err)
		}
	}
	return nil
}
