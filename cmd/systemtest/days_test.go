package systemtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// days is a system with an organization that is served all the time, whatever happens beside it.
type days struct {
	*system
	anchor   api.Allocation
	other    string // an organization without allocation between the tests
	releases string // directory of gateway programs
}

// TestBadDays runs one system through bad input and bad days. After each the system is whole and its first
// organization is served by the gateway that it had.
func TestBadDays(t *testing.T) {
	t.Parallel()
	d := &days{releases: filepath.Join(shortDir(t), "releases")}
	d.system = start(t, setup{flavor: raced, gateways: 2})
	orgs := d.organizations(2)
	d.anchor, d.other = d.allocate(orgs[0], ""), orgs[1]
	d.configureAgent("gateway:\n", "gateway:\n  releases_dir: "+d.releases+"\n")
	d.whole()
	for _, day := range []struct {
		name string
		test func(*days)
	}{
		{"bad bodies", (*days).badBodies},
		{"bad names", (*days).badNames},
		{"bad names on the command line", (*days).badNamesInCommands},
		{"second start, second stop", (*days).twice},
		{"unknown and empty pools", (*days).noGateway},
		{"gateway never healthy", (*days).neverHealthy},
		{"gateway ends at once", (*days).endsAtOnce},
		{"gateway answers as another", (*days).liar},
		{"nginx refuses", (*days).nginxRefuses},
		{"nginx stopped", (*days).nginxStopped},
		{"killed one after the other", (*days).killedInTurn},
	} {
		t.Run(day.name, func(t *testing.T) {
			sub := *d
			sub.system = d.on(t)
			day.test(&sub)
			sub.whole()
		})
		if t.Failed() {
			return
		}
	}
}

// whole waits until nothing is wrong, and looks whether the first organization is where it was.
func (d *days) whole() {
	d.t.Helper()
	d.waitWhole(d.anchor.OrganizationID, d.other)
	d.stays()
}

// stays fails the test unless the first organization is served by the gateway that it had.
func (d *days) stays() {
	d.t.Helper()
	a, err := d.client.OrganizationAllocation(d.t.Context(), d.anchor.OrganizationID)
	if err != nil || a.AllocationID != d.anchor.AllocationID || a.GatewayID != d.anchor.GatewayID || a.Epoch != d.anchor.Epoch {
		d.t.Fatalf("the first organization has %+v (%v), not %+v any more", a, err, d.anchor)
	}
	d.mustServe(d.anchor)
}

// configureAgent changes the agent's configuration and starts it anew.
func (d *days) configureAgent(old, text string) {
	d.t.Helper()
	path := filepath.Join(d.dir, "agent.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		d.t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		d.t.Fatalf("the agent's configuration has no %q:\n%s", old, b)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), old, text, 1)), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.restart("agent-1")
}

// restart kills a program and waits for the next.
func (d *days) restart(name string) {
	d.t.Helper()
	old := d.pid(name)
	d.kill(old)
	waitTrue(d.t, name+" to run again", func() bool { return d.pid(name) != old })
}

// release makes a program that pools can name.
func (d *days) program(release, script string) {
	d.t.Helper()
	path := filepath.Join(d.releases, release, "demiurge-gateway")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		d.t.Fatal(err)
	}
}

// badPool makes a pool of one gateway of a release, and removes it at the end of the test.
func (d *days) badPool(release string) {
	d.t.Helper()
	one := 1
	timeout := api.Duration(20 * time.Second)
	_, err := d.client.PutPool(d.t.Context(), release, api.PutPool{MinReady: &one, Step: &one, Max: &one, Release: &release, ActivationTimeout: &timeout})
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *days) dropPool(name string) {
	d.t.Helper()
	if err := d.client.DeletePool(d.t.Context(), name); err != nil {
		d.t.Fatal(err)
	}
	waitTrue(d.t, "the pool to be gone", func() bool {
		_, err := d.client.Pool(d.t.Context(), name)
		return fault.Is(err, fault.NotFound)
	})
}

// waitGateway waits for a gateway of a pool to which something applies.
func (d *days) waitGateway(pool, what string, applies func(api.Gateway) bool) {
	d.t.Helper()
	waitFor(d.t, "a gateway of pool "+pool+" to be "+what, func() string {
		gateways, err := d.client.ListGateways(d.t.Context(), client.GatewayFilter{Pool: pool})
		if err != nil {
			return err.Error()
		}
		for _, g := range gateways {
			if applies(g) {
				return ""
			}
		}
		return fmt.Sprintf("they are %+v", gateways)
	})
}

// neverHealthy: the program runs and listens nowhere.
func (d *days) neverHealthy() {
	d.program("deaf", "exec sleep 1000")
	d.badPool("deaf")
	d.waitGateway("deaf", "found not healthy", func(g api.Gateway) bool {
		return g.State == api.GatewayReady || strings.Contains(g.Message, "not healthy")
	})
	_, _, err := d.client.Start(d.t.Context(), api.StartAllocation{OrganizationID: d.other, Pool: "deaf"})
	if f := wantFault(d.t, err, fault.PoolExhausted, "deaf"); f.RetryAfter <= 0 {
		d.t.Errorf("the refusal says nothing of when to come back: %v", f)
	}
	d.stays()
	d.mustServeOther()
	d.dropPool("deaf")
}

// endsAtOnce: creating more of what always fails is stopped, and told.
func (d *days) endsAtOnce() {
	d.program("broken", "echo no such library >&2; exit 3")
	d.badPool("broken")
	// The gateways are gone by then: the pool itself says what they failed of, and the status says it first.
	waitFor(d.t, "the breaker to open, and the status to say why", func() string {
		status, err := d.client.Status(d.t.Context())
		if err != nil {
			return err.Error()
		}
		if len(status.Problems) > 0 {
			first := status.Problems[0]
			if strings.Contains(first.Message, "they keep failing") && strings.Contains(first.Message, "no such library") && strings.Contains(first.Remedy, "demiurge pool set broken --release") {
				return ""
			}
		}
		return fmt.Sprintf("%+v", status.Problems)
	})
	events, err := d.client.ListEvents(d.t.Context(), client.EventQuery{Topics: []string{"gateway"}})
	if err != nil || !strings.Contains(fmt.Sprint(events), "no such library") {
		d.t.Errorf("no event has the last words of the program: %v", err)
	}
	d.stays()
	d.mustServeOther()
	d.dropPool("broken")
}

// liar: a 200 of somebody else is no proof.
func (d *days) liar() {
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	d.program("liar", liarVariable+"=1 exec '"+self+"'")
	d.badPool("liar")
	d.waitGateway("liar", "ready", func(g api.Gateway) bool { return g.State == api.GatewayReady })
	_, _, err = d.client.Start(d.t.Context(), api.StartAllocation{OrganizationID: d.other, Pool: "liar"})
	wantFault(d.t, err, fault.VerifyFailed, "gw-aaaaaaaaaa")
	all, err := d.client.ListAllocations(d.t.Context(), client.AllocationFilter{OrganizationID: d.other, Pool: "liar"})
	if err != nil || len(all) != 1 || all[0].State != api.AllocationRolledBack {
		d.t.Fatalf("the allocations are %+v, %v", all, err)
	}
	steps, err := d.client.Steps(d.t.Context(), all[0].AllocationID)
	if err != nil {
		d.t.Fatal(err)
	}
	undone := map[string]bool{}
	for _, s := range steps {
		undone[s.Step] = s.Undo != nil && s.Undo.State == api.StepDone
	}
	if !undone[api.StepRoute] || !undone[api.StepActivate] {
		d.t.Errorf("the journal does not say that route and activation were undone: %+v", steps)
	}
	if m := d.unrefused(d.other); m != "" {
		d.t.Error(m)
	}
	d.stays()
	d.mustServeOther()
	d.dropPool("liar")
}

// mustServeOther starts the other organization in the good pool, looks at it and ends it.
func (d *days) mustServeOther() {
	d.t.Helper()
	a := d.allocate(d.other, "")
	d.mustServe(a)
	d.release(a)
}

// nginxStopped: the host counts as wedged, nothing new is placed there, and what is served stays.
func (d *days) nginxStopped() {
	pid := d.pid("nginx-1")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		d.t.Fatal(err)
	}
	resumed := sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	defer resumed()
	d.waitNginx(api.NginxWedged)
	_, _, err := d.client.Start(d.t.Context(), api.StartAllocation{OrganizationID: d.other})
	wantFault(d.t, err, fault.NoEligibleHost, "host")
	d.stays()
	status, err := d.client.Status(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	if text := fmt.Sprint(status.Problems); status.Healthy || !strings.Contains(text, "restart nginx") {
		d.t.Errorf("the status says %v", status.Problems)
	}
	resumed()
	d.waitNginx(api.NginxServing)
	d.mustServeOther()
}

func (d *days) waitNginx(state string) {
	d.t.Helper()
	waitFor(d.t, "nginx to be "+state, func() string {
		h, err := d.client.Host(d.t.Context(), "host-1")
		if err != nil {
			return err.Error()
		}
		if h.Nginx.State != state {
			return fmt.Sprintf("%+v", h.Nginx)
		}
		return ""
	})
}

// nginxRefuses: a certificate that is none. The configuration that was live stays, nginx's words are told,
// and when the certificate is right the new one is taken up.
func (d *days) nginxRefuses() {
	certificate := filepath.Join(d.dir, "tls", "chain.pem")
	if err := os.MkdirAll(filepath.Dir(certificate), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(certificate, []byte("this is no certificate\n"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	before := d.generation()
	tls := freePort(d.t)
	d.configureAgent("  workers: 2\n", fmt.Sprintf("  workers: 2\n  listen_tls: [\"127.0.0.1:%d\"]\n  certificate_file: %s\n", tls, certificate))
	waitFor(d.t, "nginx's words", func() string {
		h, err := d.client.Host(d.t.Context(), "host-1")
		if err != nil {
			return err.Error()
		}
		if h.State != api.HostAlive || !strings.Contains(h.Nginx.LastError, "cannot load certificate") {
			return fmt.Sprintf("%+v", h)
		}
		return ""
	})
	status, err := d.client.Status(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	if status.Healthy || !strings.Contains(status.Problems[0].Message, "cannot load certificate") {
		d.t.Errorf("the status says %v", status.Problems)
	}
	if after := d.generation(); after != before {
		d.t.Errorf("nginx went from generation %d to %d", before, after)
	}
	d.stays()
	d.mustServeOther()
	writeCertificate(d.t, certificate, "*."+d.file.Domain)
	waitFor(d.t, "the right certificate to be live", func() string {
		h, err := d.client.Host(d.t.Context(), "host-1")
		if err != nil {
			return err.Error()
		}
		if h.Nginx.LiveGeneration <= before || h.Nginx.LastError != "" {
			return fmt.Sprintf("%+v", h.Nginx)
		}
		return ""
	})
	d.stays()
	d.mustServeTLS(tls)
}
