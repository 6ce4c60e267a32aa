package coordinator_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// moving is a coordinator with names, an organization that is served by h1, and an h2 that it can move to.
func moving(t *testing.T) (c *coordtest.Cluster, m *moody, a api.Allocation, h1, h2 *coordtest.Agent) {
	t.Helper()
	c, m, h1 = named(t)
	a = mustStart(t, c, c.Organizations(1)[0])
	h2 = c.Agent("h2", 10, coordtest.Script{Address: "192.0.2.2"})
	most := 6
	if _, err := c.Admin.PutPool(c.Context(), "default", api.PutPool{MinReady: &most, Max: &most}); err != nil {
		t.Fatal(err)
	}
	coordtest.Eventually(t, "a gateway on h2", func() bool { return readyOn(c, "h2") })
	return c, m, a, h1, h2
}

// readyOn reports whether a host has a ready gateway.
func readyOn(c *coordtest.Cluster, host string) bool {
	gateways, err := c.Admin.ListGateways(c.Context(), client.GatewayFilter{State: api.GatewayReady, HostID: host})
	return err == nil && len(gateways) > 0
}

// refusing is a server that does not do what it is asked.
func refusing(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodPatch {
		http.Error(w, `{"error": "no"}`, http.StatusUnprocessableEntity)
	}
	return r.Method == http.MethodPatch
}

// TestTheStepDNSOfAMove: the name is in the move's journal, and leads to the new host when the move is answered.
func TestTheStepDNSOfAMove(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, a, _, _ := moving(t)
	moved, err := c.Admin.Migrate(c.Context(), a.AllocationID, api.MigrateAllocation{}, 0)
	if err != nil || moved.HostID != "h2" || m.leads(a.OrganizationID) != "192.0.2.2" {
		t.Fatalf("%v, on %s, and its name leads to %q", err, moved.HostID, m.leads(a.OrganizationID))
	}
	if steps := stepsOf(t, c, a.AllocationID); steps[api.StepRelocate] != api.StepDone || steps[api.StepDNS] != api.StepDone {
		t.Errorf("steps %v", steps)
	}
}

// TestAMoveWithoutItsNameStays: what cannot be found in the new place is not brought there, and goes on where it was.
func TestAMoveWithoutItsNameStays(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, a, h1, _ := moving(t)
	for what, mood := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"refused": refusing,
		"written, and not to be seen": func() func(w http.ResponseWriter, r *http.Request) bool {
			var patched atomic.Bool
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPatch {
					return patched.Swap(true) // the second is the undo
				}
				if patched.Load() {
					http.Error(w, `{"error": "no"}`, http.StatusUnprocessableEntity)
				}
				return patched.Load()
			}
		}(),
	} {
		coordtest.Eventually(t, what+": there is a gateway to move to", func() bool { return readyOn(c, "h2") })
		m.becomes(mood)
		_, err := c.Admin.Migrate(c.Context(), a.AllocationID, api.MigrateAllocation{HostID: "h2"}, 0)
		m.becomes(nil)
		if !fault.Is(err, fault.DNSFailed) {
			t.Errorf("%s: %v", what, err)
		}
		now, err := c.Admin.Allocation(c.Context(), a.AllocationID)
		if err != nil || now.State != api.AllocationActive || now.HostID != "h1" || now.Epoch != a.Epoch || h1.Serving()[a.OrganizationID] != a.GatewayID {
			t.Errorf("%s: %v, %+v", what, err, now)
		}
		coordtest.Eventually(t, what+": its name leads to where it is", func() bool { return m.leads(a.OrganizationID) == "192.0.2.1" })
	}
	coordtest.Eventually(t, "both undos are told, one of which failed at first", func() bool {
		told := map[string]int{}
		events, err := c.Admin.ListEvents(c.Context(), client.EventQuery{Topics: []string{"allocation"}})
		for _, e := range events {
			if e.AllocationID == a.AllocationID && e.Reason != "" {
				told[e.Type+" "+e.Code]++
			}
		}
		return err == nil && told["allocation.relocation_failed dns_failed"] == 2 && told["allocation.undo_dns "]+told["allocation.undo_dns dns_failed"] == 2
	})
	coordtest.Eventually(t, "there is a gateway to move to", func() bool { return readyOn(c, "h2") })
	if moved, err := c.Admin.Migrate(c.Context(), a.AllocationID, api.MigrateAllocation{HostID: "h2"}, 0); err != nil || m.leads(a.OrganizationID) != "192.0.2.2" {
		t.Errorf("afterwards: %v, %+v", err, moved)
	}
}

// TestALostHostsOrganizationDoesNotWaitForItsName: where nothing else serves it, it is active all the same, the journal
// says what is missing, and the name follows.
func TestALostHostsOrganizationDoesNotWaitForItsName(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, a, h1, h2 := moving(t)
	m.becomes(refusing)
	h1.Stop()
	c.Restart(soonLost)
	coordtest.Eventually(t, "it is active elsewhere", func() bool {
		now, err := c.Admin.Allocation(c.Context(), a.AllocationID)
		return err == nil && now.State == api.AllocationActive && now.HostID == "h2" && h2.Serving()[a.OrganizationID] != ""
	})
	if steps := stepsOf(t, c, a.AllocationID); steps[api.StepDNS] != api.StepFailed || steps[api.StepConfirm] != api.StepDone {
		t.Errorf("steps %v", steps)
	}
	m.becomes(nil)
	coordtest.Eventually(t, "its name follows", func() bool { return m.leads(a.OrganizationID) == "192.0.2.2" })
}

// TestCrashInTheStepDNSOfAMove: a coordinator that ends before, within or after the write, or before it is taken back,
// comes back, and the organization is on one host with its name.
func TestCrashInTheStepDNSOfAMove(t *testing.T) {
	t.Parallel() // they wait for servers most of the time
	c, m, a, _, _ := moving(t)
	for what, at := range map[string]func(patched int, r *http.Request) (crash, refuse bool){
		"before the write": func(_ int, r *http.Request) (bool, bool) { return r.Method == http.MethodPatch, false },
		"after the write": func(patched int, r *http.Request) (bool, bool) {
			return patched > 0 && r.Method == http.MethodGet, false
		},
		"before it is taken back": func(patched int, r *http.Request) (bool, bool) {
			return patched > 1, patched == 1 && r.Method == http.MethodGet
		},
	} {
		before, err := c.Admin.Allocation(c.Context(), a.AllocationID)
		if err != nil {
			t.Fatal(err)
		}
		reached := make(chan struct{})
		var hit atomic.Bool
		var patched atomic.Int32
		m.becomes(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.RawQuery, a.OrganizationID) && r.Method == http.MethodGet {
				return false // of the loop
			}
			if r.Method == http.MethodPatch {
				defer patched.Add(1)
			}
			crash, refuse := at(int(patched.Load()), r)
			if !crash && !refuse {
				return false
			}
			if !crash {
				patched.Add(1)
				http.Error(w, `{"error": "no"}`, http.StatusUnprocessableEntity)
				return true
			}
			if hit.CompareAndSwap(false, true) {
				close(reached)
			}
			_, _ = io.Copy(io.Discard, r.Body) // only then the server sees that the caller goes away
			<-r.Context().Done()
			return true
		})
		caller, hangUp := context.WithCancel(c.Context())
		answered := make(chan error, 1)
		go func() {
			_, err := c.Admin.Migrate(caller, a.AllocationID, api.MigrateAllocation{}, 0)
			answered <- err
		}()
		select {
		case <-reached:
		case <-time.After(coordtest.Patience):
			t.Fatalf("%s: it does not come so far", what)
		}
		hangUp() // a coordinator that is asked to stop answers its callers first
		<-answered
		c.Stop()
		m.becomes(nil)
		c.Restart()
		address := map[string]string{"h1": "192.0.2.1", "h2": "192.0.2.2"}
		coordtest.Eventually(t, what+": it is on one host with its name", func() bool {
			now, err := c.Admin.Allocation(c.Context(), a.AllocationID)
			return err == nil && now.State == api.AllocationActive && m.leads(a.OrganizationID) == address[now.HostID]
		})
		now, err := c.Admin.Allocation(c.Context(), a.AllocationID)
		if err != nil {
			t.Fatal(err)
		}
		if stays := what == "before it is taken back"; stays != (now.Epoch == before.Epoch) {
			t.Errorf("%s: it was %+v and is %+v", what, before, now)
		}
		if steps := stepsOf(t, c, a.AllocationID); steps[api.StepDNS] != api.StepDone {
			t.Errorf("%s: steps %v", what, steps)
		}
		coordtest.Eventually(t, what+": there is a gateway to move to", func() bool {
			return readyOn(c, "h1") && readyOn(c, "h2")
		})
	}
}
