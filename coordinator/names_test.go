package coordinator_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/coordinator/dns/dnstest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// moody is a real PowerDNS behind a door that a test can make bad.
type moody struct {
	*dnstest.PowerDNS
	t    *testing.T
	url  string
	mood atomic.Pointer[func(w http.ResponseWriter, r *http.Request) (answered bool)]
}

func newMoody(t *testing.T) *moody {
	t.Helper()
	m := &moody{PowerDNS: dnstest.Start(t), t: t}
	behind, err := url.Parse(m.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(behind)
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if mood := m.mood.Load(); mood != nil && (*mood)(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(door.Close)
	m.url = door.URL
	return m
}

// becomes sets what is done with requests; nil: they are answered as they should be.
func (m *moody) becomes(mood func(w http.ResponseWriter, r *http.Request) bool) {
	if mood == nil {
		m.mood.Store(nil)
		return
	}
	m.mood.Store(&mood)
}

// configure makes a coordinator use it.
func (m *moody) configure(c *coordinator.Config) {
	m.t.Helper()
	key := filepath.Join(m.t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(dnstest.Key), 0o600); err != nil {
		m.t.Fatal(err)
	}
	c.DNS.Provider = dns.ProviderPowerDNS
	c.DNS.PowerDNS = dns.PowerDNSConfig{URL: m.url, KeyFile: key, Zone: dnstest.Zone, Timeout: 20 * time.Second}
}

// leads is where an organization's name leads; "" nowhere.
func (m *moody) leads(org string) string {
	m.t.Helper()
	return m.asked("org-" + org + "." + dnstest.Zone + ".")
}

func (m *moody) asked(name string) string {
	m.t.Helper()
	var q miekg.Msg
	q.SetQuestion(name, miekg.TypeA)
	answer, _, err := (&miekg.Client{Timeout: coordtest.Patience}).Exchange(&q, net.JoinHostPort("127.0.0.1", strconv.Itoa(m.DNSPort)))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, rr := range answer.Answer {
		if a, ok := rr.(*miekg.A); ok {
			return a.A.String()
		}
	}
	return ""
}

// soonLost makes hosts that say nothing lost at once: also one that a busy machine keeps from it for a second, so a
// coordinator gets it when it is to find a host lost, and not before.
func soonLost(c *coordinator.Config) {
	c.Hosts.SilentAfter, c.Hosts.LostAfter = time.Second, time.Second
}

// named is a coordinator with such a server, a host and a pool. It loses no host until it is restarted with soonLost.
func named(t *testing.T) (*coordtest.Cluster, *moody, *coordtest.Agent) {
	t.Helper()
	m := newMoody(t)
	patient := func(c *coordinator.Config) {
		c.Hosts.SilentAfter, c.Hosts.LostAfter = coordtest.Patience, coordtest.Patience
	}
	c := coordtest.Start(t, patient, m.configure)
	agent := c.Agent("h1", 10, coordtest.Script{})
	c.Pool("default", 3)
	return c, m, agent
}

// stepsOf is the journal of an allocation, as "step state" by name.
func stepsOf(t *testing.T, c *coordtest.Cluster, allocation string) map[string]string {
	t.Helper()
	steps, err := c.Admin.Steps(c.Context(), allocation)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, s := range steps {
		out[s.Step] = s.State
	}
	return out
}

// lastOf is the newest allocation of an organization.
func lastOf(t *testing.T, c *coordtest.Cluster, org string) api.Allocation {
	t.Helper()
	all, err := c.Admin.ListAllocations(c.Context(), client.AllocationFilter{OrganizationID: org})
	if err != nil || len(all) == 0 {
		t.Fatalf("%d allocations, %v", len(all), err)
	}
	return slices.MaxFunc(all, func(a, b api.Allocation) int { return a.CreatedAt.Compare(b.CreatedAt) })
}

// TestAnAllocationIsActiveWithItsName: when a start answers, the name leads to the host; when a stop does, it
// leads nowhere.
func TestAnAllocationIsActiveWithItsName(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, _ := named(t)
	org := c.Organizations(1)[0]
	a := mustStart(t, c, org)
	if got := m.leads(org); got != "192.0.2.1" {
		t.Errorf("it leads to %q", got)
	}
	if got := m.asked("uc-1.org-" + org + "." + dnstest.Zone + "."); got != "192.0.2.1" {
		t.Errorf("below it leads to %q", got)
	}
	if steps := stepsOf(t, c, a.AllocationID); steps[api.StepDNS] != api.StepDone || a.Timings.DNS <= 0 {
		t.Errorf("steps %v, %f ms", steps, a.Timings.DNS)
	}
	if _, err := c.Admin.Release(c.Context(), a.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	if got := m.leads(org); got != "" {
		t.Errorf("after the release it leads to %q", got)
	}
}

// TestNamesThatCannotBeWritten: the start fails with the reason, everything is undone, the gateway is not
// blamed, and the next start works as soon as the server does.
func TestNamesThatCannotBeWritten(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, agent := named(t)
	within := func(limit time.Duration) {
		t.Helper()
		d := api.Duration(limit)
		if _, err := c.Admin.PutPool(c.Context(), "default", api.PutPool{ActivationTimeout: &d}); err != nil {
			t.Fatal(err)
		}
	}
	for what, mood := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"down": func(w http.ResponseWriter, _ *http.Request) bool {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return true
		},
		"slow": func(_ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		},
		"refusing": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPatch {
				http.Error(w, `{"error": "no"}`, http.StatusUnprocessableEntity)
			}
			return r.Method == http.MethodPatch
		},
		"lying": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPatch {
				w.WriteHeader(http.StatusNoContent)
			}
			return r.Method == http.MethodPatch
		},
	} {
		org := c.Organizations(1)[0]
		m.becomes(mood)
		within(time.Minute)
		if what == "down" || what == "slow" {
			within(5 * time.Second) // it is tried until then
		}
		_, err := start(c, org)
		within(time.Minute)
		if !fault.Is(err, fault.DNSFailed) {
			t.Errorf("%s: %v", what, err)
		}
		failed := lastOf(t, c, org)
		coordtest.Eventually(t, what+": everything is undone", func() bool {
			return lastOf(t, c, org).State == api.AllocationRolledBack && agent.Serving()[org] == ""
		})
		if steps := stepsOf(t, c, failed.AllocationID); steps[api.StepDNS] != api.StepFailed || steps[api.StepUndoDNS] == "" {
			t.Errorf("%s: steps %v", what, steps)
		}
		m.becomes(nil)
		again, err := start(c, org)
		if err != nil || again.AllocationID == failed.AllocationID || m.leads(org) != "192.0.2.1" {
			t.Fatalf("%s: afterwards %+v, %v, leads to %q", what, again, err, m.leads(org))
		}
		if _, err := c.Admin.Release(c.Context(), again.AllocationID, 0); err != nil {
			t.Fatal(err)
		}
	}
	gateways, err := c.Admin.ListGateways(c.Context(), client.GatewayFilter{State: "failed"})
	if err != nil || len(gateways) > 0 {
		t.Errorf("gateways were blamed: %+v, %v", gateways, err)
	}
}

// TestANameThatComesLate: what passes within the time of the activation costs time and nothing else, also for
// the other organizations of the host, which do not wait for it.
func TestANameThatComesLate(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, _ := named(t)
	orgs := c.Organizations(2)
	var held atomic.Bool
	reached := make(chan struct{}, 100)
	held.Store(true)
	m.becomes(func(w http.ResponseWriter, r *http.Request) bool {
		if !held.Load() || !strings.Contains(r.URL.RawQuery, orgs[0]) {
			return false
		}
		reached <- struct{}{}
		http.Error(w, "later", http.StatusServiceUnavailable)
		return true
	})
	late := make(chan error, 1)
	go func() {
		_, err := start(c, orgs[0])
		late <- err
	}()
	<-reached
	<-reached // a second try
	if _, err := start(c, orgs[1]); err != nil {
		t.Errorf("another organization: %v", err)
	}
	if got := lastOf(t, c, orgs[0]); got.State != api.AllocationVerifying {
		t.Errorf("it is %s", got.State)
	}
	held.Store(false)
	if err := <-late; err != nil || m.leads(orgs[0]) != "192.0.2.1" {
		t.Errorf("%v, leads to %q", err, m.leads(orgs[0]))
	}
}

// TestAReleaseDoesNotWaitForNames: a server that is down keeps nobody from stopping, and the loop removes what
// was left.
func TestAReleaseDoesNotWaitForNames(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, _ := named(t)
	org := c.Organizations(1)[0]
	a := mustStart(t, c, org)
	m.becomes(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "no", http.StatusServiceUnavailable)
		return true
	})
	if _, err := c.Admin.Release(c.Context(), a.AllocationID, 0); err != nil {
		t.Errorf("the release: %v", err)
	}
	if m.leads(org) == "" {
		t.Error("the record is gone: this test proves nothing")
	}
	m.becomes(nil)
	coordtest.Eventually(t, "the loop removes the orphan", func() bool { return m.leads(org) == "" })
}

// TestCrashInTheStepDNS: a coordinator that ends before, within or after the write comes back, and the
// allocation comes to one end: active with its name.
func TestCrashInTheStepDNS(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, _ := named(t)
	for what, at := range map[string]func(r *http.Request, patched bool) bool{
		"before the write": func(r *http.Request, _ bool) bool { return r.Method == http.MethodPatch },
		"after the write":  func(r *http.Request, patched bool) bool { return patched && r.Method == http.MethodGet },
	} {
		org := c.Organizations(1)[0]
		reached := make(chan struct{})
		var hit, patched atomic.Bool
		m.becomes(func(_ http.ResponseWriter, r *http.Request) bool {
			if !at(r, patched.Load()) {
				patched.Store(patched.Load() || r.Method == http.MethodPatch)
				return false
			}
			if hit.CompareAndSwap(false, true) {
				close(reached)
			}
			_, _ = io.Copy(io.Discard, r.Body) // only then the server sees that the caller goes away
			<-r.Context().Done()
			return true
		})
		answered := make(chan error, 1)
		caller, hangUp := context.WithCancel(c.Context())
		defer hangUp()
		go func() {
			_, _, err := c.Admin.Start(caller, api.StartAllocation{OrganizationID: org})
			answered <- err
		}()
		select {
		case <-reached:
		case err := <-answered:
			t.Fatalf("%s: answered before: %v", what, err)
		}
		hangUp() // a coordinator that is asked to stop answers its callers first
		<-answered
		c.Stop()
		m.becomes(nil)
		c.Restart()
		a, err := start(c, org)
		if err != nil || m.leads(org) != "192.0.2.1" {
			t.Errorf("%s: %v, leads to %q", what, err, m.leads(org))
			continue
		}
		if steps := stepsOf(t, c, a.AllocationID); steps[api.StepDNS] != api.StepDone {
			t.Errorf("%s: steps %v", what, steps)
		}
	}
}

// TestANameFollowsAMove: after the loss of a host the name leads to the new host.
func TestANameFollowsAMove(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, agent := named(t)
	org := c.Organizations(1)[0]
	mustStart(t, c, org)
	if got := m.leads(org); got != "192.0.2.1" {
		t.Fatalf("it leads to %q", got)
	}
	other := c.Agent("h2", 10, coordtest.Script{Address: "192.0.2.2"})
	agent.Stop()
	c.Restart(soonLost)
	coordtest.Eventually(t, "the organization is served elsewhere, and its name leads there", func() bool {
		return other.Serving()[org] != "" && m.leads(org) == "192.0.2.2"
	})
}
