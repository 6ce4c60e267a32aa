package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/procfs"
)

const (
	marker      = "demiurge-dev"     // file that says whose directory it is
	markerText  = "demiurge dev 1\n" // and of which layout
	tempPattern = "demiurge-dev-"
	endPatience = 10 * time.Second
)

// plainPath is what the programs and nginx take as a path.
var plainPath = regexp.MustCompile(`^/[A-Za-z0-9/._@+-]*$`)

// longestSocket is the longest name of a unix socket below the run directory, and socketLimit the longest
// path that the system takes.
const (
	longestSocket = "/gateways/gw-0123456789/control.sock"
	socketLimit   = 107
)

// home is the directory of one system. The lock is held as long as a dev runs on it.
type home struct {
	dir       string
	temporary bool
	lock      *os.File
}

func (h *home) path(elem ...string) string { return filepath.Join(append([]string{h.dir}, elem...)...) }

// The first of each has names without a number, which the directories of earlier versions have.
func (h *home) coordinatorConfig(i int) string { return h.path(numbered("coordinator", i) + ".yaml") }
func (h *home) agentConfig(i int) string       { return h.path(numbered("agent", i) + ".yaml") }
func (h *home) coordinatorData(i int) string   { return h.path(numbered("coordinator", i)) }
func (h *home) agentData(i int) string         { return h.path(numbered("agent", i)) }
func (h *home) runDir(i int) string            { return h.path(numbered("run", i)) }
func (h *home) adminToken(i int) string        { return h.path(numbered("coordinator", i), "admin.token") }
func (h *home) clusterKey() string             { return h.path("cluster.key") }
func (h *home) logs() string                   { return h.path("log") }
func (h *home) log(name string) string         { return h.path("log", name+".log") }
func (h *home) devFile() string                { return h.path("dev.json") }
func (h *home) recordFile() string             { return h.path("processes.json") }
func (h *home) portsFile() string              { return h.path("ports.json") }

// openHome makes or takes up the directory; empty: a temporary one. Nothing but an empty directory or one
// of its own is taken.
func openHome(dataDir string) (*home, error) {
	h := &home{temporary: dataDir == ""}
	made := false
	var err error
	if h.temporary {
		h.dir, err = os.MkdirTemp("", tempPattern)
	} else if h.dir, err = filepath.Abs(dataDir); err == nil {
		_, missing := os.Stat(h.dir)
		made = missing != nil
		err = os.MkdirAll(h.dir, 0o700)
	}
	if err == nil {
		h.dir, err = filepath.EvalSymlinks(h.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make the data directory: %w; choose another with --data-dir", err)
	}
	if err := h.take(); err != nil {
		err = errors.Join(err, h.close())
		if made {
			_ = os.Remove(h.dir) // it stays if there is something in it already
		}
		return nil, err
	}
	return h, nil
}

// take checks the directory and makes it ours.
func (h *home) take() error {
	if !plainPath.MatchString(h.dir) {
		return fmt.Errorf("cannot use %s as data directory: nginx wants a path of letters, digits and ./_@+-; choose another with --data-dir", h.dir)
	}
	if err := h.leavesRoom(1); err != nil {
		return err
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return fmt.Errorf("cannot read the data directory: %w; choose another with --data-dir", err)
	}
	text, err := os.ReadFile(h.path(marker))
	switch {
	case err == nil && string(text) != markerText:
		return fmt.Errorf("cannot use %s as data directory: another version of demiurge dev wrote it; choose another with --data-dir, or remove it", h.dir)
	case err != nil && len(entries) > 0:
		return fmt.Errorf("cannot use %s as data directory: it has files that demiurge dev did not make; choose a new or empty one with --data-dir", h.dir)
	}
	if h.lock, err = lock(h.path("lock")); err != nil {
		return fmt.Errorf("cannot use %s as data directory: %w", h.dir, err)
	}
	if err := makeDirs(h.coordinatorData(0), h.agentData(0), h.runDir(0), h.logs()); err != nil {
		return err
	}
	return writeFile(h.path(marker), []byte(markerText)) // last: what has it is locked by whoever uses it
}

// leavesRoom checks that so many hosts find room for their unix sockets.
func (h *home) leavesRoom(hosts int) error {
	if n := len(h.runDir(hosts-1) + longestSocket); n > socketLimit {
		return fmt.Errorf("cannot use %s as data directory: unix sockets below it would have %d characters and the system allows %d; choose one of at most %d characters with --data-dir",
			h.dir, n, socketLimit, len(h.dir)-(n-socketLimit))
	}
	return nil
}

// grow makes the directories of so many coordinators and hosts, as far as they are not there.
func (h *home) grow(coordinators, hosts int) error {
	if err := h.leavesRoom(hosts); err != nil {
		return err
	}
	var dirs []string
	for i := range coordinators {
		dirs = append(dirs, h.coordinatorData(i))
	}
	for i := range hosts {
		dirs = append(dirs, h.agentData(i), h.runDir(i))
	}
	return makeDirs(dirs...)
}

func makeDirs(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("cannot write to the data directory: %w; choose another with --data-dir", err)
		}
	}
	return nil
}

// numbered is the name of the i-th, of which the first has no number.
func numbered(name string, i int) string {
	if i == 0 {
		return name
	}
	return fmt.Sprintf("%s-%d", name, i+1)
}

// lock takes an exclusive lock that the system releases when this process ends, however it ends.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open its lock: %w; choose another with --data-dir", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.New("another demiurge dev runs on it; stop that one or choose another with --data-dir")
		}
		return nil, fmt.Errorf("cannot lock it: %w", err)
	}
	return f, nil
}

// close gives the directory up. A temporary one goes; of a given one only what was about this run.
func (h *home) close() error {
	if h.lock == nil && !h.temporary {
		return nil
	}
	var err error
	if h.temporary {
		if err = os.RemoveAll(h.dir); err != nil {
			err = fmt.Errorf("cannot remove the temporary directory: %w", err)
		}
	} else {
		err = errors.Join(h.removeDevFile(), removeIfThere(h.recordFile()))
	}
	if h.lock != nil {
		err = errors.Join(err, h.lock.Close())
	}
	return err
}

func (h *home) removeDevFile() error { return removeIfThere(h.devFile()) }

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// earlierPorts are the addresses of the run before on this directory, or nothing. They say how many coordinators and hosts
// it has, so one that is damaged is not passed over.
func (h *home) earlierPorts() (ports, error) {
	b, err := os.ReadFile(h.portsFile())
	if errors.Is(err, os.ErrNotExist) {
		return ports{}, nil
	}
	if err != nil {
		return ports{}, fmt.Errorf("cannot read the addresses of the run before: %w; choose another directory with --data-dir", err)
	}
	p, err := parsePorts(b)
	if err != nil {
		return ports{}, fmt.Errorf("cannot use %s: %w; remove it, and give as many --coordinators and --hosts as there were", h.portsFile(), err)
	}
	return p, nil
}

// writeFile replaces a file that only its owner can read, at once or not at all.
func writeFile(path string, data []byte) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// record is what is known of the running processes, for a next run that has to clean up after this one.
type record struct {
	Boot      string              `json:"boot_id"`
	Processes map[string]identity `json:"processes"`
}

func (h *home) writeRecord(processes map[string]identity) error {
	boot, err := procfs.Boot()
	if err != nil {
		return err
	}
	b, err := json.Marshal(record{boot, processes})
	if err != nil {
		return err
	}
	return writeFile(h.recordFile(), b)
}

// leftovers are processes of an earlier run on this directory that was killed: those on record, their
// descendants, and whoever else works below it.
func (h *home) leftovers() []identity {
	var r record
	if b, err := os.ReadFile(h.recordFile()); err == nil {
		_ = json.Unmarshal(b, &r) // a damaged record leaves the process table
	}
	seen := map[identity]bool{}
	var out []identity
	add := func(ids ...identity) {
		for _, i := range ids {
			if !seen[i] && i.PID != os.Getpid() {
				seen[i] = true
				out = append(out, i)
			}
		}
	}
	if boot, err := procfs.Boot(); err == nil && r.Boot == boot {
		for _, i := range r.Processes {
			if i.alive() {
				add(i)
				add(descendants(i.PID)...)
			}
		}
	}
	for _, p := range procfs.All() {
		if p.Running() && belongsTo(p.PID, h.dir) {
			add(identityOf(p))
		}
	}
	return out
}

// cleanLeftovers ends them and removes the record.
func (h *home) cleanLeftovers(w io.Writer) error {
	if n := len(h.leftovers()); n > 0 {
		fmt.Fprintf(w, "ending %d processes that an earlier demiurge dev left in %s\n", n, h.dir)
		if err := end(h.leftovers, endPatience, nil); err != nil {
			return fmt.Errorf("cannot clean up after an earlier run: %w", err)
		}
	}
	return errors.Join(h.removeDevFile(), removeIfThere(h.recordFile()))
}

// cleanTemporary ends and removes what killed runs without --data-dir left. It looks only at directories
// of this user that no running dev holds, and does not keep this run from starting.
func cleanTemporary(w io.Writer) {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPattern+"*"))
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		text, err := os.ReadFile(filepath.Join(dir, marker))
		if !ok || int(owner.Uid) != os.Getuid() || err != nil || string(text) != markerText {
			continue
		}
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			continue
		}
		h := &home{dir: real, temporary: true}
		if h.lock, err = lock(h.path("lock")); err != nil {
			continue
		}
		if err := errors.Join(h.cleanLeftovers(w), h.close()); err != nil {
			fmt.Fprintf(w, "cannot remove %s, which an earlier run left: %v\n", dir, err)
		}
	}
}
