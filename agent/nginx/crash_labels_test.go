package nginx

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// met are the labels at which the walks of TestCrashAtEveryStep have crashed.
var met walkedLabels

type walkedLabels struct {
	mu  sync.Mutex
	all []string // guarded by mu
}

func (l *walkedLabels) add(label string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, label)
}

// elsewhere are the labels at which no walk crashes, and why.
var elsewhere = map[string]string{
	"nginx.workers.quit": "TestTheAgentDiesBetweenTwoOldWorkers",
	"nginx.conf":         "the name of a template",
}

// everyLabelIsMet fails the test for every label that the sources name and no walk has met: one that is added
// needs a change that reaches it.
func everyLabelIsMet(t *testing.T) {
	if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // only some of the walks were asked for
	}
	all, err := fsxtest.Labels(".", "nginx.")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 40 {
		t.Errorf("only %d labels are found in the sources: %v", len(all), all)
	}
	met.mu.Lock()
	defer met.mu.Unlock()
	for _, label := range fsxtest.Unwalked(all, met.all) {
		if _, ok := elsewhere[label]; !ok {
			t.Errorf("nothing crashes at %s: add a change that reaches it to the walks", label)
		}
	}
}

// served is a host that has served an organization, and whose agent and nginx have ended.
func served(t *testing.T) (h *host, g *gateway, org id.Organization) {
	h, gs, org := serving(t, 1)
	h.settled()
	h.stopEngine()
	h.nginx.Stop()
	return h, gs[0], org
}

// opened is what nginx's owner and the agent do before anything runs.
func (h *host) opened() error {
	if err := Prepare(within(h.t), h.opts); err != nil {
		return err
	}
	e, err := Open(h.opts)
	if err != nil {
		return err
	}
	return e.Close()
}

// servesAgain starts everything and wants the organization served and nothing left over.
func (h *host) servesAgain(g *gateway, org id.Organization, epoch id.Epoch) {
	h.t.Helper()
	h.withFaults()
	h.startNginx()
	h.startEngine()
	h.apply(slots(g))
	h.route(org, g, epoch)
	h.mustServe(org, g, epoch)
	h.settled()
	h.clean()
}

// crashOnLeftovers: a start finds what crashes, other boots and the version before have left, and is itself cut at
// every step of clearing it away.
func crashOnLeftovers(t *testing.T) {
	h, g, org := served(t)
	l := h.layout()
	litter := map[string]string{
		l.generations() + "/000099.tmp/http.conf": "serv", l.generations() + "/junk": "{", l.data + "/.fsx-tmp-aabbccddeeff": "x",
		l.quarantine() + "/nonsense": "{", l.routes() + "/stranger": "x", l.socket(1): "", l.fence(1): "", l.pid(): "1\n",
	}
	for what, more := range map[string]map[string]string{
		"leftovers":          {},
		"another boot":       {l.boot(): "another\n", l.slotFile(): ""},
		"the version before": {l.version(): formatBefore + "\n", l.data + "/slot": ""},
	} {
		mess := func() {
			for _, files := range []map[string]string{litter, more} {
				for path, text := range files {
					if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if what == "leftovers" {
				_ = os.Remove(l.slotFile())
			}
		}
		mess()
		h.withFaults().Record()
		if err := h.opened(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, p := range unique(h.faulty.Points(), "") {
			met.add(p.Label)
			mess()
			h.withFaults().CrashAt(p)
			_ = h.opened() // what only costs a name may be cut without a word
			h.withFaults()
			if err := h.opened(); err != nil {
				t.Fatalf("%s: after a crash at %s, call %d: %v", what, p.Label, p.N, err)
			}
			for path := range litter {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s: after a crash at %s, call %d, %s is left", what, p.Label, p.N, path)
				}
			}
		}
	}
	h.servesAgain(g, org, 20)
}

// crashOnOrphans: nginx's master died and left its workers; the start that ends them is cut there.
func crashOnOrphans(t *testing.T) {
	h, g, org := served(t)
	l := h.layout()
	h.withFaults()
	if err := Prepare(within(t), h.opts); err != nil {
		t.Fatal(err)
	}
	master := exec.Command(nginxBinary(t), "-e", l.errorLog(), "-p", prefix, "-c", l.mainConf(), "-g", "daemon off;")
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nginx has workers", func() bool { return len(children(master.Process.Pid)) == h.opts.Workers })
	_ = master.Process.Kill()
	_ = master.Wait()
	eventually(t, "they are orphans", func() bool { return len(orphans(l)) == h.opts.Workers })
	p := fsxtest.Point{Label: "nginx.orphans.end", N: 1}
	met.add(p.Label)
	h.withFaults().CrashAt(p)
	if err := Prepare(within(t), h.opts); err == nil {
		t.Errorf("a crash at %s is not reported", p.Label)
	}
	h.withFaults()
	if err := Prepare(within(t), h.opts); err != nil {
		t.Fatal(err)
	}
	if left := orphans(l); len(left) > 0 {
		t.Errorf("orphans are left: %v", left)
	}
	h.servesAgain(g, org, 20)
}

// crashWhereRarely: steps that only a failure, a stranger or a certificate brings about.
func crashWhereRarely(t *testing.T) {
	w := newWalker(t, func(h *host) { certify(t, h) })
	for _, c := range []struct {
		labels []string
		do     func()
		fail   map[string]error
	}{
		{labels: []string{"nginx.certificate.write", "nginx.certificate.rename", "nginx.certificate.sync"}, do: func() {
			_ = w.engine.SetCertificate(w.org, selfSigned(t, "own.test"))
		}},
		{labels: []string{"nginx.drift.remove"}, do: func() {
			if err := os.WriteFile(w.layout().routes()+"/stranger", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			w.engine.scanRoutes(within(t))
		}},
		{labels: []string{"nginx.generation.clean"}, fail: map[string]error{"nginx.generation.rename": syscall.EIO}, do: func() {
			w.engine.SetConfig(w.config())
		}},
		{labels: []string{"nginx.route.slot.file"}, fail: map[string]error{"nginx.route.slot": syscall.EMLINK}, do: func() {
			_ = w.engine.Route(within(t), w.org, Target{w.gw.id, w.epoch + 1})
		}},
	} {
		for _, label := range c.labels {
			w.round++
			met.add(label)
			w.faulty.CrashAt(fsxtest.Point{Label: label, N: 1})
			for l, err := range c.fail {
				w.faulty.Fail(l, err)
			}
			c.do()
			if !w.crashed(func() bool { return false }) {
				t.Fatalf("no crash at %s", label)
			}
			w.stillServed("crash at " + label)
			w.stopEngine()
			w.restart()
			w.apply(w.config())
			w.settled()
			w.stillServed("recovered from a crash at " + label)
			if err := w.engine.SetCertificate(w.org, selfSigned(t, fmt.Sprintf("own%d.test", w.round))); err != nil {
				t.Errorf("after a crash at %s: %v", label, err)
			}
			if _, err := os.Lstat(w.layout().routes() + "/stranger"); err == nil {
				t.Errorf("after a crash at %s a stranger is left among the routes", label)
			}
			w.settled()
			w.clean()
		}
	}
}

// crashInLastResort: neither the new generation nor the last one can be proven, and the agent dies before it ends
// nginx. The next agent, and nginx's owner, bring it back.
func crashInLastResort(t *testing.T) {
	w := newWalker(t, nil)
	good, err := os.ReadFile(w.layout().mainConf())
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Replace(good, []byte("working_directory "), []byte("working_directory /nowhere/at/all"), 1)
	w.faulty.Before("nginx.hup", func() { _ = os.WriteFile(w.layout().mainConf(), bad, 0o600) })
	w.faulty.Fail("nginx.main.write", syscall.EIO) // the drift watch must not be faster than nginx
	p := fsxtest.Point{Label: "nginx.restart", N: 1}
	met.add(p.Label)
	w.faulty.CrashAt(p)
	w.round++
	w.engine.SetConfig(w.config())
	if !w.crashed(func() bool { return false }) {
		t.Fatalf("no crash at %s", p.Label)
	}
	w.stopEngine()
	w.restart()
	w.engine.SetConfig(w.config())
	eventually(t, "the organization is served again", func() bool { return w.servedBy(w.org, w.gw, w.epoch) == nil })
	w.apply(w.config())
	w.settled()
	eventually(t, "the configuration of this round is live", w.done)
	w.clean()
}

func nginxBinary(t *testing.T) string {
	t.Helper()
	o := Options{}
	if err := o.findBinary(); err != nil {
		t.Fatal(err)
	}
	return o.Binary
}
