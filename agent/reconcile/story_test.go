package reconcile_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// story runs a test on a scripted host in virtual time.
func story(t *testing.T, f func(t *testing.T, h *agenttest.Host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := agenttest.NewHost(t)
		defer h.Kill()
		f(t, h)
		h.Check()
	})
}

// ready starts a host with one gateway that is ready.
func ready(h *agenttest.Host) id.Gateway {
	h.Start()
	h.Connect()
	g := h.NewGateway()
	h.WaitPhase(g, api.PhaseReady, 1)
	return g
}

// always is a script that fails every time.
func always(err error) agenttest.Script {
	return func(context.Context) error { return err }
}

var errBroken = errors.New("broken by the test")

func TestServeAndRecycle(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		org := id.NewOrganization()
		epoch := h.Grant(g, org)
		r := h.WaitServing(g, epoch)
		if r.OrganizationID != string(org) || r.BootID == "" || r.PID == 0 {
			t.Fatalf("report: %+v", r)
		}
		steps := h.Steps(g)
		if got := agenttest.Names(steps); got != "activate done, route done, verify done" {
			t.Fatalf("steps: %s", got)
		}
		for _, s := range steps {
			if s.Epoch != epoch || s.AllocationID == "" || s.Step.EndedAt == nil || s.Step.EndedAt.Before(s.Step.StartedAt) {
				t.Errorf("step: %+v", s)
			}
		}
		w := h.Wanted(g)
		w.Drain = api.Duration(3 * time.Second)
		h.Assign(w)
		h.Recycle(g)
		again := h.WaitPhase(g, api.PhaseReady, 2)
		if again.PID == r.PID || again.OrganizationID != "" || again.Epoch != 0 {
			t.Fatalf("report: %+v", again)
		}
		var undone []string
		for _, s := range again.Undo {
			undone = append(undone, s.Step+" "+s.State)
		}
		if got := strings.Join(undone, ", "); got != "unroute done, deactivate done, recycle done" {
			t.Fatalf("undo: %s", got)
		}
		if _, routed := h.Route(org); routed {
			t.Fatal("the route is still there")
		}
	})
}

// TestA9_RouteGoesFirst: when an organization is taken away, nothing else happens before its route is gone
// for sure, however long that takes.
func TestA9_RouteGoesFirst(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		epoch := h.Grant(g, id.NewOrganization())
		pid := h.WaitServing(g, epoch).PID
		h.Do(func(w *agenttest.World) { w.Fail["unroute"] = always(errBroken) })
		h.Recycle(g)
		h.Until("the failure is visible", func() bool { return strings.Contains(h.Report(g).Message, "unroute") })
		time.Sleep(time.Minute)
		if _, e, _ := h.Held(pid); e != epoch {
			t.Fatal("the organization was taken from the gateway while it was routed there")
		}
		if got := h.Log("deactivate", "stop"); len(got) > 0 {
			t.Fatalf("before the route was gone: %q", got)
		}
		if r := h.Report(g); r.Incarnation != 1 || r.Phase != api.PhaseUnhealthy || r.Epoch != 0 {
			t.Fatalf("report: %+v", r)
		}
		h.Do(func(w *agenttest.World) { delete(w.Fail, "unroute") })
		h.WaitPhase(g, api.PhaseReady, 2)
		log := h.Log("unroute", "deactivate", "stop", "start")
		want := []string{"start", "unroute", "deactivate", "stop", "start"}
		if len(log) != len(want) {
			t.Fatalf("log: %q", log)
		}
		for i, l := range log {
			if !strings.HasPrefix(l, want[i]) {
				t.Fatalf("log: %q", log)
			}
		}
	})
}

// TestA8_OnlyTheGatewaysOwnAnswerCounts: every part of an answer that is another's fails the step, and
// what was done is undone.
func TestA8_OnlyTheGatewaysOwnAnswerCounts(t *testing.T) {
	other := string(id.NewGateway())
	answers := map[string]func(h http.Header, b *api.GatewayHealth){
		"front page of another server": func(h http.Header, b *api.GatewayHealth) {
			h.Del(api.HeaderGateway)
			h.Del(api.HeaderEpoch)
			*b = api.GatewayHealth{}
		},
		"another gateway in the header":    func(h http.Header, _ *api.GatewayHealth) { h.Set(api.HeaderGateway, other) },
		"two gateways in the header":       func(h http.Header, _ *api.GatewayHealth) { h.Add(api.HeaderGateway, other) },
		"another epoch in the header":      func(h http.Header, _ *api.GatewayHealth) { h.Set(api.HeaderEpoch, "7") },
		"no epoch in the header":           func(h http.Header, _ *api.GatewayHealth) { h.Del(api.HeaderEpoch) },
		"another gateway in the body":      func(_ http.Header, b *api.GatewayHealth) { b.GatewayID = other },
		"another epoch in the body":        func(_ http.Header, b *api.GatewayHealth) { b.Epoch = 7 },
		"another organization":             func(_ http.Header, b *api.GatewayHealth) { b.OrganizationID = string(id.NewOrganization()) },
		"another process":                  func(_ http.Header, b *api.GatewayHealth) { b.BootID = "predecessor" },
		"everything right, but status 502": func(h http.Header, _ *api.GatewayHealth) { h.Set("Test-Status", "502") },
	}
	for name, change := range answers {
		t.Run(name, func(t *testing.T) {
			story(t, func(t *testing.T, h *agenttest.Host) {
				g := ready(h)
				h.Do(func(w *agenttest.World) {
					w.Answer = func(_ id.Organization, _ int, h http.Header, b *api.GatewayHealth) { change(h, b) }
				})
				org := id.NewOrganization()
				h.Grant(g, org)
				h.Until("the steps", func() bool { return len(h.Steps(g)) == 3 })
				if got := agenttest.Names(h.Steps(g)); got != "activate done, route done, verify failed" {
					t.Fatalf("steps: %s", got)
				}
				if s := h.Steps(g)[2].Step; s.Code != "verify_failed" || s.Error == "" {
					t.Fatalf("step: %+v", s)
				}
				h.Until("the undo", func() bool { return len(h.Log("unroute", "deactivate")) == 2 })
				if _, routed := h.Route(org); routed {
					t.Fatal("the route is still there")
				}
				if r := h.WaitPhase(g, api.PhaseUnhealthy, 1); r.Code != "verify_failed" {
					t.Fatalf("report: %+v", r)
				}
				h.Do(func(w *agenttest.World) { w.Answer = nil })
				time.Sleep(time.Minute) // it waits for the coordinator's next incarnation
				if got := h.Log("activate", "route"); len(got) != 2 {
					t.Fatalf("tried again without being told: %q", got)
				}
				h.Recycle(g)
				h.WaitPhase(g, api.PhaseReady, 2)
			})
		})
	}
}

// TestA10_APredecessorsAnswerDoesNotCount: a process that says that it is another one, or changes its boot
// id, is not healthy.
func TestA10_APredecessorsAnswerDoesNotCount(t *testing.T) {
	changes := map[string]func(h *api.GatewayHealth){
		"another gateway": func(h *api.GatewayHealth) { h.GatewayID = string(id.NewGateway()) },
		"no boot id":      func(h *api.GatewayHealth) { h.BootID = "" },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			story(t, func(t *testing.T, h *agenttest.Host) {
				h.Do(func(w *agenttest.World) { w.Health = change })
				h.Start()
				h.Connect()
				g := h.NewGateway()
				h.WaitPhase(g, api.PhaseFailed, 1)
				if slices.Contains(h.Phases(g), "1 ready") {
					t.Fatalf("phases: %q", h.Phases(g))
				}
			})
		})
	}
	t.Run("the boot id changes", func(t *testing.T) {
		story(t, func(t *testing.T, h *agenttest.Host) {
			g := ready(h)
			pid := h.Report(g).PID
			h.Do(func(w *agenttest.World) {
				w.Health = func(a *api.GatewayHealth) {
					if a.BootID == h.Report(g).BootID {
						a.BootID = "another"
					}
				}
			})
			h.WaitPhase(g, api.PhaseUnhealthy, 1)
			h.Do(func(w *agenttest.World) { w.Health = nil })
			if r := h.WaitPhase(g, api.PhaseReady, 1); r.PID == pid || r.Restarts != 1 {
				t.Fatalf("report: %+v", r)
			}
		})
	})
}

// TestA11_WithoutCoordinatorTheJournalCounts: a coordinator that is down when the agent starts does not
// mean that nothing is allocated.
func TestA11_WithoutCoordinatorTheJournalCounts(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		org := id.NewOrganization()
		epoch := h.Grant(g, org)
		pid := h.WaitServing(g, epoch).PID
		h.Kill()
		stray := h.Stray(id.NewGateway())
		h.Start() // and no Connect
		h.WaitServing(g, epoch)
		h.End(pid, driver.Exit{Signal: "SIGKILL", Known: true})
		h.Until("brought back without a coordinator", func() bool {
			r := h.Report(g)
			return r.Phase == api.PhaseServing && r.PID != pid && r.Epoch == epoch
		})
		time.Sleep(10 * time.Minute)
		if len(h.Running(stray.Gateway)) != 1 {
			t.Fatal("without a coordinator, what nobody knows was ended")
		}
		if r, routed := h.Route(org); !routed || r.Gateway != g {
			t.Fatal("the route was lost")
		}
		h.Connect()
		h.Until("the stray one is ended", func() bool { return len(h.Running(stray.Gateway)) == 0 })
		if len(h.Events(reconcile.EventLeftover)) != 1 {
			t.Fatal("no event of it")
		}
		h.WaitServing(g, epoch)
	})
}

// TestO1_WhatIsWantedIsStartedAgain: after a clean exit as after a crash.
func TestO1_WhatIsWantedIsStartedAgain(t *testing.T) {
	for name, exit := range map[string]driver.Exit{
		"clean exit": {Known: true}, "exit code": {Code: 3, Known: true}, "signal": {Signal: "SIGSEGV", Known: true}, "unseen": {},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, func(t *testing.T, h *agenttest.Host) {
				g := ready(h)
				epoch := h.Grant(g, id.NewOrganization())
				first := h.WaitServing(g, epoch)
				log := filepath.Join(h.Dir(), string(g), reconcile.LogFile)
				if err := os.WriteFile(log, []byte(strings.Repeat("long ago\n", 200)+"panic: out of luck\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				h.End(first.PID, exit)
				h.WaitPhase(g, api.PhaseUnhealthy, 1)
				r := h.WaitServing(g, epoch)
				if r.Restarts != 1 || r.PID == first.PID || r.BootID == first.BootID || r.Message != "" {
					t.Fatalf("report: %+v", r)
				}
				events := h.Events(reconcile.EventExited)
				if len(events) != 1 || !strings.Contains(events[0].Reason, exit.String()) || !strings.HasSuffix(events[0].Reason, "long ago | long ago | panic: out of luck") {
					t.Fatalf("events: %+v", events)
				}
				if got := agenttest.Names(h.Steps(g)); got != "activate done, route done, verify done" {
					t.Fatalf("a restart reported steps: %s", got)
				}
			})
		})
	}
}

func TestAHungProcessIsEndedAndStartedAgain(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		epoch := h.Grant(g, id.NewOrganization())
		pid := h.WaitServing(g, epoch).PID
		h.Do(func(w *agenttest.World) {
			w.Fail["health"] = func(ctx context.Context) error {
				if h.Report(g).PID != pid {
					return nil
				}
				<-ctx.Done()
				return ctx.Err()
			}
		})
		h.Until("serving by another process", func() bool {
			r := h.Report(g)
			return r.Phase == api.PhaseServing && r.PID != pid && r.Epoch == epoch
		})
		if len(h.Events(reconcile.EventHung)) != 1 || len(h.Running(g)) != 1 {
			t.Fatalf("events %v, running %v", h.Events(reconcile.EventHung), h.Running(g))
		}
	})
}

func TestGivenUpOnlyWithoutOrganization(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		h.Do(func(w *agenttest.World) { w.Fail["start"] = always(errBroken) })
		h.End(h.Report(g).PID, driver.Exit{Known: true})
		r := h.WaitPhase(g, api.PhaseFailed, 1)
		if !strings.Contains(r.Message, errBroken.Error()) || len(h.Events(reconcile.EventGivenUp)) != 1 {
			t.Fatalf("report %+v, events %v", r, h.Events(reconcile.EventGivenUp))
		}
		h.Do(func(w *agenttest.World) { delete(w.Fail, "start") })
		time.Sleep(time.Hour)
		if len(h.Running(g)) != 0 {
			t.Fatal("started although given up")
		}
		h.Recycle(g)
		h.WaitPhase(g, api.PhaseReady, 2)

		epoch := h.Grant(g, id.NewOrganization())
		pid := h.WaitServing(g, epoch).PID
		h.Do(func(w *agenttest.World) { w.Fail["start"] = always(errBroken) })
		h.End(pid, driver.Exit{Known: true})
		time.Sleep(time.Hour)
		h.Do(func(w *agenttest.World) { delete(w.Fail, "start") })
		h.WaitServing(g, epoch)
	})
}
