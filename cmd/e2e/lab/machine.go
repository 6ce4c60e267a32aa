package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Machine is a host with files of its own: what is written below certain directories is on this machine alone, in
// memory, and gone with it.
type Machine struct {
	*Host

	pid   int      // of a process that is on it
	enter []string // options of nsenter, which say what the machine has of its own
	path  string   // PATH of what is run
}

// MachineOptions say what a machine has beside the files of the machine that this runs on.
type MachineOptions struct {
	Own   []string // directories of its own, as copies that change only here
	Image string   // directory that Keep wrote; what is in it is on this machine too
	Tools string   // directory with programs that hide others of the same name
}

// own are the directories of every machine.
var own = []string{"/etc", "/usr", "/var"}

// Machine gives a host files of its own: /etc, /usr, /var and an empty /run, and what the options name.
func (h *Host) Machine(o MachineOptions) (*Machine, error) {
	var script strings.Builder
	script.WriteString("set -e\nmount -t tmpfs files /mnt\n")
	for i, dir := range append(own, o.Own...) {
		lower := dir
		if o.Image != "" && i < len(own) {
			lower = filepath.Join(o.Image, dir) + ":" + dir
		}
		fmt.Fprintf(&script, "mkdir -p /mnt/up%[1]s /mnt/work%[1]s\nmount -t overlay files -o lowerdir=%[2]s,upperdir=/mnt/up%[1]s,workdir=/mnt/work%[1]s %[1]s\n", dir, lower)
	}
	script.WriteString("mount -t tmpfs -o mode=0755 run /run\necho ready\nexec sleep infinity\n")
	holder := exec.Command("ip", "netns", "exec", h.namespace, "sh", "-c", script.String()) // keeps the mounts
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var wrong strings.Builder
	holder.Stderr = &wrong
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make machine %s: %w", h.Name, err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	go func() { _ = holder.Wait() }() // ends with the host
	if line != "ready\n" {
		return nil, fmt.Errorf("cannot give machine %s files of its own: %s", h.Name, wrong.String())
	}
	return &Machine{Host: h, pid: holder.Process.Pid, enter: []string{"--mount", "--net", "--wd=/"}, path: o.Tools + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, nil
}

// Keep writes what was changed on this machine into a directory, for machines that have the same from the start.
func (m *Machine) Keep(ctx context.Context, dir string) error {
	_, err := m.Shell(ctx, "mkdir -p "+dir+" && cd /mnt/up && cp -a --parents ."+strings.Join(own, " .")+" "+dir)
	return err
}

// Path is where a file of the machine is for this process.
func (m *Machine) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(m.pid), "root", path)
}

// inside is how a command runs on the machine.
func (m *Machine) inside(args ...string) []string {
	return slices.Concat([]string{"nsenter", "--target", strconv.Itoa(m.pid)}, m.enter, []string{"--"}, args)
}

// Shell runs a script on the machine to its end, or until ctx ends, and returns all that it says.
func (m *Machine) Shell(ctx context.Context, script string, env ...string) (string, error) {
	args := m.inside("bash", "-c", "set -o pipefail\n"+script)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append([]string{"PATH=" + m.path, "HOME=/root", "LC_ALL=C.UTF-8"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("cannot start a shell on %s: %w", m.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // gone already: fine
	defer stop()
	err := cmd.Wait()
	if err != nil {
		err = errors.Join(fmt.Errorf("%s: %s: %w\n%s", m.Name, script, err, out.String()), ctx.Err())
	}
	return out.String(), err
}

// Service describes a program that runs on this machine as a user, with what the user may do beyond others.
func (m *Machine) Service(name, log, user, capabilities string, env []string, script string) *Program {
	args := []string{"setpriv", "--reuid", user, "--regid", user, "--init-groups", "--no-new-privs"}
	if capabilities != "" {
		args = append(args, "--inh-caps", capabilities, "--ambient-caps", capabilities)
	}
	return m.Program(name, log, env, m.inside(append(args, "sh", "-c", script)...)...)
}
