package fsx_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
)

func open(t *testing.T) (*fsx.OS, string) {
	t.Helper()
	dir := t.TempDir()
	o, err := fsx.NewOS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close() })
	return o, dir
}

func TestNothingLeadsOutOfTheRoots(t *testing.T) {
	o, dir := open(t)
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "door")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{secret, dir + "/../" + filepath.Base(outside) + "/secret", dir + "/door/secret", dir + "x/secret", "relative"} {
		calls := map[string]func() error{
			"write":   func() error { return o.Write("w", path, []byte("overwritten"), 0o600) },
			"sync":    func() error { return o.WriteSync("w", path, []byte("overwritten"), 0o600) },
			"read":    func() error { _, err := o.ReadFile("r", path); return err },
			"remove":  func() error { return o.Remove("x", path) },
			"mkdir":   func() error { return o.MkdirAll("m", path+"/dir", 0o700) },
			"symlink": func() error { return o.Symlink("l", "x", path+".link") },
			"rename":  func() error { return o.Rename("n", path, dir+"/stolen") },
			"link":    func() error { return o.Link("n", path, dir+"/stolen") },
		}
		for name, call := range calls {
			if err := call(); err == nil {
				t.Errorf("%s of %s is allowed", name, path)
			}
		}
		_ = o.RemoveAll("x", path)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Errorf("outside: %q %v", b, err)
	}
}

func TestWriteAtomicAtEveryCrash(t *testing.T) {
	o, dir := open(t)
	path := filepath.Join(dir, "file")
	write := func(f fsx.FS, text string) error { return fsx.WriteAtomic(f, "file", path, []byte(text), 0o600) }
	f := fsxtest.New(o)
	if err := write(f, "old content"); err != nil {
		t.Fatal(err)
	}
	points := f.Points()
	if len(points) != 4 {
		t.Errorf("steps: %v", points)
	}
	for _, p := range points {
		f := fsxtest.New(o)
		f.CrashAt(p)
		if err := write(f, "new content"); !errors.Is(err, fsxtest.ErrCrashed) {
			t.Errorf("%v: %v", p, err)
		}
		b, err := os.ReadFile(path)
		if want := map[bool]string{true: "new content", false: "old content"}[p.Label == "file.sync"]; err != nil || string(b) != want {
			t.Errorf("%v: %q %v, want %q", p, b, err, want)
		}
		if err := fsx.RemoveTemps(o, "clean", dir); err != nil {
			t.Error(err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("%v: left over %v", p, entries)
		}
		if err := write(o, "old content"); err != nil {
			t.Error(err)
		}
	}
}

func TestSymlinkAtomicNeverMissing(t *testing.T) {
	o, dir := open(t)
	path := filepath.Join(dir, "link")
	if err := fsx.SymlinkAtomic(o, "link", "a", path); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if got, err := o.Readlink("r", path); err != nil || got != "a" && got != "b" {
					t.Errorf("%q %v", got, err)
					return
				}
			}
		}
	})
	for range 500 {
		for _, target := range []string{"b", "a"} {
			if err := fsx.SymlinkAtomic(o, "link", target, path); err != nil {
				t.Error(err)
			}
		}
	}
	close(done)
	group.Wait()
}

func TestOperations(t *testing.T) {
	o, dir := open(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	steps := []struct {
		name string
		do   func() error
		want error
	}{
		{"mkdir", func() error { return o.MkdirAll("l", at("a/b"), 0o700) }, nil},
		{"mkdir again", func() error { return o.MkdirAll("l", at("a/b"), 0o700) }, nil},
		{"the root itself", func() error { return o.MkdirAll("l", dir, 0o700) }, nil},
		{"write", func() error { return o.Write("l", at("a/f"), []byte("12345"), 0o600) }, nil},
		{"link", func() error { return o.Link("l", at("a/f"), at("a/g")) }, nil},
		{"link again", func() error { return o.Link("l", at("a/f"), at("a/g")) }, fs.ErrExist},
		{"symlink", func() error { return o.Symlink("l", "../x", at("a/s")) }, nil},
		{"symlink again", func() error { return o.Symlink("l", "../x", at("a/s")) }, fs.ErrExist},
		{"sync", func() error { return errors.Join(o.SyncDir("l", at("a")), o.SyncFS("l", dir), o.Step("l")) }, nil},
		{"rename", func() error { return o.Rename("l", at("a/f"), at("a/h")) }, nil},
		{"rename nothing", func() error { return o.Rename("l", at("a/f"), at("a/h")) }, fs.ErrNotExist},
		{"remove a full directory", func() error { return o.Remove("l", at("a")) }, syscall.ENOTEMPTY},
		{"remove nothing", func() error { return o.Remove("l", at("a/f")) }, fs.ErrNotExist},
		{"lstat", func() error { _, err := o.Lstat("l", at("a/s")); return err }, nil},
		{"list nothing", func() error { _, err := o.ReadDir("l", at("zz")); return err }, fs.ErrNotExist},
		{"remove all", func() error { return errors.Join(o.RemoveAll("l", at("a")), o.RemoveAll("l", at("a"))) }, nil},
	}
	for _, s := range steps {
		if err := s.do(); !errors.Is(err, s.want) || s.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", s.name, err, s.want)
		}
	}
	if _, err := fsx.NewOS(at("nowhere")); err == nil {
		t.Error("a root that does not exist is opened")
	}
}

func TestFaulty(t *testing.T) {
	o, dir := open(t)
	f := fsxtest.New(o)
	path := filepath.Join(dir, "file")
	f.Fail("a", syscall.EIO)
	if err := f.Write("a", path, nil, 0o600); !errors.Is(err, syscall.EIO) {
		t.Errorf("named: %v", err)
	}
	f.Fail("a", nil)
	f.Fail("", syscall.ENOSPC)
	if err := errors.Join(f.Step("s"), f.SyncDir("d", dir)); err != nil {
		t.Errorf("what takes no space fails on a full disk: %v", err)
	}
	if err := f.Write("a", path, nil, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	f.Fail("", nil)
	hooked := false
	f.Before("a", func() { hooked = true })
	f.CrashAt(fsxtest.Point{Label: "a", N: 2, Torn: true})
	if err := f.Write("a", path, []byte("12345678"), 0o600); err != nil || !hooked {
		t.Errorf("before the crash: %v, hooked %t", err, hooked)
	}
	if err := f.Write("a", path, []byte("abcdefgh"), 0o600); !errors.Is(err, fsxtest.ErrCrashed) {
		t.Errorf("at the crash: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "abcd" {
		t.Errorf("a torn write left %q", b)
	}
	select {
	case <-f.Crashed():
	default:
		t.Error("the crash is not told")
	}
	if err := f.Step("later"); !errors.Is(err, fsxtest.ErrCrashed) {
		t.Errorf("after the crash: %v", err)
	}
	if _, err := f.ReadFile("r", path); !errors.Is(err, fsxtest.ErrCrashed) {
		t.Errorf("a read after the crash: %v", err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := fsx.TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsx.TryLock(path); !errors.Is(err, fsx.ErrLocked) {
		t.Errorf("a second holder: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := fsx.Lock(ctx, path); !errors.Is(err, fsx.ErrLocked) {
		t.Errorf("waited: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		unlock, err := fsx.Lock(context.Background(), path)
		if err == nil {
			unlock()
		}
		got <- err
	}()
	unlock()
	unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
