//go:build e2e

package booted

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var exposure = regexp.MustCompile(`Overall exposure level for \S+: (\d+\.\d+)`)

// mostExposed is the most that systemd may find a unit exposed: 0 is a closed box, 10 is no box.
const mostExposed = 2.0

// within is a script that runs as the unit's user does: in what its main process sees.
func within(pid int, script string) string {
	return fmt.Sprintf("nsenter --target %d --mount -- setpriv --reuid=demiurge --regid=demiurge --init-groups -- sh -c '%s' 2>&1", pid, script)
}

// sandboxes tries each unit's sandbox from within.
func (w *world) sandboxes() {
	m := w.machines[0]
	m.do("mknod /dev/disk b 7 0")
	for _, unit := range []struct {
		name         string
		capabilities uint64   // by bit
		writable     []string // directories
		hidden       []string // files and directories
	}{
		{coordinator, 0, []string{data}, []string{"/var/lib/demiurge/agent/journal", "/var/lib/demiurge/nginx/nginx.conf"}},
		{agent, 1 << 10, []string{"/var/lib/demiurge/agent", "/var/lib/demiurge/nginx", "/run/demiurge"}, []string{data + "/cluster.key"}},
		{nginx, 1 << 10, []string{"/var/lib/demiurge/nginx", "/run/demiurge"}, []string{data + "/cluster.key"}},
	} {
		pid := m.main(unit.name)
		for _, process := range m.ofUnit(unit.name) {
			m.confined(unit.name, process, unit.capabilities)
		}
		for _, dir := range []string{"/etc", "/etc/demiurge", "/usr/bin", "/var/lib", "/root", "/home", "/sys/fs/cgroup"} {
			// As root: not the owner of the directory keeps it from writing, but what it is in.
			if out, err := m.try(fmt.Sprintf("nsenter --target %d --mount -- touch %s/intruder 2>&1", pid, dir)); err == nil {
				w.t.Errorf("%s can write to %s", unit.name, dir)
			} else if !strings.Contains(err.Error(), "Read-only file system") && !strings.Contains(err.Error(), "Permission denied") {
				w.t.Errorf("%s: %s: %v %s", unit.name, dir, err, out)
			}
		}
		for _, dir := range unit.writable {
			m.do(within(pid, "touch "+dir+"/proof && rm "+dir+"/proof"))
		}
		for _, path := range unit.hidden {
			m.do("test -e " + path)
			if _, err := m.try(within(pid, "cat "+path+" || ls "+path)); err == nil {
				w.t.Errorf("%s can see %s", unit.name, path)
			}
		}
		for _, path := range []string{"/proc/1/status", "/dev/disk"} {
			m.do("test -e " + path)
			if _, err := m.try(within(pid, "test -e "+path)); err == nil {
				w.t.Errorf("%s can see %s", unit.name, path)
			}
		}
	}
	for _, unit := range []string{coordinator, agent, nginx, leave} {
		said := m.do("systemd-analyze security --no-pager " + unit)
		found := exposure.FindStringSubmatch(said)
		if found == nil {
			w.t.Fatalf("systemd says nothing of the exposure of %s: %s", unit, said)
		}
		w.t.Logf("systemd's figure for the exposure of %s: %s", unit, found[1])
		if figure, err := strconv.ParseFloat(found[1], 64); err != nil || figure > mostExposed {
			w.t.Errorf("%s is more exposed than %v: %v\n%s", unit, mostExposed, err, said)
		}
	}
}

// ofUnit are the processes of a unit, by their numbers on the machine.
func (m *machine) ofUnit(unit string) (pids []int) {
	m.w.t.Helper()
	for _, field := range strings.Fields(m.do("cat /sys/fs/cgroup" + m.property(unit, "ControlGroup") + "/cgroup.procs")) {
		pid, err := strconv.Atoi(field)
		m.w.must(err)
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		m.w.t.Fatalf("%s has no processes", unit)
	}
	return pids
}

// confined wants a process of a unit to be able to do nothing more.
func (m *machine) confined(unit string, pid int, capabilities uint64) {
	m.w.t.Helper()
	said, err := m.try(fmt.Sprintf("cat /proc/%d/status", pid))
	if err != nil && !slices.Contains(m.ofUnit(unit), pid) {
		return // it has ended meanwhile: a worker of an old generation, a command of the agent
	}
	m.w.must(err)
	status := map[string]string{}
	for line := range strings.Lines(said) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	user := strings.TrimSpace(m.do("id -u demiurge"))
	if ids := strings.Fields(status["Uid"]); !slices.Equal(ids, []string{user, user, user, user}) {
		m.w.t.Errorf("process %d of %s runs as %v, and not as %s: %s", pid, unit, ids, user, status["Name"])
	}
	for key, want := range map[string]string{"NoNewPrivs": "1", "Seccomp": "2"} {
		if status[key] != want {
			m.w.t.Errorf("process %d (%s) of %s has %s %s and not %s", pid, status["Name"], unit, key, status[key], want)
		}
	}
	for _, set := range []string{"CapBnd", "CapPrm", "CapEff", "CapAmb"} {
		got, err := strconv.ParseUint(status[set], 16, 64)
		if err != nil || got&^capabilities != 0 {
			m.w.t.Errorf("process %d (%s) of %s has the capabilities %s in %s: %v", pid, status["Name"], unit, status[set], set, err)
		}
	}
}

// entry is an entry of the journal, as far as it matters.
type entry struct {
	Priority string `json:"PRIORITY"`
	Unit     string `json:"_SYSTEMD_UNIT"`
	Of       string `json:"UNIT"` // systemd's own word of a unit
	Message  string `json:"MESSAGE"`
}

// quiet wants no error in the journal, neither from the units nor of them, and none in nginx's own log. What the programs
// say has its level in the words; to the journal it is all the same.
func (w *world) quiet() {
	for _, m := range w.machines {
		for line := range strings.Lines(m.do("journalctl --no-pager -o json -b")) {
			var e entry
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				continue // a message that is no text: not one of ours
			}
			if !strings.HasPrefix(e.Unit, "demiurge-") && !strings.HasPrefix(e.Of, "demiurge-") {
				continue
			}
			var said struct {
				Level string `json:"@level"`
			}
			_ = json.Unmarshal([]byte(e.Message), &said) // systemd and nginx write no JSON
			if e.Priority <= "3" || said.Level == "error" {
				w.t.Errorf("%s: %s%s: %s", m.Name, e.Unit, e.Of, e.Message)
			}
		}
		// Asked for an organization that it does not have, nginx says "crit": that is no error. It warns of each old
		// generation's socket that it takes away.
		if said := m.do("grep -E '\\[(emerg|alert|error|warn)\\]' /var/lib/demiurge/nginx/log/error.log | grep -vF 'deleting socket' || true"); said != "" {
			w.t.Errorf("%s: nginx: %s", m.Name, said)
		}
	}
}
