package pki_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

func osFS(t testing.TB, dir string) *fsx.OS {
	t.Helper()
	f := must[*fsx.OS](t)(fsx.NewOS(dir))
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func openStore(t testing.TB, dir string) *pki.Store {
	t.Helper()
	return must[*pki.Store](t)(pki.OpenStore(osFS(t, dir), filepath.Join(dir, "pki")))
}

func TestStoreKeepsCredentials(t *testing.T) {
	dir := t.TempDir()
	store := openStore(t, dir)
	if _, err := store.Load(noon); !errors.Is(err, pki.ErrEmpty) {
		t.Fatalf("an empty store gives %v", err)
	}
	r := rotate(t)
	for n, c := range []*pki.Credentials{
		member(t, r.old, pki.RoleAgent, "host-1"),
		memberAt(t, r.next, r.nextBundle, identity(t, clusterA, pki.RoleAgent, "host-1"), noon),
		memberAt(t, r.next, r.nextBundle, identity(t, clusterA, pki.RoleAgent, "host-1"), noon),
	} {
		if err := store.Save(c); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*pki.Store{store, openStore(t, dir)} {
			if got := must[*pki.Credentials](t)(s.Load(noon)); !got.Equal(c) {
				t.Errorf("save %d: loaded %s, saved %s", n, got, c)
			}
		}
	}
	// The key and nothing else is secret, and other programs can read the roots.
	key := filepath.Join(filepath.Dir(store.CertFile()), "key.pem")
	for path, want := range map[string]fs.FileMode{key: 0o600, store.CertFile(): 0o644, store.CAFile(): 0o644} {
		info := must[fs.FileInfo](t)(os.Stat(path))
		if got := info.Mode().Perm(); got&^want != 0 {
			t.Errorf("%s has mode %04o", path, got)
		}
	}
	if text := string(must[[]byte](t)(os.ReadFile(store.CAFile()))); text != r.nextBundle.PEM() {
		t.Errorf("ca.pem is\n%s", text)
	}
	if n := len(versions(t, dir)); n > 2 {
		t.Errorf("%d versions are kept", n)
	}
}

func versions(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(dir, "pki"))) {
		if e.Name() != "current" {
			names = append(names, e.Name())
		}
	}
	return names
}

// A crash at any step leaves the old credentials or the new ones, whole, and the next start leaves nothing
// else behind.
func TestStoreSurvivesACrashAtEveryStep(t *testing.T) {
	r := rotate(t)
	before := member(t, r.old, pki.RoleAgent, "host-1")
	after := memberAt(t, r.next, r.nextBundle, identity(t, clusterA, pki.RoleAgent, "host-1"), noon)
	save := func(t *testing.T, first bool, crash *fsxtest.Point) (points []fsxtest.Point) {
		dir := t.TempDir()
		inner := osFS(t, dir)
		if !first {
			if err := must[*pki.Store](t)(pki.OpenStore(inner, filepath.Join(dir, "pki"))).Save(before); err != nil {
				t.Fatal(err)
			}
		}
		faulty := fsxtest.New(inner)
		faulty.Record()
		if crash != nil {
			faulty.CrashAt(*crash)
		}
		store, err := pki.OpenStore(faulty, filepath.Join(dir, "pki"))
		if err == nil {
			err = store.Save(after)
		}
		if crash != nil && err == nil {
			t.Errorf("crashed at %v, and Save says that all is well", *crash)
		}
		points = faulty.Points()
		again := openStore(t, dir)
		got, loadErr := again.Load(noon)
		switch {
		case loadErr == nil && got.Equal(after):
		case err == nil:
			t.Errorf("saved, and loaded %v (%v)", got, loadErr)
		case first && errors.Is(loadErr, pki.ErrEmpty):
		case !first && loadErr == nil && got.Equal(before):
		default:
			t.Errorf("crashed at %v: loaded %v, %v", crash, got, loadErr)
		}
		want := 1
		if errors.Is(loadErr, pki.ErrEmpty) {
			want = 0
		}
		if left := versions(t, dir); len(left) != want {
			t.Errorf("crashed at %v: %v is left", crash, left)
		}
		if err := again.Save(after); err != nil {
			t.Errorf("crashed at %v: the next save: %v", crash, err)
		}
		return points
	}
	for _, first := range []bool{true, false} {
		points := save(t, first, nil)
		labels := map[string]bool{}
		for _, p := range points {
			labels[p.Label] = true
			save(t, first, &p)
		}
		for _, want := range []string{"pki.save.key", "pki.save.cert", "pki.save.ca", "pki.save.switch.rename", "pki.save.sync"} {
			if !labels[want] {
				t.Errorf("no step %s among %v", want, labels)
			}
		}
	}
}

func TestStoreSaysWhatCannotBeSaved(t *testing.T) {
	dir := t.TempDir()
	faulty := fsxtest.New(osFS(t, dir))
	store := must[*pki.Store](t)(pki.OpenStore(faulty, filepath.Join(dir, "pki")))
	ca := authority(t, clusterA)
	before := member(t, ca, pki.RoleAgent, "host-1")
	if err := store.Save(before); err != nil {
		t.Fatal(err)
	}
	full := errors.New("no space left on device")
	faulty.Fail("", full)
	if err := store.Save(member(t, ca, pki.RoleAgent, "host-1")); !errors.Is(err, full) || !strings.Contains(err.Error(), "host-1") {
		t.Errorf("on a full disk: %v", err)
	}
	if got := must[*pki.Credentials](t)(store.Load(noon)); !got.Equal(before) {
		t.Error("a failed save changed what counts")
	}
	faulty.Fail("", nil)
	if err := store.Save(before); err != nil {
		t.Errorf("with space again: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	ca := authority(t, clusterA)
	own := member(t, ca, pki.RoleAgent, "host-1")
	other := member(t, ca, pki.RoleAgent, "host-1")
	for name, c := range map[string]struct {
		now    time.Time
		spoil  func(t *testing.T, version string) error
		reason pki.Reason
	}{
		"a key that the group can read": {noon, func(_ *testing.T, v string) error { return os.Chmod(filepath.Join(v, "key.pem"), 0o640) }, pki.Exposed},
		"a key that others can read":    {noon, func(_ *testing.T, v string) error { return os.Chmod(filepath.Join(v, "key.pem"), 0o604) }, pki.Exposed},
		"a key that others can write":   {noon, func(_ *testing.T, v string) error { return os.Chmod(filepath.Join(v, "key.pem"), 0o602) }, pki.Exposed},
		"a key elsewhere": {noon, func(_ *testing.T, v string) error {
			return errors.Join(os.Rename(filepath.Join(v, "key.pem"), filepath.Join(v, "k")), os.Symlink("k", filepath.Join(v, "key.pem")))
		}, pki.Exposed},
		"the certificate of another key": {noon, func(t *testing.T, v string) error {
			return os.WriteFile(filepath.Join(v, "cert.pem"), []byte(other.Chain(t)), 0o644)
		}, pki.Mismatch},
		"the roots of another cluster": {noon, func(t *testing.T, v string) error {
			return os.WriteFile(filepath.Join(v, "ca.pem"), []byte(pki.NewBundle(authority(t, clusterB).Root()).PEM()), 0o644)
		}, pki.OtherCluster},
		"the roots of another CA": {noon, func(t *testing.T, v string) error {
			return os.WriteFile(filepath.Join(v, "ca.pem"), []byte(pki.NewBundle(authority(t, clusterA).Root()).PEM()), 0o644)
		}, pki.OtherCA},
		"an expired certificate": {noon.Add(pki.DefaultLeafLife + time.Second), func(*testing.T, string) error { return nil }, pki.Expired},
		"one not yet valid":      {noon.Add(-pki.Backdate - time.Second), func(*testing.T, string) error { return nil }, pki.NotYetValid},
		"a torn key":             {noon, func(_ *testing.T, v string) error { return os.Truncate(filepath.Join(v, "key.pem"), 100) }, pki.Malformed},
		"a torn certificate":     {noon, func(_ *testing.T, v string) error { return os.Truncate(filepath.Join(v, "cert.pem"), 100) }, pki.Malformed},
		"no roots":               {noon, func(_ *testing.T, v string) error { return os.Truncate(filepath.Join(v, "ca.pem"), 0) }, pki.Malformed},
		"no certificate":         {noon, func(_ *testing.T, v string) error { return os.Remove(filepath.Join(v, "cert.pem")) }, ""},
		"no key":                 {noon, func(_ *testing.T, v string) error { return os.Remove(filepath.Join(v, "key.pem")) }, ""},
		"a link to elsewhere": {noon, func(_ *testing.T, v string) error {
			link := filepath.Join(filepath.Dir(v), "current")
			return errors.Join(os.Remove(link), os.Symlink("../pki/"+filepath.Base(v), link))
		}, pki.Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store := openStore(t, dir)
			if err := store.Save(own); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(t, filepath.Join(dir, "pki", versions(t, dir)[0])); err != nil {
				t.Fatal(err)
			}
			_, err := store.Load(c.now)
			if err == nil || pki.ReasonOf(err) != c.reason || !strings.HasPrefix(err.Error(), "cannot ") {
				t.Errorf("refused as %q (%v), want %q", pki.ReasonOf(err), err, c.reason)
			}
		})
	}
}

// Readers of a store that is saved all the time get something whole every time.
func TestLoadWhileSaving(t *testing.T) {
	dir := t.TempDir()
	store := openStore(t, dir)
	r := rotate(t)
	all := []*pki.Credentials{
		member(t, r.old, pki.RoleAgent, "host-1"), memberAt(t, r.next, r.nextBundle, identity(t, clusterA, pki.RoleAgent, "host-1"), noon),
	}
	if err := store.Save(all[0]); err != nil {
		t.Fatal(err)
	}
	reader := openStore(t, dir)
	stop := make(chan struct{})
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := reader.Load(noon)
				if err != nil {
					t.Errorf("load: %v", err)
					return
				}
				if !slices.ContainsFunc(all, c.Equal) {
					t.Errorf("loaded %s, which nobody saved", c)
					return
				}
			}
		})
	}
	for n := range 60 {
		if err := store.Save(all[n%2]); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	reading.Wait()
}
