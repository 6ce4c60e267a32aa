//go:build e2e

package booted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	patience = 60 * time.Second // bounds every command and every wait. Only a hang takes so long
	domain   = "gateways.example.org"
	data     = "/var/lib/demiurge/coordinator"
)

var secret = regexp.MustCompile(`Secret +(\S+)`)

// world is two machines: the first has the coordinator, and both have an agent, nginx and gateways.
type world struct {
	t        *testing.T
	ctx      context.Context
	dir      string
	net      *lab.Network
	machines []*machine
	client   *lab.Host
	token    string
	org      string
}

// machine is one booted machine.
type machine struct {
	*lab.Booted
	w       *world
	address string
	host    string // its name as a host of gateways
}

func newWorld(t *testing.T) *world {
	dir, err := os.MkdirTemp("", "dmboot")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ctx: t.Context(), dir: dir, org: string(id.NewOrganization())}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what was installed, and the journals, are in %s", dir)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w.net, err = lab.Open()
	w.must(err)
	t.Cleanup(func() {
		if t.Failed() {
			w.keepJournals()
		}
		if err := w.net.Close(); err != nil {
			t.Error(err)
		}
	})
	w.client, err = w.net.Add("client")
	w.must(err)
	w.must(w.client.Run("ip", "addr", "add", "192.0.2.100/24", "dev", "eth0"))
	return w
}

// keepJournals writes what the machines said to where it can be read.
func (w *world) keepJournals() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, m := range w.machines {
		said, err := m.Shell(ctx, "journalctl --no-pager -o short-precise")
		if err = errors.Join(err, os.WriteFile(filepath.Join(w.dir, m.Name+".journal"), []byte(said), 0o600)); err != nil {
			w.t.Log(err)
		}
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// install installs what the machines have into a directory: in the long form what a package has, in the short form
// programs that are compiled with the options that other tests have compiled with, which is most of the time. The
// programs of the checkout stay as they are.
func (w *world) install() (image string) {
	w.t.Helper()
	root, err := filepath.Abs("../../..")
	w.must(err)
	image, tree, golang := filepath.Join(w.dir, "image"), filepath.Join(w.dir, "tree"), filepath.Join(w.dir, "go")
	for _, part := range []string{"systemd", "packaging"} {
		w.must(os.CopyFS(filepath.Join(tree, part), os.DirFS(filepath.Join(root, part))))
	}
	w.must(os.Symlink(filepath.Join(root, "Makefile"), filepath.Join(tree, "Makefile")))
	options := "go build -trimpath"
	if testing.Short() {
		options = "env CGO_ENABLED=1 go build -tags failpoints"
	}
	w.must(os.WriteFile(golang, []byte("#!/bin/sh\nset -e\nfor last; do :; done\nprogram=$PWD/bin/${last##*/}\ncd '"+root+"'\n"+
		"exec "+options+" -buildvcs=false -o \"$program\" \"$last\"\n"), 0o755))
	out, err := exec.CommandContext(w.ctx, "make", "-C", tree, "install", "PREFIX=/usr", "DESTDIR="+image, "GO="+golang).CombinedOutput()
	if err != nil {
		w.t.Fatalf("make install: %v\n%s", err, out)
	}
	return image
}

// boot boots a machine.
func (w *world) boot(image, name, address string) *machine {
	w.t.Helper()
	h, err := w.net.Add(name)
	w.must(err)
	w.must(h.Run("ip", "addr", "add", address+"/24", "dev", "eth0"))
	booted, err := h.Boot(w.ctx, image)
	w.must(err)
	m := &machine{Booted: booted, w: w, address: address}
	w.machines = append(w.machines, m)
	return m
}

// do runs a script on the machine.
func (m *machine) do(script string, env ...string) string {
	m.w.t.Helper()
	out, err := m.try(script, env...)
	m.w.must(err)
	return out
}

func (m *machine) try(script string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.w.ctx, patience)
	defer cancel()
	return m.Shell(ctx, script, env...)
}

// write writes a configuration, for the programs alone.
func (m *machine) write(path, text string) {
	m.w.t.Helper()
	m.do("cat >"+path+" <<<\"$TEXT\" && chown root:demiurge "+path+" && chmod 0640 "+path, "TEXT="+text)
}

// operator runs a command of the operator on the first machine.
func (w *world) operator(command string) string {
	w.t.Helper()
	out, err := w.attempt(command)
	w.must(err)
	return out
}

// attempt is operator of a command that may be refused.
func (w *world) attempt(command string) (string, error) {
	return w.machines[0].try("demiurge "+command, "DEMIURGE_ADDR=https://192.0.2.1:7400", "DEMIURGE_CACERT="+data+"/ca.pem", "DEMIURGE_TOKEN="+w.token)
}

// ask runs a command of the operator that answers with JSON.
func ask[T any](w *world, command string) T {
	w.t.Helper()
	out, err := asked[T](w, command)
	w.must(err)
	return out
}

// asked is ask within a wait: while a coordinator that was started does not lead yet there may be no answer.
func asked[T any](w *world, command string) (out T, err error) {
	said, err := w.attempt(command + " -o json")
	if err == nil {
		err = json.Unmarshal([]byte(said), &out)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", command, err, said)
	}
	return out, err
}

// await polls until a condition holds.
func (w *world) await(what string, holds func() error) {
	w.t.Helper()
	if err := lab.Await(w.ctx, patience, what, holds); err != nil {
		w.t.Fatal(err)
	}
}

// property is a property of a unit.
func (m *machine) property(unit, name string) string {
	m.w.t.Helper()
	return strings.TrimSpace(m.do("systemctl show --property=" + name + " --value " + unit))
}

// main is the main process of a unit, by its number on the machine.
func (m *machine) main(unit string) int {
	m.w.t.Helper()
	pid, err := strconv.Atoi(m.property(unit, "MainPID"))
	m.w.must(err)
	return pid
}

// active wants a unit to be active.
func (m *machine) active(units ...string) error {
	for _, unit := range units {
		if state := m.property(unit, "ActiveState"); state != "active" {
			return fmt.Errorf("%s of %s is %s (%s)", unit, m.Name, state, m.property(unit, "Result"))
		}
	}
	return nil
}

// served is what answered a request of a user.
type served struct {
	gateway string
	epoch   string
}

// get asks the machine's nginx for the organization as a browser does.
func (w *world) get(c *http.Client, m *machine) (served, error) {
	ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.address+"/collab/ping", nil)
	if err != nil {
		return served{}, err
	}
	req.Host = id.Hostname(id.Organization(w.org), domain)
	resp, err := c.Do(req)
	if err != nil {
		return served{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return served{}, err
	}
	var health api.GatewayHealth
	if err := json.Unmarshal(body, &health); err != nil || resp.StatusCode != http.StatusOK || health.OrganizationID != w.org {
		return served{}, fmt.Errorf("%s: %s", resp.Status, body)
	}
	return served{resp.Header.Get(api.HeaderGateway), resp.Header.Get(api.HeaderEpoch)}, nil
}

// browser is a user's browser, which keeps its connections or does not.
func (w *world) browser(keeps bool) *http.Client {
	transport := &http.Transport{DialContext: w.client.Dial, DisableKeepAlives: !keeps}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// serves waits until a machine serves the organization, and tells by what.
func (w *world) serves(m *machine) (by served) {
	w.t.Helper()
	browser := w.browser(false)
	w.await(m.Name+" to serve the organization", func() (err error) {
		by, err = w.get(browser, m)
		return err
	})
	return by
}
