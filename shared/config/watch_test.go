package config_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/hashicorp/go-hclog"
)

// watched runs a Watcher and returns how to wait until onChange has seen the given contents.
func watched(t *testing.T, path string) (wait func(want string)) {
	t.Helper()
	w, err := config.NewWatcher(path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	seen := make(chan string, 100)
	done := make(chan struct{})
	go func() { // waited for by the cleanup
		defer close(done)
		w.Run(ctx, func() {
			data, err := os.ReadFile(path)
			if err != nil {
				seen <- "(gone)"
				return
			}
			seen <- string(data)
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func(want string) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			select {
			case got := <-seen:
				if got == want {
					return
				}
			case <-deadline:
				t.Fatalf("the change to %q was not seen", want)
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestWatchSurvivesWhatEditorsDo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.yaml")
	put(t, path, "0")
	wait := watched(t, path)
	put(t, path, "1") // in place
	wait("1")
	for _, text := range []string{"2", "3"} { // renamed over, twice: the first watch must not be the last
		put(t, path+".tmp", text)
		must(t, os.Rename(path+".tmp", path))
		wait(text)
	}
	must(t, os.Rename(path, path+"~")) // moved aside, then written anew
	put(t, path, "4")
	wait("4")
	must(t, os.Remove(path))
	wait("(gone)")
	put(t, path, "5")
	wait("5")
}

func TestWatchSurvivesSwitchedLinks(t *testing.T) {
	dir := t.TempDir()
	link := func(target, at string) {
		t.Helper()
		must(t, os.Symlink(target, at+".tmp"))
		must(t, os.Rename(at+".tmp", at))
	}
	release := func(name, text string) {
		t.Helper()
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		put(t, filepath.Join(dir, name, "agent.yaml"), text)
	}
	release("r1", "one")
	release("r2", "two")
	release("r3", "three")
	// The shape of a mounted configuration volume: file -> current/file, current -> r1.
	link("r1", filepath.Join(dir, "current"))
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o700))
	path := filepath.Join(dir, "etc", "agent.yaml")
	link(filepath.Join("..", "current", "agent.yaml"), path)
	wait := watched(t, path)
	link("r2", filepath.Join(dir, "current"))
	wait("two")
	put(t, filepath.Join(dir, "r2", "agent.yaml"), "two, changed") // the new target is watched as well
	wait("two, changed")
	link(filepath.Join(dir, "r3"), filepath.Join(dir, "current"))
	wait("three")
	must(t, os.RemoveAll(filepath.Join(dir, "r3")))
	wait("(gone)")
	release("r3", "three again")
	wait("three again")
}

func TestWatchOfSameContentsIsQuiet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	put(t, path, "same")
	w, err := config.NewWatcher(path, hclog.NewNullLogger())
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	calls := make(chan string, 10)
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		w.Run(ctx, func() { data, _ := os.ReadFile(path); calls <- string(data) })
	}()
	for range 5 {
		put(t, path+".tmp", "same")
		must(t, os.Rename(path+".tmp", path))
	}
	put(t, path, "other") // the one change; what came before it must not have been reported
	select {
	case got := <-calls:
		if got != "other" {
			t.Errorf("reported with contents %q", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("the change was not seen")
	}
	cancel()
	<-done
}

func TestWatchOfMissingDirectoryIsRefused(t *testing.T) {
	if _, err := config.NewWatcher(filepath.Join(t.TempDir(), "none", "agent.yaml"), hclog.NewNullLogger()); err == nil {
		t.Fatal("accepted")
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w, err := config.NewWatcher(path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	w.Run(ctx, func() {})
}
