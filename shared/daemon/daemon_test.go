package daemon_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/daemon"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

type settings struct {
	Word string         `yaml:"word"`
	Log  logging.Config `yaml:"log"`
}

func (s *settings) Validate() error {
	if s.Word == "" {
		return config.Invalid("word", "it is empty", "set one")
	}
	return s.Log.Validate("log")
}

type program struct {
	failed  chan error
	stopped atomic.Int32
}

func (p *program) Healthy() bool              { return true }
func (p *program) Failed() <-chan error       { return p.failed }
func (p *program) Stop(context.Context) error { p.stopped.Add(1); return nil }

type running struct {
	*program
	log  hclog.Logger
	path string
	hup  chan os.Signal
	end  context.CancelFunc
	done chan error
}

// run starts a program with a configuration file of this text.
func run(t *testing.T, text string) *running {
	t.Helper()
	r := &running{
		program: &program{failed: make(chan error, 1)}, path: filepath.Join(t.TempDir(), "x.yaml"),
		hup: make(chan os.Signal, 1), done: make(chan error, 1),
	}
	r.write(t, text)
	ctx, cancel := context.WithCancel(context.Background())
	r.end = cancel
	t.Cleanup(cancel)
	started := make(chan hclog.Logger, 1)
	go func() {
		r.done <- daemon.Run(ctx, daemon.Options[*settings]{
			Name: "test", Path: r.path, Hup: r.hup,
			Default: func() *settings { return &settings{Log: logging.Config{Level: "off", Format: "text"}} },
			Log:     func(s *settings) *logging.Config { return &s.Log },
			Start: func(_ *settings, log hclog.Logger) (daemon.Program, error) {
				started <- log
				return r.program, nil
			},
		})
	}()
	select {
	case r.log = <-started:
	case err := <-r.done:
		r.done <- err
	}
	return r
}

func (r *running) write(t *testing.T, text string) {
	t.Helper()
	next := r.path + ".new"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, r.path); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestItStopsWithItsContext(t *testing.T) {
	r := run(t, "word: a\n")
	r.end()
	if err := <-r.done; err != nil || r.stopped.Load() != 1 {
		t.Errorf("error %v, stopped %d times", err, r.stopped.Load())
	}
}

func TestItStopsWhenAPartFails(t *testing.T) {
	r := run(t, "word: a\n")
	broken := errors.New("broken")
	r.failed <- broken
	if err := <-r.done; !errors.Is(err, broken) || r.stopped.Load() != 1 {
		t.Errorf("error %v, stopped %d times", err, r.stopped.Load())
	}
}

func TestItDoesNotStartWithAWrongConfiguration(t *testing.T) {
	r := run(t, "word: a\nother: b\n")
	if err := <-r.done; err == nil || r.log != nil {
		t.Errorf("error %v, log %v", err, r.log)
	}
}

// Somebody may edit the file while the program is still on its way up.
func TestAChangeDuringTheStartIsSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.yaml")
	r := &running{path: path, done: make(chan error, 1)}
	r.write(t, "word: a\n")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan hclog.Logger, 1)
	go func() {
		r.done <- daemon.Run(ctx, daemon.Options[*settings]{
			Name: "test", Path: path,
			Default: func() *settings { return &settings{Log: logging.Config{Level: "off", Format: "text"}} },
			Log:     func(s *settings) *logging.Config { return &s.Log },
			Start: func(_ *settings, log hclog.Logger) (daemon.Program, error) {
				r.write(t, "word: a\nlog: {level: debug}\n")
				started <- log
				return &program{failed: make(chan error, 1)}, nil
			},
		})
	}()
	log := <-started
	waitFor(t, "the change is read", func() bool { return log.GetLevel() == hclog.Debug })
	cancel()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

func TestTheLogLevelIsReloaded(t *testing.T) {
	r := run(t, "word: a\n")
	r.write(t, "word: a\nlog: {level: debug}\n")
	waitFor(t, "the changed file is read", func() bool { return r.log.GetLevel() == hclog.Debug })
	r.write(t, "word: a\nlog: {level: nonsense}\n") // refused, the level stays
	r.hup <- syscall.SIGHUP
	r.write(t, "word: b\nlog: {level: error}\n")
	r.hup <- syscall.SIGHUP
	waitFor(t, "SIGHUP reads it", func() bool { return r.log.GetLevel() == hclog.Error })
	r.end()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}
