// Package driver says how the agent runs one gateway process, whatever it is that runs it: processes of
// its own (driver/process) or systemd. Both pass the suite of driver/drivertest.
//
// A gateway outlives the agent that started it. What identifies it is a Process: the number alone is not
// enough, because the kernel gives numbers out again.
package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// ErrGone says that a process does not run any more, or never was the one that is meant.
var ErrGone = errors.New("the process is gone")

// Variables of the environment that every driver sets for a gateway (architecture, section 6). EnvGateway
// and EnvListen are also the mark by which List finds what was left over.
const (
	EnvGateway  = "DEMIURGE_GATEWAY_ID"
	EnvListen   = "DEMIURGE_LISTEN"
	EnvControl  = "DEMIURGE_CONTROL"
	EnvStateDir = "DEMIURGE_STATE_DIR"
)

// Spec is what to run.
type Spec struct {
	Gateway  id.Gateway
	Program  string     // absolute path
	Args     []string   // without the program's name
	Env      []string   // "KEY=value", besides what the driver sets; nothing is inherited from the agent
	Listen   string     // unix socket that the gateway listens on, absolute
	Control  string     // unix socket of the agent for this gateway, absolute; may be empty
	StateDir string     // absolute; made when it is missing; also the working directory
	LogFile  string     // absolute; standard output and error are appended
	Limits   api.Limits // what a driver cannot enforce its package documents
}

// Check finds what cannot work before anything is started.
func (s Spec) Check() error {
	if _, err := id.ParseGateway(string(s.Gateway)); err != nil {
		return err
	}
	paths := []struct{ name, value string }{
		{"program", s.Program}, {"listen socket", s.Listen}, {"state directory", s.StateDir}, {"log file", s.LogFile},
	}
	if s.Control != "" {
		paths = append(paths, struct{ name, value string }{"control socket", s.Control})
	}
	for _, p := range paths {
		if !filepath.IsAbs(p.value) {
			return fmt.Errorf("cannot start gateway %s: the %s %q is not an absolute path", s.Gateway, p.name, p.value)
		}
	}
	return nil
}

// Environ is the whole environment of the gateway. What the driver sets stands last, so that Env cannot
// replace it.
func (s Spec) Environ() []string {
	env := append([]string{}, s.Env...)
	env = append(env, EnvGateway+"="+string(s.Gateway), EnvListen+"="+s.Listen, EnvStateDir+"="+s.StateDir)
	if s.Control != "" {
		env = append(env, EnvControl+"="+s.Control)
	}
	return env
}

// Process identifies one running process for good. It is comparable, and its JSON form goes into journals.
type Process struct {
	Gateway     id.Gateway `json:"gateway"`
	PID         int        `json:"pid"`
	StartTime   uint64     `json:"start_time"`   // clock ticks since the machine's boot: /proc/<pid>/stat, field 22
	MachineBoot string     `json:"machine_boot"` // /proc/sys/kernel/random/boot_id
}

// Exit is how a process ended.
type Exit struct {
	Code   int    // exit code, when it ended by itself
	Signal string // name of the signal that ended it ("SIGKILL"), else empty
	Known  bool   // false for an adopted process: only a parent learns how its child ended
}

// String says it for logs and reports.
func (e Exit) String() string {
	switch {
	case !e.Known:
		return "ended, nobody saw how"
	case e.Signal != "":
		return "ended by " + e.Signal
	}
	return fmt.Sprintf("exited with code %d", e.Code)
}

// Clean reports whether the process ended by itself and without an error. It says nothing of whether it
// was to end: a gateway that is wanted is started again after a clean exit and after a crash alike.
func (e Exit) Clean() bool { return e.Known && e.Signal == "" && e.Code == 0 }

// Driver runs gateway processes. Its methods may be called at the same time, also for one process.
type Driver interface {
	// Start runs the program in a session of its own, so that it outlives the agent and a signal to the
	// agent's group does not reach it. Output is appended to the log file. No descriptor is handed on.
	// When it returns the program is running, not yet healthy. The context bounds the start alone.
	Start(ctx context.Context, spec Spec) (Process, error)

	// Adopt takes up a process that an earlier run of the agent started. ErrGone when it does not run any
	// more, is a zombie, or the number belongs to another process now.
	Adopt(ctx context.Context, p Process) error

	// Wait blocks until the process has ended, and ends what is left of its session. A process that is
	// not running gives its exit where it is known and otherwise an Exit that is not Known.
	Wait(ctx context.Context, p Process) (Exit, error)

	// Stop sends SIGTERM to the process alone and after the grace SIGKILL to all of its session. It
	// returns nil only when all of it is gone; a process that is gone already is no error.
	Stop(ctx context.Context, p Process, grace time.Duration) error

	// List finds every process of this driver that runs now, also those that no journal knows.
	List(ctx context.Context) ([]Process, error)
}
