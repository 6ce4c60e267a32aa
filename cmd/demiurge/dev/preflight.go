package dev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

// programs are the paths of what a system is made of.
type programs struct {
	coordinator, agent, gateway, nginx string
}

// findPrograms looks beside this program for the others, and for nginx where systems keep it.
func findPrograms(executable string) (programs, error) {
	if real, err := filepath.EvalSymlinks(executable); err == nil {
		executable = real
	}
	dir, err := filepath.Abs(filepath.Dir(executable))
	if err != nil {
		return programs{}, fmt.Errorf("cannot tell where this program is: %w", err)
	}
	p := programs{
		coordinator: filepath.Join(dir, "demiurge-coordinator"),
		agent:       filepath.Join(dir, "demiurge-agent"),
		gateway:     filepath.Join(dir, "demiurge-gateway"),
	}
	var missing []string
	for _, path := range []string{p.coordinator, p.agent, p.gateway} {
		if _, err := exec.LookPath(path); err != nil {
			missing = append(missing, filepath.Base(path))
		}
	}
	if len(missing) > 0 {
		return p, fmt.Errorf("cannot find %s in %s, beside this program: build all programs with 'make build', or install the package", strings.Join(missing, ", "), dir)
	}
	for _, name := range []string{"nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			p.nginx, err = filepath.Abs(path)
			return p, err
		}
	}
	return p, errors.New("cannot find nginx in PATH, /usr/sbin or /usr/local/sbin: install the package nginx (Debian: apt-get install nginx-light)")
}

// ports are the addresses that a system listens on.
type ports struct {
	API    string `json:"api"`
	Raft   string `json:"raft"`
	Gossip string `json:"gossip"`
	Member string `json:"member"` // the agent's gossip
	Nginx  string `json:"nginx"`
}

// choosePorts checks that the wanted addresses are free before anything starts, and chooses those that
// are left open: the earlier ones while they are free, because the log remembers the one of Raft and the
// configuration that nginx starts with the one of nginx.
func choosePorts(opts Options, earlier ports) (ports, error) {
	var held []net.Listener // until all are chosen, so that no two are the same
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	take := func(candidates ...string) (string, error) {
		var last error
		for _, address := range candidates {
			if address == "" {
				continue
			}
			l, err := net.Listen("tcp", address)
			if err == nil {
				held = append(held, l)
				return l.Addr().String(), nil
			}
			last = err
		}
		return "", last
	}
	var p ports
	var err error
	if p.API, err = take(leftOpen(opts.Address, earlier.API), opts.Address); err != nil {
		return p, portError(opts.Address, "--address", err)
	}
	web := net.JoinHostPort("127.0.0.1", strconv.Itoa(opts.NginxPort))
	if p.Nginx, err = take(leftOpen(web, earlier.Nginx), web); err != nil {
		return p, portError(web, "--nginx-port", err)
	}
	host, port, err := net.SplitHostPort(p.API)
	if err != nil {
		return p, err
	}
	beside := func(by int) string {
		n, err := strconv.Atoi(port)
		if err != nil || n > 65535-by {
			return ""
		}
		return net.JoinHostPort(host, strconv.Itoa(n+by))
	}
	if p.Raft, err = take(earlier.Raft, beside(1), net.JoinHostPort(host, "0")); err != nil {
		return p, fmt.Errorf("cannot find a free port on %s for Raft: %w", host, err)
	}
	if p.Gossip, err = take(earlier.Gossip, beside(2), net.JoinHostPort(host, "0")); err != nil {
		return p, fmt.Errorf("cannot find a free port on %s for the gossip: %w", host, err)
	}
	if p.Member, err = take(earlier.Member, beside(3), net.JoinHostPort(host, "0")); err != nil {
		return p, fmt.Errorf("cannot find a free port on %s for the agent's gossip: %w", host, err)
	}
	return p, nil
}

// leftOpen is the earlier address where the wanted one leaves its port open, else "".
func leftOpen(wanted, earlier string) string {
	host, port, err := net.SplitHostPort(wanted)
	if err != nil || port != "0" {
		return ""
	}
	if before, _, err := net.SplitHostPort(earlier); err != nil || before != host {
		return ""
	}
	return earlier
}

func portError(address, flag string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot listen on %s: another program does; stop it, or choose another port with %s (0: any free one)", address, flag)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("cannot listen on %s: ports below 1024 need rights that this user does not have; choose a higher one with %s", address, flag)
	}
	return fmt.Errorf("cannot listen on %s: %w; choose another with %s", address, err, flag)
}

// cleanEnvironment is what the programs inherit: not what would configure them or tie them to the service
// manager that started this one.
func cleanEnvironment(environ []string) []string {
	var out []string
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case failpoint.Enabled && strings.HasPrefix(name, failpoint.Variable):
			out = append(out, v) // a build for crash tests hands them to the programs
		case strings.HasPrefix(name, "DEMIURGE_"), strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "WATCHDOG_"), name == "NOTIFY_SOCKET", name == "NGINX":
		default:
			out = append(out, v)
		}
	}
	return out
}
