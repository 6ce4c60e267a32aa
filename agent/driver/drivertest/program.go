// Package drivertest is the suite that every driver passes. The programs it runs are the test binary
// itself, started again: a package that uses it calls Main from its TestMain.
package drivertest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"golang.org/x/sys/unix"
)

// Factory makes a driver of a run directory. It is called in the test's process and in another one that
// plays an agent which goes away.
type Factory func(runDir string) (driver.Driver, error)

// envMode tells the test binary which program to be; envRunDir is for the agent that goes away.
const (
	envMode   = "DRIVERTEST_MODE"
	envRunDir = "DRIVERTEST_RUN_DIR"
)

// The programs.
const (
	modeServe    = "serve"    // says "ready", on SIGTERM saves and exits 0
	modeStubborn = "stubborn" // ignores SIGTERM
	modeFamily   = "family"   // has children: in its group, in a group of its own
	modeExit     = "exit"     // says a word and exits with the code of its argument
	modeCrash    = "crash"    // says a word and kills itself
	modeDescribe = "describe" // writes down what it was given, then serves
	modeChatter  = "chatter"  // writes numbered lines until its argument, then serves
	modeAgent    = "agent"    // starts the specification on its standard input and goes away
)

// Main runs the tests, or, started again by one, a program.
func Main(m *testing.M, factory Factory) {
	mode := os.Getenv(envMode)
	if mode == "" {
		os.Exit(m.Run())
	}
	if err := program(mode, factory); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func program(mode string, factory Factory) error {
	switch mode {
	case modeServe:
		return serve()
	case modeStubborn:
		signal.Ignore(unix.SIGTERM)
		return forever()
	case modeFamily:
		return family()
	case modeExit:
		fmt.Println("last words")
		code, err := strconv.Atoi(os.Args[1])
		if err != nil {
			return err
		}
		os.Exit(code)
	case modeCrash:
		fmt.Println("last words")
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	case modeDescribe:
		return describe()
	case modeChatter:
		lines, err := strconv.Atoi(os.Args[1])
		if err != nil {
			return err
		}
		for i := range lines {
			fmt.Printf("line %06d of some length to fill the log\n", i)
		}
		return serve()
	case modeAgent:
		return agent(factory)
	}
	return fmt.Errorf("no such program: %q", mode)
}

// serve is a well-behaved gateway: what it saves at SIGTERM is the proof that the signal reached it.
func serve() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	fmt.Println("ready")
	<-stop
	return os.WriteFile("saved", []byte("saved"), 0o600)
}

// forever blocks without being a deadlock for the runtime.
func forever() error {
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour)
	}
}

// family starts two children that ignore SIGTERM and writes their numbers down.
func family() error {
	var pids []string
	for _, ownGroup := range []bool{false, true} {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), envMode+"="+modeStubborn)
		child.SysProcAttr = &syscall.SysProcAttr{Setpgid: ownGroup}
		out, err := child.StdoutPipe()
		if err != nil {
			return err
		}
		if err := child.Start(); err != nil {
			return err
		}
		if _, err := out.Read(make([]byte, 5)); err != nil { // until it ignores SIGTERM
			return err
		}
		pids = append(pids, strconv.Itoa(child.Process.Pid))
	}
	if err := os.WriteFile("children", []byte(strings.Join(pids, "\n")), 0o600); err != nil {
		return err
	}
	return serve()
}

// Description is what a program was given by its driver.
type Description struct {
	Args      []string `json:"args"`
	Env       []string `json:"env"`
	Dir       string   `json:"dir"`
	Session   int      `json:"session"`
	PID       int      `json:"pid"`
	Inherited []string `json:"inherited"` // descriptors beside the first three
}

func describe() error {
	d := Description{Args: os.Args[1:], Env: os.Environ(), PID: os.Getpid()}
	var err error
	if d.Dir, err = os.Getwd(); err != nil {
		return err
	}
	if d.Session, err = unix.Getsid(0); err != nil {
		return err
	}
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	for _, name := range names {
		n, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			return err
		}
		// What this program opened itself is closed at exec; what it was given is not.
		flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
		if err == nil && n > 2 && flags&unix.FD_CLOEXEC == 0 {
			target, _ := os.Readlink(name)
			d.Inherited = append(d.Inherited, target)
		}
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := os.WriteFile("description", b, 0o600); err != nil {
		return err
	}
	return serve()
}

// agent starts one gateway and goes away without stopping it.
func agent(factory Factory) error {
	var spec driver.Spec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return err
	}
	d, err := factory(os.Getenv(envRunDir))
	if err != nil {
		return err
	}
	p, err := d.Start(context.Background(), spec)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(p)
}
