package nginx

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// What passes nginx -t and would leave nginx dead or on the old configuration.
func TestPassesTheTestButDead(t *testing.T) {
	t.Run("port taken before", func(t *testing.T) {
		t.Parallel()
		h, gs, org := serving(t, 1)
		h.stopEngine()
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = taken.Close() }()
		h.opts.Listen = append(h.opts.Listen, netip.MustParseAddrPort(taken.Addr().String()))
		h.startEngine()
		before := h.engine.Status().LiveGeneration
		h.engine.SetConfig(slots(gs[0], h.gateway(nil)))
		eventually(t, "preflight names the port", func() bool {
			return strings.Contains(h.engine.Status().LastError, "cannot listen on "+taken.Addr().String())
		})
		if st := h.engine.Status(); st.LiveGeneration != before {
			t.Errorf("generation %d is live", st.LiveGeneration)
		}
		h.mustServe(org, gs[0], 7)
		_ = taken.Close()
		h.settled() // by itself, when the port is free
		h.mustServe(org, gs[0], 7)
		h.clean()
	})

	t.Run("port taken after preflight", func(t *testing.T) {
		t.Parallel()
		h, gs, org := serving(t, 1)
		h.stopEngine()
		port := freePort(t)
		h.opts.Listen = append(h.opts.Listen, port)
		occupant := make(chan net.Listener, 1)
		h.withFaults().Before("nginx.hup", func() {
			if l, err := net.Listen("tcp", port.String()); err == nil {
				occupant <- l // the channel never has to take a second one: the port is taken
			}
		})
		h.startEngine()
		h.engine.SetConfig(slots(gs[0], h.gateway(nil)))
		eventually(t, "nginx's own reason is reported and the last content is live again", func() bool {
			return h.saw(GenerationFailed, func(ev Event) bool { return strings.Contains(ev.Reason, "Address already in use") })
		})
		h.mustServe(org, gs[0], 7)
		h.faulty.Before("nginx.hup", nil)
		_ = (<-occupant).Close()
		h.settled()
		h.mustServe(org, gs[0], 7)
		h.clean()
	})

	t.Run("working directory missing", func(t *testing.T) {
		t.Parallel()
		h, gs, org := serving(t, 1)
		h.stopEngine() // so that the drift watch does not put it right before the generation begins
		b, err := os.ReadFile(h.layout().mainConf())
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Replace(b, []byte("working_directory "), []byte("working_directory /nowhere/at/all"), 1)
		if err := os.WriteFile(h.layout().mainConf(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		h.startEngine()
		next := h.gateway(nil)
		h.apply(slots(gs[0], next))
		h.mustServe(org, gs[0], 7)
		if !h.saw(DriftRepaired, func(ev Event) bool { return ev.Part == "nginx.conf" }) {
			t.Error("nobody was told that nginx.conf had been changed")
		}
	})

	t.Run("all new workers die", func(t *testing.T) {
		t.Parallel()
		h, gs, org := serving(t, 1)
		h.stopEngine()
		good, err := os.ReadFile(h.layout().mainConf())
		if err != nil {
			t.Fatal(err)
		}
		// After the last check of nginx.conf, for one load.
		var times atomic.Int32
		h.withFaults().Before("nginx.hup", func() {
			text := good
			if times.Add(1) == 1 {
				text = bytes.Replace(good, []byte("working_directory "), []byte("working_directory /nowhere/at/all"), 1)
			}
			_ = os.WriteFile(h.layout().mainConf(), text, 0o600)
		})
		h.faulty.Fail("nginx.main.write", syscall.EIO) // the drift watch must not be faster than nginx
		h.startEngine()
		h.engine.SetConfig(slots(gs[0], h.gateway(nil)))
		eventually(t, "nginx's own reason is reported", func() bool {
			return h.saw(GenerationFailed, func(ev Event) bool { return strings.Contains(ev.Reason, "cannot be respawned") })
		})
		eventually(t, "the organization is served again", func() bool { return h.servedBy(org, gs[0], 7) == nil })
		if h.nginx.PID() == 0 {
			t.Error("nginx does not run")
		}
	})
}

func TestNginxDies(t *testing.T) {
	t.Run("a worker", func(t *testing.T) {
		t.Parallel()
		h, gs, org := serving(t, 1)
		for _, pid := range children(h.nginx.PID())[:1] {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			h.mustServe(org, gs[0], 7)
		}
		h.apply(slots(gs[0], h.gateway(nil)))
		h.mustServe(org, gs[0], 7)
	})

	t.Run("the master", func(t *testing.T) {
		t.Parallel()
		h, gs, org := serving(t, 1)
		eventually(t, "nginx was looked at", func() bool { return h.engine.Status().State == api.NginxServing })
		before, workers := h.nginx.PID(), children(h.nginx.PID())
		if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another master serves", func() bool { return h.nginx.PID() != 0 && h.nginx.PID() != before })
		eventually(t, "the same route serves", func() bool { return h.servedBy(org, gs[0], 7) == nil })
		eventually(t, "the death is told of, however short it was", func() bool {
			return h.saw(NginxRestarted, func(ev Event) bool { return strings.HasPrefix(ev.Reason, fmt.Sprintf("pid %d ended", before)) })
		})
		for _, pid := range workers {
			if p, err := lookAt(pid); err == nil && p.alive() && parentOf(pid) != os.Getpid() {
				t.Errorf("orphan %d still runs", pid)
			}
		}
		eventually(t, "nginx counts as serving", func() bool { return h.engine.Status().State == api.NginxServing })
		h.apply(slots(gs[0], h.gateway(nil)))
		h.mustServe(org, gs[0], 7)
		h.settled()
		h.clean()
	})

	t.Run("the master while a generation is on its way", func(t *testing.T) {
		t.Parallel()
		h, gs, org := serving(t, 1)
		h.stopEngine()
		killed := false
		h.withFaults().Before("nginx.fence.answer", func() {
			if !killed {
				killed = true
				_ = syscall.Kill(h.nginx.PID(), syscall.SIGKILL)
			}
		})
		h.startEngine()
		next := h.gateway(nil)
		h.apply(slots(gs[0], next))
		h.mustServe(org, gs[0], 7)
		h.route(org, next, 8)
		h.mustServe(org, next, 8)
		h.settled()
		h.clean()
	})

	t.Run("the master is stopped", func(t *testing.T) {
		t.Parallel()
		h, gs, org := serving(t, 1)
		pid := h.nginx.PID()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
		eventually(t, "wedged", func() bool { return h.engine.Status().State == api.NginxWedged })
		h.mustServe(org, gs[0], 7) // traffic goes on
		h.route(org, gs[0], 8)     // and so do routes
		h.mustServe(org, gs[0], 8)
		next := h.gateway(nil)
		before := h.engine.Status().LiveGeneration
		h.engine.SetConfig(slots(gs[0], next))
		eventually(t, "the generation waits", func() bool { return strings.Contains(h.engine.Status().LastError, "stopped") })
		if got := h.engine.Status().LiveGeneration; got != before {
			t.Errorf("generation %d is reported live by a stopped nginx", got)
		}
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := h.engine.WaitSlot(within(t), next.id); err != nil {
			t.Fatal(err)
		}
		eventually(t, "serving again", func() bool { return h.engine.Status().State == api.NginxServing })
		h.settled()
		h.clean()
	})
}

func TestEngineWithoutNginx(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.startEngine()
	g := h.gateway(nil)
	h.engine.SetConfig(slots(g))
	org := id.NewOrganization()
	err := h.engine.Route(within(t), org, Target{g.id, 1})
	if !fault.Is(err, fault.RouteApplyFailed) {
		t.Errorf("Route without nginx: %v", err)
	}
	if _, err := os.Lstat(h.layout().route(org)); err == nil {
		t.Error("the failed route is still there")
	}
	if got := h.engine.Status().State; got != api.NginxDown {
		t.Errorf("state %q", got)
	}
	h.startNginx() // now it comes: what waited goes on by itself
	if err := h.engine.WaitSlot(within(t), g.id); err != nil {
		t.Fatal(err)
	}
	h.route(org, g, 1)
	h.mustServe(org, g, 1)
}

func TestRouteFailsAndThePreviousOneStays(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 2)
	h.stopEngine()
	f := h.withFaults()
	h.startEngine()
	for _, label := range []string{"nginx.route.slot", "nginx.route.symlink", "nginx.route.rename", "nginx.route.prove"} {
		f.Fail(label, syscall.EIO)
		err := h.engine.Route(within(t), org, Target{gs[1].id, 8})
		f.Fail(label, nil)
		if !fault.Is(err, fault.RouteApplyFailed) || !strings.Contains(err.Error(), "input/output error") {
			t.Errorf("%s: %v", label, err)
		}
		if got := h.engine.Routes()[org]; got != (Target{gs[0].id, 7}) {
			t.Errorf("%s: the table says %v", label, got)
		}
		h.mustServe(org, gs[0], 7)
	}
	// One file can have only so many names; the rest are files of their own.
	f.Fail("nginx.route.slot", syscall.EMLINK)
	h.route(org, gs[1], 8)
	f.Fail("nginx.route.slot", nil)
	h.mustServe(org, gs[1], 8)
	if err := h.engine.Route(within(t), org, Target{gs[1].id, 6}); !fault.Is(err, fault.StaleEpoch) {
		t.Errorf("an older epoch: %v", err)
	}
	if err := h.engine.Route(within(t), org, Target{id.NewGateway(), 9}); !fault.Is(err, fault.RouteApplyFailed) {
		t.Errorf("a gateway that the generation does not name: %v", err)
	}
	for _, bad := range []id.Organization{"", "../../etc", "x; }", id.Organization(strings.ToUpper(string(org)))} {
		if err := h.engine.Route(within(t), bad, Target{gs[1].id, 9}); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("organization %q: %v", bad, err)
		}
	}
	for _, bad := range []Target{{"gw-../../../x", 9}, {gs[1].id, 0}, {"", 9}} {
		if err := h.engine.Route(within(t), org, bad); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("target %v: %v", bad, err)
		}
	}
	h.route(org, gs[1], 8)
	h.mustServe(org, gs[1], 8)
	h.clean()
}

func TestLeadLeavesTheProofToItsCaller(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 2)
	h.stopEngine()
	f := h.withFaults()
	h.startEngine()
	f.Fail("nginx.route.rename", syscall.EIO)
	if err := h.engine.Lead(within(t), org, Target{gs[1].id, 8}); !fault.Is(err, fault.RouteApplyFailed) {
		t.Errorf("a rename that fails: %v", err)
	}
	f.Fail("nginx.route.rename", nil)
	h.mustServe(org, gs[0], 7)
	f.Fail("nginx.route.prove", syscall.EIO) // nobody asks
	if err := h.engine.Lead(within(t), org, Target{gs[1].id, 8}); err != nil {
		t.Fatal(err)
	}
	f.Fail("nginx.route.prove", nil)
	h.mustServe(org, gs[1], 8)
	if err := h.engine.Lead(within(t), org, Target{gs[0].id, 7}); !fault.Is(err, fault.StaleEpoch) {
		t.Errorf("an older epoch: %v", err)
	}
	h.clean()
}

// A3, A9: the end of an old grant must not end the route of a newer one.
func TestUnrouteEndsOnlyItsOwnRoute(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 2)
	h.route(org, gs[1], 9)
	for _, old := range []Target{{gs[0].id, 7}, {gs[1].id, 7}, {gs[0].id, 9}} {
		if err := h.engine.Unroute(within(t), org, old); err != nil {
			t.Errorf("%v: %v", old, err)
		}
		h.mustServe(org, gs[1], 9)
	}
	for range 2 { // the second time it is gone already
		if err := h.engine.Unroute(within(t), org, Target{gs[1].id, 9}); err != nil {
			t.Error(err)
		}
	}
	if status, _, _ := h.ask(orgHost(org), "/"); status != 503 {
		t.Errorf("after the end: %d", status)
	}
	if entries, err := os.ReadDir(h.layout().routes()); err != nil || len(entries) != 0 {
		t.Errorf("slots are left: %v %v", entries, err)
	}
	// Without nginx nobody can serve the name: the end is the end.
	h.route(org, gs[0], 11)
	h.nginx.Stop()
	if err := h.engine.Unroute(within(t), org, Target{gs[0].id, 11}); err != nil {
		t.Error(err)
	}
}

func TestRetain(t *testing.T) {
	t.Parallel()
	h, gs, kept := serving(t, 2)
	gone, damaged, added := id.NewOrganization(), id.NewOrganization(), id.NewOrganization()
	h.route(gone, gs[0], 8)
	h.route(damaged, gs[1], 9)
	h.stopEngine()
	if err := os.Remove(h.layout().route(damaged)); err != nil {
		t.Fatal(err)
	}
	e, err := Open(h.opts)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(e.Routes()); got != 2 {
		t.Errorf("%d routes are read from the links, want 2", got)
	}
	e.Retain(map[id.Organization]Target{kept: {gs[0].id, 7}, damaged: {gs[1].id, 9}, added: {gs[1].id, 10}})
	h.run(e)
	h.mustServe(kept, gs[0], 7)
	h.mustServe(damaged, gs[1], 9)
	h.mustServe(added, gs[1], 10)
	if status, _, _ := h.ask(orgHost(gone), "/"); status != 503 {
		t.Errorf("a route that nobody grants: %d", status)
	}
}

func TestDriftIsRepaired(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 2)
	l := h.layout()
	stranger := id.NewOrganization()
	change := map[string]func(){
		"removed":       func() { _ = os.Remove(l.route(org)) },
		"led elsewhere": func() { _ = os.Remove(l.route(org)); _ = os.Symlink(link(Target{gs[1].id, 7}), l.route(org)) },
		"a file":        func() { _ = os.Remove(l.route(org)); _ = os.WriteFile(l.route(org), nil, 0o600) },
		"a stranger":    func() { _ = os.Symlink(link(Target{gs[1].id, 7}), l.route(stranger)) },
	}
	for what, do := range change {
		do()
		eventually(t, "route "+what, func() bool {
			_, err := os.Lstat(l.route(stranger))
			return h.engine.routes.inPlace(org) && err != nil && h.servedBy(org, gs[0], 7) == nil
		})
	}
	if !h.saw(DriftRepaired, func(ev Event) bool { return ev.Organization == org }) || !h.saw(DriftRepaired, func(ev Event) bool { return ev.Organization == stranger }) {
		t.Error("nobody was told")
	}
	if err := os.WriteFile(l.pointer(), []byte("include /nowhere;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pointer is put back", func() bool { return h.engine.pointsTo(h.engine.Status().LiveGeneration) })
	if err := os.WriteFile(l.mainConf(), []byte("user nobody;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nginx.conf is put back", func() bool {
		b, err := os.ReadFile(l.mainConf())
		return err == nil && strings.Contains(string(b), "include live.conf")
	})
	main, err := os.ReadFile(l.mainConf())
	if err != nil {
		t.Fatal(err)
	}
	edit := func(key string) func() error { // as editors do it
		return func() error {
			text := regexp.MustCompile(key+` \d+`).ReplaceAll(main, []byte(key+" 9"))
			return errors.Join(os.WriteFile(l.mainConf()+".edited", text, 0o600), os.Rename(l.mainConf()+".edited", l.mainConf()))
		}
	}
	for what, do := range map[string]func() error{
		"few connections": edit("worker_connections"), "few files": edit("worker_rlimit_nofile"),
		"removed": func() error { return os.Remove(l.mainConf()) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "nginx.conf is put back after: "+what, func() bool {
			b, err := os.ReadFile(l.mainConf())
			return err == nil && bytes.Equal(b, main)
		})
	}
	// What the watch cannot see is found by the scan.
	if err := os.Remove(l.slot(Target{gs[0].id, 7})); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.routes(), "junk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.engine.scanRoutes(within(t))
	h.mustServe(org, gs[0], 7)
	h.settled()
	h.clean()
}

func TestASlotGoesOnlyAfterItsRoutes(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 2)
	h.engine.SetConfig(slots(gs[1]))
	h.engine.SetConfig(slots(gs[1], h.gateway(nil)))
	h.settled()
	h.mustServe(org, gs[0], 7)
	if err := h.engine.Unroute(within(t), org, Target{gs[0].id, 7}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slot is gone", func() bool { return !h.engine.names(gs[0].id) })
	h.settled()
}

func TestClearErrors(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		change     func(*Options)
	}{
		{"nginx missing", "install nginx", func(o *Options) { o.Binary = "/nowhere/nginx" }},
		{"not a directory", "cannot make directory", func(o *Options) { o.DataDir = file + "/data" }},
		{"socket path too long", "the system allows 107", func(o *Options) { o.RunDir = long }},
		{"injection by path", "want a path of letters", func(o *Options) { o.SocketDir = "/tmp/a;b" }},
		{"variable in path", "want a path of letters", func(o *Options) { o.SocketDir = "/tmp/$host" }},
		{"no listener", "at least one address", func(o *Options) { o.Listen = nil }},
		{"same listener twice", "cannot listen on both", func(o *Options) { o.Listen = append(o.Listen, o.Listen[0]) }},
		{"TLS without certificate", "without a certificate", func(o *Options) { o.ListenTLS = o.Listen; o.Listen = nil }},
	} {
		opts := h.opts
		c.change(&opts)
		if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if err := os.WriteFile(h.layout().version(), []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(h.opts); err == nil || !strings.Contains(err.Error(), "format \"99\"") {
		t.Errorf("another version: %v", err)
	}
	if err := Prepare(within(t), h.opts); err == nil || !strings.Contains(err.Error(), "format \"99\"") {
		t.Errorf("another version: %v", err)
	}
}

// Too many old workers with open connections slow generations down; routes do not care.
func TestDrainingWorkersSlowGenerations(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opts.MaxDrainingWorkers, h.opts.Workers = 1, 1
	h.startNginx()
	h.startEngine()
	up := h.gateway(http.HandlerFunc(upgraded))
	h.apply(slots(up))
	org := id.NewOrganization()
	h.route(org, up, 1)
	var pinned []func(string) error
	for i := range 2 { // each generation leaves one worker with one connection behind
		pinned = append(pinned, h.dialUpgrade(org))
		h.engine.SetConfig(Config{Slots: []Slot{{up.id, int64(1000 + i)}}})
		eventually(t, "the generation is live", func() bool { return h.engine.snapshot().slots[up.id].MaxBody == int64(1000+i) })
	}
	eventually(t, "both old workers are counted", func() bool { return h.engine.Status().DrainingWorkers == 2 })
	before := h.engine.Status().LiveGeneration
	h.engine.SetConfig(Config{Slots: []Slot{{up.id, 5000}}})
	for i := range 50 {
		h.route(org, up, id.Epoch(2+i))
	}
	for _, echo := range pinned {
		if err := echo("still open"); err != nil {
			t.Error(err)
		}
	}
	if got := h.engine.Status().LiveGeneration; got != before {
		t.Errorf("generation %d went live while %d old workers drain", got, 2)
	}
}
