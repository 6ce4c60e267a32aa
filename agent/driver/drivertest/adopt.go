package drivertest

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"golang.org/x/sys/unix"
)

func stopRepeats(h *host) {
	spec := h.spec(modeServe)
	p := h.start(spec)
	h.ready(spec, 1)
	const callers = 4
	errs := make(chan error, callers)
	for range callers {
		go func() { errs <- h.Stop(h.ctx, p, patience) }() // waited for below
	}
	for range callers {
		if err := <-errs; err != nil {
			h.Error(err)
		}
	}
	if running(p.PID) {
		h.Error("still running")
	}
	h.check(h.Stop(h.ctx, p, patience))
	p.MachineBoot = "another boot of the machine"
	h.check(h.Stop(h.ctx, p, patience))
}

func stopCancelled(h *host) {
	spec := h.spec(modeStubborn)
	p := h.start(spec)
	h.ready(spec, 1)
	ctx, cancel := context.WithCancel(h.ctx)
	cancel()
	if err := h.Stop(ctx, p, patience); !errors.Is(err, context.Canceled) {
		h.Errorf("Stop = %v, want that it was cancelled", err)
	}
	h.check(h.Adopt(h.ctx, p))
}

func waitCancelled(h *host) {
	started := h.spec(modeServe)
	left := h.spec(modeServe)
	for _, p := range []driver.Process{h.start(started), h.leave(left)} {
		ctx, cancel := context.WithTimeout(h.ctx, 20*time.Millisecond)
		if _, err := h.Wait(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
			h.Errorf("Wait = %v, want that it was cancelled", err)
		}
		cancel()
		h.check(h.Adopt(h.ctx, p))
	}
}

func adopted(h *host) {
	spec := h.spec(modeServe)
	p := h.leave(spec)
	h.ready(spec, 1)
	h.check(h.Adopt(h.ctx, p))
	type result struct {
		exit driver.Exit
		err  error
	}
	waited := make(chan result, 1)
	go func() { // waited for below
		exit, err := h.Wait(h.ctx, p)
		waited <- result{exit, err}
	}()
	h.check(h.Stop(h.ctx, p, patience))
	r := <-waited
	h.check(r.err)
	if r.exit.Known || r.exit.Clean() {
		h.Errorf("exit = %+v: nobody can know it", r.exit)
	}
	if _, err := os.Stat(filepath.Join(spec.StateDir, "saved")); err != nil {
		h.Errorf("an adopted gateway had no final save: %v", err)
	}
	if running(p.PID) {
		h.Error("still running")
	}
}

func adoptedStubborn(h *host) {
	spec := h.spec(modeStubborn)
	p := h.leave(spec)
	h.ready(spec, 1)
	h.check(h.Stop(h.ctx, p, 20*time.Millisecond))
	if running(p.PID) {
		h.Error("still running")
	}
	if exit := h.wait(p); exit.Known {
		h.Errorf("exit = %+v: nobody can know it", exit)
	}
}

func reuse(h *host) {
	spec := h.spec(modeStubborn)
	p := h.start(spec)
	h.ready(spec, 1)
	for what, other := range map[string]driver.Process{
		"another start time":    {Gateway: p.Gateway, PID: p.PID, StartTime: p.StartTime - 1, MachineBoot: p.MachineBoot},
		"another boot":          {Gateway: p.Gateway, PID: p.PID, StartTime: p.StartTime, MachineBoot: "another"},
		"the first process":     {Gateway: p.Gateway, PID: 1, StartTime: p.StartTime, MachineBoot: p.MachineBoot},
		"no process at all":     {Gateway: p.Gateway, MachineBoot: p.MachineBoot},
		"a group, not a number": {Gateway: p.Gateway, PID: -p.PID, StartTime: p.StartTime, MachineBoot: p.MachineBoot},
	} {
		if err := h.Adopt(h.ctx, other); !errors.Is(err, driver.ErrGone) {
			h.Errorf("%s: Adopt = %v, want ErrGone", what, err)
		}
		if exit := h.wait(other); exit.Known {
			h.Errorf("%s: exit = %+v", what, exit)
		}
		if err := h.Stop(h.ctx, other, 0); err != nil {
			h.Errorf("%s: Stop = %v", what, err)
		}
	}
	h.check(h.Adopt(h.ctx, p)) // and nothing reached the process that runs
}

func goneIsGone(h *host) {
	spec := h.spec(modeServe)
	p := h.leave(spec)
	h.ready(spec, 1)
	h.check(unix.Kill(p.PID, unix.SIGKILL))
	// It may stay a zombie for as long as its new parent likes: that is gone, too.
	h.until("the process to end", func() bool { return !running(p.PID) })
	if err := h.Adopt(h.ctx, p); !errors.Is(err, driver.ErrGone) {
		h.Errorf("Adopt = %v, want ErrGone", err)
	}
	if exit := h.wait(p); exit.Known {
		h.Errorf("exit = %+v", exit)
	}
	h.check(h.Stop(h.ctx, p, patience))
	if all, err := h.List(h.ctx); err != nil || len(all) != 0 {
		h.Errorf("List = %v, %v", all, err)
	}
}

func listed(h *host) {
	if all, err := h.List(h.ctx); err != nil || len(all) != 0 {
		h.Fatalf("List of nothing = %v, %v", all, err)
	}
	other := newHost(h.T, h.factory) // its gateways are not ours
	foreign := other.spec(modeServe)
	other.start(foreign)
	known, left := h.spec(modeServe), h.spec(modeFamily)
	want := []driver.Process{h.start(known), h.leave(left)}
	h.ready(known, 1)
	h.ready(left, 1)
	other.ready(foreign, 1)
	got, err := h.List(h.ctx)
	h.check(err)
	byPID := func(a, b driver.Process) int { return a.PID - b.PID }
	slices.SortFunc(want, byPID)
	slices.SortFunc(got, byPID)
	if !slices.Equal(got, want) {
		h.Errorf("List = %+v\nwant   %+v", got, want)
	}
	for _, p := range got {
		h.check(h.Stop(h.ctx, p, patience))
	}
	if all, err := h.List(h.ctx); err != nil || len(all) != 0 {
		h.Errorf("List after all was stopped = %v, %v", all, err)
	}
}

// elsewhere has a gateway in a container that has the same paths, with files of its own: it is another agent's.
func elsewhere(h *host) {
	spec := h.spec(modeServe)
	args := []string{"--mount"}
	if os.Geteuid() != 0 {
		args = append(args, "--user", "--map-root-user")
	}
	foreign := exec.Command("unshare", append(args, "sh", "-ec", `mount -t tmpfs files "$1"; exec "$2"`, "sh", h.dir, spec.Program)...)
	foreign.Env = append(append(os.Environ(), spec.Env...), driver.EnvGateway+"="+string(spec.Gateway), driver.EnvListen+"="+spec.Listen)
	foreign.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := foreign.StdoutPipe()
	h.check(err)
	h.check(foreign.Start())
	h.Cleanup(func() {
		h.check(foreign.Process.Kill())
		_ = foreign.Wait() // killed
	})
	said, err := bufio.NewReader(out).ReadString('\n')
	h.check(err)
	if said != "ready\n" {
		h.Fatalf("the other agent's gateway said %q", said)
	}
	known := h.spec(modeServe)
	ours := h.start(known)
	h.ready(known, 1)
	if got, err := h.List(h.ctx); err != nil || !slices.Equal(got, []driver.Process{ours}) {
		h.Errorf("List = %+v, %v; want %+v alone", got, err, ours)
	}
	h.check(h.Stop(h.ctx, ours, patience))
}

// orphans: a gateway died while no agent was there, and its children live.
func orphans(h *host) {
	spec := h.spec(modeFamily)
	p := h.leave(spec)
	h.ready(spec, 1)
	pids := h.children(spec)
	h.check(unix.Kill(p.PID, unix.SIGKILL))
	h.until("the gateway to end", func() bool { return !running(p.PID) })
	all, err := h.List(h.ctx)
	h.check(err)
	for _, pid := range pids {
		if !slices.ContainsFunc(all, func(l driver.Process) bool { return l.PID == pid && l.Gateway == spec.Gateway }) {
			h.Errorf("List = %+v lacks %d", all, pid)
		}
	}
	for _, l := range all {
		h.check(h.Stop(h.ctx, l, 0))
	}
	for _, pid := range pids {
		if running(pid) {
			h.Errorf("process %d still runs", pid)
		}
	}
}

func missing(h *host) {
	spec := h.spec(modeServe)
	spec.Program = filepath.Join(h.dir, "no-such-program")
	_, err := h.Start(h.ctx, spec)
	if err == nil || !strings.Contains(err.Error(), spec.Program) || !strings.Contains(err.Error(), string(spec.Gateway)) {
		h.Errorf("missing program: %v, want an error that names it and the gateway", err)
	}
	h.check(os.WriteFile(spec.Program, []byte("#!/bin/sh\n"), 0o600))
	if _, err := h.Start(h.ctx, spec); err == nil || !strings.Contains(err.Error(), spec.Program) {
		h.Errorf("program that cannot be executed: %v, want an error that names it", err)
	}
	if all, err := h.List(h.ctx); err != nil || len(all) != 0 {
		h.Errorf("List = %v, %v", all, err)
	}
}

func wrongSpec(h *host) {
	for what, change := range map[string]func(*driver.Spec){
		"gateway id":               func(s *driver.Spec) { s.Gateway = "../../etc" },
		"relative program":         func(s *driver.Spec) { s.Program = "gateway" },
		"socket somewhere else":    func(s *driver.Spec) { s.Listen = "/elsewhere/x.sock" },
		"socket out of the way up": func(s *driver.Spec) { s.Listen = h.dir + "/../x.sock" },
		"log in a file's place":    func(s *driver.Spec) { s.LogFile = s.Program + "/log" },
		"state in a file's place":  func(s *driver.Spec) { s.StateDir = s.Program + "/state" },
	} {
		spec := h.spec(modeServe)
		change(&spec)
		if p, err := h.Start(h.ctx, spec); err == nil {
			h.Errorf("%s: started %+v", what, p)
		}
	}
	ctx, cancel := context.WithCancel(h.ctx)
	cancel()
	if _, err := h.Start(ctx, h.spec(modeServe)); !errors.Is(err, context.Canceled) {
		h.Errorf("cancelled: %v", err)
	}
}
