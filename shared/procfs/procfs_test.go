package procfs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/procfs"
)

const rest = " S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 1000 200"

func TestParseStat(t *testing.T) {
	want := procfs.Stat{PID: 42, State: 'S', Parent: 1, Group: 42, Session: 43, Used: 110 * time.Millisecond, Start: 123456}
	for name, tt := range map[string]struct {
		text string
		why  string // it is refused
	}{
		"plain":                          {"42 (sleep)" + rest, ""},
		"nothing after the time":         {"42 (sleep)" + strings.TrimSuffix(rest, " 1000 200"), ""},
		"spaces in the name":             {"42 (a b c)" + rest, ""},
		"a name that looks like the end": {"42 (x) R 9 9 9 (y))" + rest, ""},
		"cut off":                        {"42 (sleep) S 1 42", "cut off"},
		"cut off before the time":        {"42 (sleep)" + strings.TrimSuffix(rest, " 123456 1000 200"), "cut off"},
		"no name":                        {"42 sleep" + rest, "no name"},
		"empty":                          {"", "no name"},
		"a longer state":                 {"42 (sleep) SS" + rest[2:], "one letter"},
		"no parent":                      {"42 (sleep)" + strings.Replace(rest, " 1 ", " x ", 1), `"x"`},
		"no group":                       {"42 (sleep)" + strings.Replace(rest, " 42 ", " x ", 1), `"x"`},
		"no session":                     {"42 (sleep)" + strings.Replace(rest, " 43 ", " x ", 1), `"x"`},
		"no processor time":              {"42 (sleep)" + strings.Replace(rest, " 6 ", " x ", 1), `"x"`},
		"no time":                        {"42 (sleep)" + strings.Replace(rest, " 123456 ", " -1 ", 1), `"-1"`},
	} {
		got, err := procfs.Parse(42, []byte(tt.text))
		if tt.why == "" && (err != nil || got != want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
		if tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why) || !strings.Contains(err.Error(), "process 42")) {
			t.Errorf("%s: %+v, %v; want an error of process 42 that says %s", name, got, err, tt.why)
		}
	}
}

// Whatever stands there is refused, or what is read of it is what the same text would say anew.
func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (sleep)" + rest))
	f.Add([]byte("42 (()) Z"))
	f.Add([]byte("42 (a) b) Z 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 18446744073709551616 1 2 3"))
	f.Add([]byte(") "))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := procfs.Parse(42, b)
		if err != nil {
			if s != (procfs.Stat{}) || !strings.Contains(err.Error(), "process 42") {
				t.Errorf("refused with %+v, %v", s, err)
			}
			return
		}
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if fields[0] != string([]byte{s.State}) {
			t.Errorf("the state of %q is read as %q", b, s.State)
		}
		text := fmt.Sprintf("42 (x) %s %d %d %d 0 -1 0 0 0 0 0 %s %s 0 0 0 0 0 0 %d", fields[0], s.Parent, s.Group, s.Session, fields[11], fields[12], s.Start)
		if again, err := procfs.Parse(42, []byte(text)); err != nil || again != s {
			t.Errorf("%q is read as %+v, and %q as %+v, %v", b, s, text, again, err)
		}
	})
}

// What the parser says of real processes is what the system says in other ways.
func TestProcesses(t *testing.T) {
	own, err := procfs.Read(os.Getpid())
	if err != nil || !own.Running() || own.Stopped() || own.Start == 0 || own.Parent != os.Getppid() || own.Group != syscall.Getpgrp() {
		t.Errorf("own: %+v, %v", own, err)
	}
	child := exec.Command("sleep", "600")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := child.Process.Pid
	defer func() { _, _ = child.Process.Kill(), child.Wait() }()
	s, err := procfs.Read(pid)
	if err != nil || s.Parent != os.Getpid() || s.Group != pid || s.Session != pid || s.Start < own.Start {
		t.Errorf("the child: %+v, %v", s, err)
	}
	listed := func() bool {
		return slices.ContainsFunc(procfs.All(), func(l procfs.Stat) bool { return l.PID == pid && l.Start == s.Start })
	}
	if !slices.Contains(procfs.PIDs(), pid) || !listed() {
		t.Error("the child is not listed")
	}
	_ = child.Process.Signal(syscall.SIGSTOP)
	waitFor(t, "the child to be stopped", func() bool { s, err := procfs.Read(pid); return err == nil && s.Stopped() })
	_ = child.Process.Kill()
	waitFor(t, "the child to be a zombie", func() bool { s, err := procfs.Read(pid); return err == nil && !s.Running() })
	if !listed() {
		t.Error("the zombie is not listed")
	}
	_ = child.Wait()
	if _, err := procfs.Read(pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a process that is no more: %v", err)
	}
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestBootStaysTheSame(t *testing.T) {
	first, err := procfs.Boot()
	second, _ := procfs.Boot()
	if err != nil || len(first) != 36 || first != second {
		t.Errorf("%q, then %q: %v", first, second, err)
	}
}
