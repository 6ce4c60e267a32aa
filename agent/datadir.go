package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// layout is where the things of this host are.
type layout struct {
	gateways string // <data_dir>/gateways/<gateway>/{state,log}
	sockets  string // <run_dir>/gateways/<gateway>/{http,control}.sock
	journal  string
	program  string
	releases string

	oauth       string // <data_dir>/oauth/<organization>.<epoch>: journals
	permissions string // <data_dir>/permissions/<organization>.<epoch>: roles and grants
	containers  string // <data_dir>/containers/<organization>.<epoch>: journals of user containers
	tenant      string // <run_dir>/tenant.sock, which nginx asks
	access      string // <run_dir>/access.sock, which nginx asks about requests to user containers
	pass        string // <run_dir>/pass.sock, where it brings those that the agent carries or answers
}

func layoutOf(c *Config) layout {
	return layout{
		gateways: filepath.Join(c.DataDir, "gateways"), sockets: filepath.Join(c.RunDir, "gateways"),
		journal: filepath.Join(c.DataDir, "journal"), program: c.Gateway.Program, releases: c.Gateway.ReleasesDir,
		oauth: filepath.Join(c.DataDir, "oauth"), permissions: filepath.Join(c.DataDir, "permissions"), tenant: tenantSocket(c),
		containers: filepath.Join(c.DataDir, "containers"), access: accessSocket(c), pass: passSocket(c),
	}
}

// socket is where a gateway listens; the nginx engine knows the same rule.
func (l layout) socket(g id.Gateway) string {
	return filepath.Join(l.sockets, string(g), "http.sock")
}

// control is where a gateway asks the agent.
func (l layout) control(g id.Gateway) string {
	return filepath.Join(l.sockets, string(g), "control.sock")
}

// Dir implements reconcile.Layout.
func (l layout) Dir() string { return l.gateways }

// Spec implements reconcile.Layout.
func (l layout) Spec(g id.Gateway, release string, limits api.Limits) (driver.Spec, error) {
	program, err := l.programOf(release)
	if err != nil {
		return driver.Spec{}, err
	}
	dir := filepath.Join(l.gateways, string(g))
	return driver.Spec{
		Gateway: g, Program: program, Listen: l.socket(g),
		Control:  l.control(g),
		StateDir: filepath.Join(dir, reconcile.StateDir), LogFile: filepath.Join(dir, reconcile.LogFile), Limits: limits,
	}, nil
}

// programOf finds the program of a release. A release's name is one path element of a closed alphabet.
func (l layout) programOf(release string) (string, error) {
	if release == "" || l.releases == "" {
		return l.program, nil
	}
	if len(release) > 64 || strings.Trim(release, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-") != "" || strings.HasPrefix(release, ".") {
		return "", fmt.Errorf("cannot use %.80q as a release: want letters, digits and ._+-", release)
	}
	path := filepath.Join(l.releases, release, "demiurge-gateway")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("cannot run release %s: %w; install it on this host or change the pool's release", release, err)
	}
	return path, nil
}

// dataFormat is the version of what data_dir holds.
const dataFormat = "demiurge-agent 1"

// openDataDir makes the directories and takes data_dir for this agent alone. The returned function gives
// it back.
func openDataDir(c *Config) (release func(), err error) {
	l := layoutOf(c)
	for _, dir := range []string{c.DataDir, l.gateways, c.RunDir, l.sockets} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make %s: %w; make it writable for this agent's user, or name another directory", dir, err)
		}
		probe := fsx.TempName(filepath.Join(dir, "x"))
		if err := os.WriteFile(probe, nil, 0o600); err != nil {
			return nil, fmt.Errorf("cannot write to %s: %w; make it writable for this agent's user, or free space", dir, err)
		}
		_ = os.Remove(probe)
	}
	unlock, err := fsx.TryLock(filepath.Join(c.DataDir, "lock"))
	if errors.Is(err, fsx.ErrLocked) {
		return nil, fmt.Errorf("cannot use %s: another agent runs on it; stop that one, or set another data_dir", c.DataDir)
	}
	if err != nil {
		return nil, err
	}
	if err := errors.Join(checkVersion(c), stay(c)); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// checkVersion makes sure that the directory belongs to this host and this format, and marks a new one.
func checkVersion(c *Config) error {
	path := filepath.Join(c.DataDir, "VERSION")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		files, err := fsx.NewOS(c.DataDir)
		if err != nil {
			return err
		}
		defer func() { _ = files.Close() }()
		if err := fsx.WriteAtomic(files, "agent.version", path, []byte(dataFormat+" "+c.HostID+"\n"), 0o600); err != nil {
			return fmt.Errorf("cannot mark %s: %w", c.DataDir, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	return checkMark(c, string(b))
}

// checkMark reads the text by which a directory is marked.
func checkMark(c *Config, text string) error {
	text = strings.TrimSuffix(text, "\n")
	host, sameFormat := strings.CutPrefix(text, dataFormat+" ")
	switch {
	case sameFormat && host == c.HostID:
		return nil
	case sameFormat:
		return fmt.Errorf("cannot use %s: it belongs to host %.60q and host_id is %q; correct host_id, or set another data_dir", c.DataDir, host, c.HostID)
	}
	return fmt.Errorf("cannot use %s: it was written by another version (%.60q, and this is %q); run that version, or set another data_dir", c.DataDir, text, dataFormat)
}
