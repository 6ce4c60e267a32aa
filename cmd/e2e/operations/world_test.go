//go:build e2e

package operations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
)

// patience bounds every command and every wait. Only a hang takes so long.
const patience = 120 * time.Second

// logsVariable names the directory of what a machine's programs said.
const logsVariable = "OPERATIONS_LOGS"

// world is an operator's machines.
type world struct {
	t        *testing.T
	ctx      context.Context
	dir      string
	doc      document
	net      *lab.Network
	image    string // directory of what is installed on every machine
	tools    string // directory of programs that hide others
	machines map[string]*machine
	ran      map[string]bool // commands of the document
}

// tools are programs that the machines lack, and those that must not do here what they do. The programs of the tree are
// compiled with the options that other tests have compiled with: that is most of the time that it takes.
func tools(socket, self, golang string) map[string]string {
	return map[string]string{
		"sudo":       "user=root\nif [ \"$1\" = -u ]; then user=$2; shift 2; fi\n[ $user = root ] && exec \"$@\"\nexec setpriv --reuid=\"$user\" --regid=\"$user\" --init-groups -- \"$@\"\n",
		"apt-get":    "exec /usr/bin/apt-get --simulate \"$@\"\n",
		"journalctl": "[ \"$1\" = -u ] && exec cat \"$" + logsVariable + "/$2.log\"\n",
		"systemctl":  fmt.Sprintf("%s=%s exec %s \"$@\"\n", socketVariable, socket, self),
		"go": fmt.Sprintf("for last; do :; done\nwhile [ \"$1\" != -o ]; do shift; done\nHOME='%s' CGO_ENABLED=1 exec '%s' build -tags failpoints -buildvcs=false -o \"$2\" \"$last\"\n",
			os.Getenv("HOME"), golang),
	}
}

func newWorld(t *testing.T) *world {
	dir, err := os.MkdirTemp("", "dmops")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, ctx: t.Context(), dir: dir, doc: readDocument(t), image: filepath.Join(dir, "image"), tools: filepath.Join(dir, "tools"), machines: map[string]*machine{}, ran: map[string]bool{},
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what the programs said is in %s", dir)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w.must(os.Chmod(dir, 0o755)) // the user of the programs tells here when they are ready
	w.net, err = lab.Open()
	w.must(err)
	t.Cleanup(func() {
		if err := w.net.Close(); err != nil {
			t.Error(err)
		}
	})
	w.must(os.Mkdir(w.tools, 0o755))
	self, err := os.Executable()
	w.must(err)
	golang, err := exec.LookPath("go")
	w.must(err)
	for name, script := range tools(w.listen(), self, golang) {
		w.must(os.WriteFile(filepath.Join(w.tools, name), []byte("#!/bin/sh\n"+script), 0o755))
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// machine makes a machine with an address that the document has, which knows the names of the document. It may take the
// place of one of the same name that is lost.
func (w *world) machine(name, address string, own ...string) *machine {
	w.t.Helper()
	label := name
	if w.machines[name] != nil {
		label += "-new"
	}
	h, err := w.net.Add(label)
	w.must(err)
	h.Name = name
	w.must(h.Run("ip", "addr", "add", address+"/24", "dev", "eth0"))
	o := lab.MachineOptions{Own: own, Tools: w.tools}
	if _, err := os.Stat(w.image); err == nil {
		o.Image = w.image
	}
	m := &machine{t: w.t, logs: filepath.Join(w.dir, label), running: map[string]*lab.Program{}}
	m.Machine, err = h.Machine(o)
	w.must(err)
	w.must(os.Mkdir(m.logs, 0o755))
	m.env, m.prefix = []string{machineVariable + "=" + name, logsVariable + "=" + m.logs}, "cd /var/tmp\n"
	w.machines[name] = m
	w.do(m, "cat >>/etc/hosts <<<'192.0.2.1 coordinator-1.example.org'")
	if o.Image != "" {
		w.do(m, "systemd-tmpfiles --create demiurge.conf") // as when it is switched on
	}
	return m
}

// do runs a script that the document does not have on a machine.
func (w *world) do(m *machine, script string, env ...string) string {
	w.t.Helper()
	out, err := w.try(m, script, env...)
	w.must(err)
	return out
}

func (w *world) try(m *machine, script string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	return m.Shell(ctx, m.prefix+script, append(slices.Clone(m.env), env...)...)
}

// fill is what stands in the place of something in the document.
type fill struct{ stands, is string }

// input is the fill for what a command reads from standard input.
const input = ""

// run runs a command of the document on a machine, as it stands there but for what is filled in, and returns what it said.
func (w *world) run(m *machine, command string, fills ...fill) string {
	w.t.Helper()
	out, err := w.attempt(m, command, fills...)
	w.must(err)
	return out
}

// attempt is run of a command that may be refused.
func (w *world) attempt(m *machine, command string, fills ...fill) (string, error) {
	w.t.Helper()
	full, in := w.filled(command, fills)
	return w.try(m, "{\n"+full+"\n} <<<\"$INPUT\"", "INPUT="+in)
}

// filled marks a command of the document as run, and fills it in. The remark behind it need not be named.
func (w *world) filled(command string, fills []fill) (full, in string) {
	w.t.Helper()
	for _, c := range w.doc.commands {
		if plain, _, _ := strings.Cut(c, " #"); strings.TrimSpace(plain) == command {
			full = c
			w.ran[c] = true // with any remark
		}
	}
	if full == "" {
		w.t.Fatalf("the document has no command %q any more", command)
	}
	for _, f := range fills {
		if f.stands == input {
			in = f.is
			continue
		}
		if !strings.Contains(full, f.stands) {
			w.t.Fatalf("%q has no %q", full, f.stands)
		}
		full = strings.ReplaceAll(full, f.stands, f.is)
	}
	return full, in
}

// follow begins a command of the document that does not end. wait waits until it has said all of these words, and ends it.
func (w *world) follow(m *machine, command string, words ...string) (wait func()) {
	w.t.Helper()
	full, _ := w.filled(command, nil)
	file := filepath.Join(m.logs, fmt.Sprintf("follow-%d", len(w.ran)))
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() { // ends with ctx
		_, _ = m.Shell(ctx, m.prefix+"{ "+full+"\n} >"+file+" 2>&1", m.env...) // it is ended, and that is an error
		close(done)
	}()
	return func() {
		w.t.Helper()
		w.await(full, func() error {
			said, err := os.ReadFile(file)
			for _, word := range words {
				if err == nil && !strings.Contains(string(said), word) {
					err = fmt.Errorf("it says nothing of %q: %s", word, said[max(0, len(said)-2000):])
				}
			}
			return err
		})
		cancel()
		<-done
	}
}

// await polls until a condition holds.
func (w *world) await(what string, holds func() error) {
	w.t.Helper()
	if err := lab.Await(w.ctx, patience, what, holds); err != nil {
		w.t.Fatal(err)
	}
}

// until runs a script until it says all of these words.
func (w *world) until(m *machine, script string, words ...string) {
	w.t.Helper()
	w.await(script, func() error {
		out, err := w.try(m, script)
		for _, word := range words {
			if err == nil && !strings.Contains(out, word) {
				err = fmt.Errorf("nothing of %q: %s", word, out)
			}
		}
		return err
	})
}

// ask runs a script that answers with JSON.
func ask[T any](w *world, m *machine, script string) T {
	w.t.Helper()
	out, err := asked[T](w, m, script)
	w.must(err)
	return out
}

// asked is ask within a wait: while another coordinator comes to lead there may be no answer.
func asked[T any](w *world, m *machine, script string) (out T, err error) {
	said, err := w.try(m, script)
	if err == nil {
		err = json.Unmarshal([]byte(said), &out)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", script, err, said)
	}
	return out, err
}

// says wants words in what a command said.
func (w *world) says(out string, words ...string) {
	w.t.Helper()
	for _, word := range words {
		if !strings.Contains(out, word) {
			w.t.Errorf("it says nothing of %q: %s", word, out)
		}
	}
}

// configure writes the configuration that the document has with a certain key, with other values.
func (w *world) configure(m *machine, path, key string, fills ...fill) {
	w.t.Helper()
	at := slices.IndexFunc(w.doc.files, func(text string) bool { return strings.Contains(text, key+":") })
	if at < 0 {
		w.must(errors.New("the document has no configuration with " + key))
	}
	text := w.doc.files[at]
	for _, f := range fills {
		text = strings.ReplaceAll(text, f.stands, f.is)
	}
	w.do(m, "cat >"+path+" <<<\"$TEXT\" && chown root:demiurge "+path+" && chmod 0640 "+path, "TEXT="+text)
}
