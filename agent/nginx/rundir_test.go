package nginx

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Routes live as long as the machine runs: a restart of the engine or of nginx keeps them, another boot
// does not.
func TestRoutesLiveAsLongAsTheMachineRuns(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	h.nginx.Stop()
	h.startNginx() // without any engine
	h.mustServe(org, gs[0], 7)
	h.startEngine()
	h.mustServe(org, gs[0], 7)
	h.stopEngine()
	h.nginx.Stop()
	// A run directory that is no memory outlives the machine's run, and so do its routes.
	if err := os.WriteFile(h.layout().boot(), []byte("another boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.startNginx()
	if status, _, _ := h.ask(orgHost(org), "/"); status != 503 {
		t.Errorf("a route of an earlier boot answers %d", status)
	}
	// The agent knows its grants from its journal.
	e, err := Open(h.opts)
	if err != nil {
		t.Fatal(err)
	}
	e.Retain(map[id.Organization]Target{org: {gs[0].id, 7}})
	h.run(e)
	h.mustServe(org, gs[0], 7)
	h.clean()
}

// The workers of nginx stand in the directory of routes. Whatever happens to it, the routes come back.
func TestTheDirectoryOfRoutesIsMadeAgain(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	dir := h.layout().routes()
	serves := func() bool { return h.servedBy(org, gs[0], 7) == nil }
	for what, do := range map[string]func() error{
		"removed": func() error {
			eventually(t, "removing is faster than repairing", func() bool { return os.RemoveAll(dir) == nil })
			return nil
		},
		"moved away": func() error { return os.Rename(dir, filepath.Join(h.opts.DataDir, "scratch")) },
		"exchanged": func() error {
			if err := os.Rename(dir, filepath.Join(h.opts.DataDir, "scratch")); err != nil {
				return err
			}
			return os.MkdirAll(dir, 0o700)
		},
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "served after the directory was "+what, serves)
		h.settled()
		if err := os.RemoveAll(filepath.Join(h.opts.DataDir, "scratch")); err != nil {
			t.Fatal(err)
		}
	}
	// While no engine looks, nobody but nginx can tell.
	h.stopEngine()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := h.ask(orgHost(org), "/"); status != 503 {
		t.Errorf("without the directory: %d", status)
	}
	e, err := Open(h.opts)
	if err != nil {
		t.Fatal(err)
	}
	e.Retain(map[id.Organization]Target{org: {gs[0].id, 7}})
	h.run(e)
	e.SetConfig(slots(gs...)) // the same as before: only the workers are new
	eventually(t, "served after the directory was removed while no engine ran", serves)
	h.settled()
	h.clean()
	// The same on a host without a route that could show it.
	if err := h.engine.Unroute(within(t), org, Target{gs[0].id, 7}); err != nil {
		t.Fatal(err)
	}
	h.stopEngine()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	e = h.startEngine()
	before := e.Status().LiveGeneration
	e.SetConfig(slots(gs...))
	eventually(t, "new workers", func() bool { return e.Status().LiveGeneration > before })
	h.settled()
	h.route(org, gs[0], 8)
	h.mustServe(org, gs[0], 8)
}

// The format before had the routes in the data directory. The next start of nginx brings it up to date;
// until then the directory is refused with the remedy.
func TestTheFormatBeforeIsBroughtUpToDate(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	h.stopEngine()
	l := h.layout()
	old := func() {
		for path, text := range map[string]string{
			l.version(): formatBefore + "\n", l.data + "/slot": "", l.certificate(org): "kept",
			l.data + "/routes/" + link(Target{gs[0].id, 7}): "",
		} {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	old()
	if _, err := Open(h.opts); err == nil || !strings.Contains(err.Error(), "restart nginx") {
		t.Errorf("under a running nginx: %v", err)
	}
	h.mustServe(org, gs[0], 7)
	h.nginx.Stop()
	f := h.withFaults()
	f.Record()
	if err := Prepare(within(t), h.opts); err != nil {
		t.Fatal(err)
	}
	points := unique(f.Points(), "")
	for _, label := range []string{"nginx.upgrade.remove", "nginx.version.rename", "nginx.generation.rename"} {
		if !labels(points)[label] {
			t.Errorf("step %s is not in the clean run", label)
		}
	}
	for _, p := range points {
		old()
		h.withFaults().CrashAt(p)
		_ = Prepare(within(t), h.opts)
		h.withFaults()
		if err := Prepare(within(t), h.opts); err != nil {
			t.Errorf("after a crash at %s: %v", p.Label, err)
		}
	}
	if b, err := os.ReadFile(l.certificate(org)); err != nil || string(b) != "kept" {
		t.Errorf("the certificate: %q %v", b, err)
	}
	for _, gone := range []string{l.data + "/routes", l.data + "/slot"} {
		if _, err := os.Lstat(gone); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
	h.startNginx()
	h.startEngine()
	h.apply(slots(gs...))
	h.route(org, gs[0], 8)
	h.mustServe(org, gs[0], 8)
	h.settled()
	h.clean()
}

// Without its prefix nginx would look for routes elsewhere and find none.
func TestNginxStartedInAnotherWay(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if err := Prepare(within(t), h.opts); err != nil {
		t.Fatal(err)
	}
	opts, err := h.opts.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(opts.Binary, "-e", h.layout().errorLog(), "-c", h.layout().mainConf(), "-g", "daemon off;")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	h.startEngine()
	h.engine.SetConfig(slots(h.gateway(nil)))
	eventually(t, "the way out is said", func() bool {
		return h.engine.Status().State == api.NginxWedged && strings.Contains(h.engine.Status().LastError, "restart it the way its unit does")
	})
}
