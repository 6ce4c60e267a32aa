package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/procfs"
	"golang.org/x/sys/unix"
)

// prefix begins the name of every namespace of every lab; the id of the process follows.
const prefix = "dme"

// patience bounds what takes no time unless it hangs.
const patience = 30 * time.Second

// Network is a bridge with hosts on it.
type Network struct {
	id    string
	names []string // of namespaces, to be removed
	hosts int

	machines []*Booted // to be removed
}

// Host has a network namespace of its own.
type Host struct {
	Name    string
	Address string // IPv4

	namespace string
	port      string // on the bridge
	net       *Network
}

// Open makes an empty network. It first removes what labs of processes that are gone have left.
func Open() (*Network, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("cannot make network namespaces without root: run this as root, or with sudo")
	}
	if err := able("/proc/self/status"); err != nil {
		return nil, err
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("cannot find %s: install the packages iproute2 and nftables (make deps-e2e)", tool)
		}
	}
	if err := sweep(); err != nil {
		return nil, err
	}
	n := &Network{id: prefix + strconv.Itoa(os.Getpid())}
	if err := run("ip", "netns", "add", n.id+"sw"); err != nil {
		return nil, fmt.Errorf("cannot make a network namespace: root alone is not enough here; run this where root may mount and make namespaces (CAP_SYS_ADMIN, a privileged container): %w", err)
	}
	n.names = append(n.names, n.id+"sw")
	// All that the network needs of the kernel, before anything is built on it.
	for _, step := range [][]string{
		{"-n", n.id + "sw", "link", "add", "br0", "type", "bridge"},
		{"-n", n.id + "sw", "link", "add", "try0", "type", "veth", "peer", "name", "try1"},
		{"-n", n.id + "sw", "link", "delete", "try0"},
		{"netns", "exec", n.id + "sw", "nft", "add", "table", "ip", "try"},
		{"-n", n.id + "sw", "link", "set", "br0", "up"},
	} {
		if err := run("ip", step...); err != nil {
			return nil, errors.Join(fmt.Errorf("the kernel or its limits lack what a network of hosts needs (bridge, veth, nftables): %w", err), n.Close())
		}
	}
	return n, nil
}

// needed are the capabilities that a network of hosts takes, by their number in the kernel.
var needed = []struct {
	name string
	bit  int
}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_NET_BIND_SERVICE", unix.CAP_NET_BIND_SERVICE}}

// able names the capabilities that a process lacks, by its status file. Root of a container often lacks some.
func able(status string) error {
	text, err := os.ReadFile(status)
	if err != nil {
		return fmt.Errorf("cannot find out what this process may do: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		digits, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		has, err := strconv.ParseUint(strings.TrimSpace(digits), 16, 64)
		if err != nil {
			return fmt.Errorf("cannot find out what this process may do: %w", err)
		}
		var lacks []string
		for _, c := range needed {
			if has>>c.bit&1 == 0 {
				lacks = append(lacks, c.name)
			}
		}
		if len(lacks) > 0 {
			return fmt.Errorf("cannot make network namespaces: root lacks %s here; run this on the machine itself, or in a container that was started with these capabilities (--privileged, or --cap-add for each)", strings.Join(lacks, ", "))
		}
		return nil
	}
	return fmt.Errorf("cannot find out what this process may do: %s has no line CapEff", status)
}

// sweep removes the namespaces of labs whose process is gone.
func sweep() error {
	found, err := filepath.Glob("/run/netns/" + prefix + "*")
	if err != nil {
		return err
	}
	for _, path := range found {
		name := filepath.Base(path)
		digits := strings.TrimPrefix(name, prefix)
		end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' })
		if end < 1 {
			continue
		}
		if _, err := os.Stat("/proc/" + digits[:end]); errors.Is(err, os.ErrNotExist) {
			err := remove(name)
			if _, there := os.Stat(path); err != nil && !errors.Is(there, os.ErrNotExist) { // another lab may remove it too
				return err
			}
		}
	}
	return nil
}

// Add makes a host.
func (n *Network) Add(name string) (*Host, error) {
	n.hosts++
	h := &Host{
		Name: name, Address: fmt.Sprintf("10.78.%d.%d", os.Getpid()%250, 10+n.hosts),
		namespace: n.id + name, port: fmt.Sprint("p", n.hosts), net: n,
	}
	if err := run("ip", "netns", "add", h.namespace); err != nil {
		return nil, err
	}
	n.names = append(n.names, h.namespace)
	for _, step := range [][]string{
		{"-n", n.id + "sw", "link", "add", h.port, "type", "veth", "peer", "name", "eth0", "netns", h.namespace},
		{"-n", n.id + "sw", "link", "set", h.port, "master", "br0", "up"},
		{"-n", h.namespace, "link", "set", "lo", "up"},
		{"-n", h.namespace, "addr", "add", h.Address + "/24", "dev", "eth0"},
		{"-n", h.namespace, "link", "set", "eth0", "up"},
	} {
		if err := run("ip", step...); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Close ends what still runs on the hosts, and removes them.
func (n *Network) Close() error {
	var errs []error
	for _, b := range n.machines {
		errs = append(errs, b.Close())
	}
	for _, name := range n.names {
		errs = append(errs, remove(name))
	}
	n.machines, n.names = nil, nil
	return errors.Join(errs...)
}

// remove ends all processes of a namespace, and removes it.
func remove(namespace string) error {
	return errors.Join(endAll(namespace), run("ip", "netns", "delete", namespace))
}

// endAll kills all processes of a namespace, with those that they start meanwhile, and waits until they are gone.
func endAll(namespace string) error {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		pids, err := processes(namespace)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("cannot end the processes %v of %s", pids, namespace)
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("cannot kill process %d of %s: %w", pid, namespace, err)
			}
		}
	}
}

// processes are those of a namespace that have not ended.
func processes(namespace string) ([]int, error) {
	out, err := exec.Command("ip", "netns", "pids", namespace).Output()
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes of %s: %w", namespace, err)
	}
	var pids []int
	for _, field := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("cannot list the processes of %s: %w", namespace, err)
		}
		if s, err := procfs.Read(pid); err == nil && s.Running() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Processes are those on this host whose program file has this name.
func (h *Host) Processes(program string) ([]int, error) {
	all, err := processes(h.namespace)
	var out []int
	for _, pid := range all {
		if file, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.TrimSuffix(filepath.Base(file), " (deleted)") == program { // an upgrade deletes it
			out = append(out, pid)
		}
	}
	return out, err
}

// PowerOff takes the host off the network and ends all that runs on it, in this order: nobody is told.
func (h *Host) PowerOff() error {
	return errors.Join(run("ip", "-n", h.net.id+"sw", "link", "set", h.port, "down"), endAll(h.namespace))
}

// PowerOn brings the host back to the network, with nothing running on it.
func (h *Host) PowerOn() error { return run("ip", "-n", h.net.id+"sw", "link", "set", h.port, "up") }

// Run runs a command on this host to its end.
func (h *Host) Run(args ...string) error {
	return run("ip", append([]string{"netns", "exec", h.namespace}, args...)...)
}

// Dial connects from this host.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() { // ends with the dial; a thread that cannot go back to its namespace ends with it
		conn, err := h.dial(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// dial opens the socket while the thread is in the host's namespace; there it stays, whoever uses it.
func (h *Host) dial(ctx context.Context, network, address string) (net.Conn, error) {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("cannot find the own network namespace: %w", err)
	}
	defer func() {
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		_ = own.Close()
	}()
	there, err := os.Open("/run/netns/" + h.namespace)
	if err != nil {
		return nil, fmt.Errorf("cannot find host %s: %w", h.Name, err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("cannot enter host %s: %w", h.Name, err)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// Refuse drops all packets that come from other hosts. Those that go to them still arrive, unless they
// refuse them too.
func (h *Host) Refuse(others ...*Host) error { return h.cut("input", "saddr", others) }

// Withhold drops all packets to other hosts.
func (h *Host) Withhold(others ...*Host) error { return h.cut("output", "daddr", others) }

func (h *Host) cut(hook, field string, others []*Host) error {
	var rules strings.Builder
	fmt.Fprintf(&rules, "table ip cut { chain %s { type filter hook %s priority 0; policy accept; }\n}\n", hook, hook)
	for _, o := range others {
		fmt.Fprintf(&rules, "add rule ip cut %s ip %s %s drop\n", hook, field, o.Address)
	}
	cmd := exec.Command("ip", "netns", "exec", h.namespace, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot cut host %s off: %w\n%s", h.Name, err, out)
	}
	return nil
}

// Heal takes all cuts of a host back.
func (h *Host) Heal() error {
	return run("ip", "netns", "exec", h.namespace, "nft", "flush", "ruleset")
}

// run runs a command to its end. It is short, and is not ended by the end of anything else: what is
// taken back when all ends uses it too.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot run %s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
