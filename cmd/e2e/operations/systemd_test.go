//go:build e2e

package operations

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
)

const (
	socketVariable  = "OPERATIONS_SYSTEMD" // makes this program systemctl: where the stand-in for systemd listens
	machineVariable = "OPERATIONS_MACHINE" // on which machine
	readyWithin     = 60 * time.Second     // a unit, or it has failed
)

// machine is one machine with its units.
type machine struct {
	*lab.Machine
	t      *testing.T
	logs   string   // directory of what its programs said
	prefix string   // what a shell on it begins with
	env    []string // of its shells

	mu      sync.Mutex
	running map[string]*lab.Program // by unit; guarded by mu
}

// call is one systemctl.
type call struct {
	Machine string
	Args    []string
}

func TestMain(m *testing.M) {
	if socket := os.Getenv(socketVariable); socket != "" {
		os.Exit(systemctl(socket))
	}
	os.Exit(m.Run())
}

// systemctl asks the stand-in for systemd, and fails when it does.
func systemctl(socket string) int {
	conn, err := net.Dial("unix", socket)
	if err == nil {
		err = json.NewEncoder(conn).Encode(call{os.Getenv(machineVariable), os.Args[1:]})
	}
	var wrong string
	if err == nil {
		err = json.NewDecoder(conn).Decode(&wrong)
	}
	if err == nil && wrong != "" {
		err = errors.New(wrong)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "systemctl:", err)
		return 1
	}
	return 0
}

// listen lets every machine's systemctl reach this process.
func (w *world) listen() (socket string) {
	w.t.Helper()
	socket = filepath.Join(w.dir, "systemd.sock")
	l, err := net.Listen("unix", socket)
	w.must(err)
	w.t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var c call
			wrong := ""
			if err = json.NewDecoder(conn).Decode(&c); err == nil {
				err = w.machines[c.Machine].systemctl(c.Args)
			}
			if err != nil {
				wrong = err.Error()
			}
			_ = json.NewEncoder(conn).Encode(wrong) // who asked may be gone
			_ = conn.Close()
		}
	}()
	return socket
}

// unit is what a unit's file says of its service.
type unit struct {
	name   string
	values map[string]string
}

// unit reads a unit's file on the machine.
func (m *machine) unit(name string) (unit, error) {
	u := unit{name: strings.TrimSuffix(name, ".service"), values: map[string]string{}}
	text, err := os.ReadFile(m.Path("/usr/lib/systemd/system/" + u.name + ".service"))
	if err != nil {
		return u, fmt.Errorf("there is no unit %s: %w", name, err)
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			u.values[key] = value
		}
	}
	return u, nil
}

// systemctl does what systemctl does, as far as the document uses it.
func (m *machine) systemctl(args []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var verb string
	var now, kill bool
	var names []string
	for _, a := range args {
		switch {
		case a == "--now":
			now = true
		case a == "--signal=KILL":
			kill = true
		case verb == "":
			verb = a
		default:
			names = append(names, a)
		}
	}
	if verb == "daemon-reload" {
		return nil // units are read whenever they are used
	}
	for _, name := range names {
		u, err := m.unit(name)
		switch {
		case err != nil:
		case verb == "start" || verb == "enable" && now:
			err = m.start(u)
		case verb == "stop" || verb == "disable" && now:
			err = m.stop(u)
		case verb == "restart":
			err = errors.Join(m.stop(u), m.start(u))
		case verb == "kill" && kill:
			err = m.end(u)
		default:
			err = fmt.Errorf("nobody knows how to %s", strings.Join(args, " "))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// start runs a unit's program and waits until it is ready. The caller holds mu.
func (m *machine) start(u unit) error {
	if p := m.running[u.name]; p != nil && p.Running() {
		return nil
	}
	log := filepath.Join(m.logs, u.name+".log")
	script := "umask " + u.values["UMask"] + "\n"
	if pre := u.values["ExecStartPre"]; pre != "" {
		script += pre + " && "
	}
	capabilities := ""
	if u.values["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE" {
		capabilities = "+net_bind_service"
	}
	socket := filepath.Join(m.logs, u.name+".notify")
	ready, err := m.hear(socket)
	if err != nil {
		return fmt.Errorf("cannot hear unit %s: %w", u.name, err)
	}
	p := m.Service(m.Name+" "+u.name, log, u.values["User"], capabilities, []string{"NOTIFY_SOCKET=" + socket}, script+"exec "+u.values["ExecStart"])
	m.running[u.name] = p
	if err := p.Start(); err != nil || u.values["Type"] != "notify" {
		return err
	}
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(readyWithin); time.Now().Before(end); {
		select {
		case <-ready:
			return nil
		case <-look.C:
			if !p.Running() {
				return fmt.Errorf("unit %s failed: %s", u.name, tail(log))
			}
		}
	}
	return fmt.Errorf("unit %s is not ready: %s", u.name, tail(log))
}

// hear listens to what a unit's program says of itself, until the test ends.
func (m *machine) hear(socket string) (ready <-chan struct{}, err error) {
	_ = os.Remove(socket) // of an earlier start
	messages, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err == nil {
		err = os.Chmod(socket, 0o777)
	}
	if err != nil {
		return nil, err
	}
	m.t.Cleanup(func() { _ = messages.Close() })
	said := make(chan struct{})
	go func() { // ends when it is closed
		buffer, told := make([]byte, 4096), false
		for {
			n, err := messages.Read(buffer)
			if err != nil {
				return
			}
			if !told && strings.Contains(string(buffer[:n]), "READY=1") {
				told = true
				close(said)
			}
		}
	}()
	return said, nil
}

// stop ends a unit's main process. The caller holds mu.
func (m *machine) stop(u unit) error {
	if p := m.running[u.name]; p != nil {
		return p.End()
	}
	return nil
}

// end kills all that a unit's program has started. The caller holds mu.
func (m *machine) end(u unit) error {
	var errs []error
	if p := m.running[u.name]; p != nil {
		errs = append(errs, p.Kill())
	}
	pids, err := m.Processes("demiurge-gateway")
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, err)...)
}

// tail is the end of a log.
func tail(log string) string {
	text, _ := os.ReadFile(log) // where there is none, nothing was said
	return string(text[max(0, len(text)-2000):])
}
