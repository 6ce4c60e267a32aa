package reconcile_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func TestAGrantOfThePastIsRefused(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		epoch := h.Grant(g, id.NewOrganization())
		h.WaitServing(g, epoch)
		h.Recycle(g)
		h.WaitPhase(g, api.PhaseReady, 2)
		w := h.Wanted(g)
		w.Grant = &api.Grant{OrganizationID: string(id.NewOrganization()), AllocationID: string(id.NewAllocation()), Epoch: epoch - 1, Version: 1}
		before := len(h.Steps(g))
		h.Assign(w)
		h.Until("the refusal", func() bool { return len(h.Steps(g)) > before })
		time.Sleep(time.Minute)
		steps := h.Steps(g)[before:]
		if len(steps) != 1 || steps[0].Step.State != api.StepFailed || steps[0].Step.Code != "stale_epoch" || steps[0].AllocationID != w.Grant.AllocationID {
			t.Fatalf("steps: %+v", steps)
		}
		if r := h.Report(g); r.Phase != api.PhaseReady || h.Routes() != 0 {
			t.Fatalf("report: %+v", r)
		}
		next := h.Grant(g, id.NewOrganization())
		h.WaitServing(g, next)
	})
}

func TestMembersReachTheServingGateway(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		org := id.NewOrganization()
		epoch := h.Grant(g, org)
		pid := h.WaitServing(g, epoch).PID
		w := h.Wanted(g)
		grown := *w.Grant
		grown.Members = append(grown.Members, api.Member{UserID: "bob", Role: "member"})
		grown.Version++
		w.Grant = &grown
		h.Do(func(w *agenttest.World) { w.Fail["activate"] = always(errBroken) })
		h.Assign(w)
		time.Sleep(time.Second)
		if r := h.Report(g); r.Phase != api.PhaseServing {
			t.Fatalf("an update that fails is no reason to end serving: %+v", r)
		}
		h.Do(func(w *agenttest.World) { delete(w.Fail, "activate") })
		h.Until("the new member", func() bool { _, _, n := h.Held(pid); return n == 2 })
		h.End(pid, driver.Exit{Code: 1, Known: true})
		h.Kill()
		h.Start() // and no coordinator
		r := h.WaitServing(g, epoch)
		if _, _, n := h.Held(r.PID); n != 2 {
			t.Fatalf("after a restart without a coordinator the gateway has %d members", n)
		}
	})
}

func TestNginxIsToldOfEveryGatewayAndItsLimit(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g, other := ready(h), h.NewGateway()
		h.WaitPhase(other, api.PhaseReady, 1)
		w := h.Wanted(g)
		w.Limits.BodyBytes = 7 << 20
		h.Assign(w)
		h.Until("the new limit", func() bool { s, _ := h.Slot(g); return s.MaxBody == 7<<20 })
		w = h.Wanted(other)
		w.Target = api.TargetGone
		h.Assign(w)
		h.Until("one slot fewer", func() bool { _, ok := h.Slot(other); return !ok })
		if s, ok := h.Slot(g); !ok || s.MaxBody != 7<<20 {
			t.Fatalf("slot %+v %v", s, ok)
		}
	})
}

func TestWhatIsNotAssignedAnyMoreEnds(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g, kept := ready(h), h.NewGateway()
		h.WaitPhase(kept, api.PhaseReady, 1)
		org := id.NewOrganization()
		h.WaitServing(g, h.Grant(g, org))
		h.Drop(g)
		h.Connect()
		h.WaitPhase(g, api.PhaseGone, 1)
		if !gone(h, g, org) || len(h.Running(kept)) != 1 {
			t.Fatal("something is left, or too much ended")
		}
		for _, r := range h.Engine.Reports() {
			if r.GatewayID == string(g) {
				t.Fatal("a gateway that is gone is named as existing")
			}
		}
		// The report of the end may have been lost: asked again, it is said again.
		w := api.GatewayAssignment{GatewayID: string(g), Target: api.TargetGone, Incarnation: 4}
		h.Assign(w)
		h.WaitPhase(g, api.PhaseGone, 4)
	})
}

func TestAFrameOfACoordinatorThatLagsIsNotFollowed(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		empty := api.AssignmentFrame{Index: 1, Full: true, Domain: agenttest.Domain}
		if err := h.Engine.Apply(empty); err == nil || !strings.Contains(err.Error(), "lags behind") {
			t.Fatalf("an old frame was followed: %v", err)
		}
		time.Sleep(10 * time.Second)
		if r := h.Report(g); r.Phase != api.PhaseReady {
			t.Fatalf("report: %+v", r)
		}
		time.Sleep(2 * time.Minute) // nobody with a newer state is left: it was restored from a backup
		if err := h.Engine.Apply(empty); err != nil {
			t.Fatal(err)
		}
		h.WaitPhase(g, api.PhaseGone, 1)
	})
}

func TestAnotherDomainIsNotServed(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		wrong := api.AssignmentFrame{Index: 500, Full: true, Domain: "other.test"}
		for range 3 {
			if err := h.Engine.Apply(wrong); err == nil || !strings.Contains(err.Error(), `"other.test"`) {
				t.Fatalf("followed: %v", err)
			}
		}
		if h.Engine.Problem() == "" || len(h.Events(reconcile.EventDomain)) != 1 {
			t.Fatalf("problem %q, events %v", h.Engine.Problem(), h.Events(reconcile.EventDomain))
		}
		time.Sleep(time.Minute)
		if len(h.Running(g)) != 1 {
			t.Fatal("the gateway was ended")
		}
		wrong.Domain, wrong.Gateways = agenttest.Domain, []api.GatewayAssignment{h.Wanted(g)}
		if err := h.Engine.Apply(wrong); err != nil || h.Engine.Problem() != "" {
			t.Fatalf("%v, problem %q", err, h.Engine.Problem())
		}
	})
}

func TestAPartThatIsNotUnderstoodIsNoReasonToEndAGateway(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		bad := h.Wanted(g)
		for _, change := range []func(a *api.GatewayAssignment){
			func(a *api.GatewayAssignment) { a.Target = "dance" },
			func(a *api.GatewayAssignment) { a.Incarnation = 0 },
			func(a *api.GatewayAssignment) { a.Grant = &api.Grant{OrganizationID: "../../etc", Epoch: 5} },
			func(a *api.GatewayAssignment) {
				a.Grant = &api.Grant{OrganizationID: string(id.NewOrganization()), AllocationID: "al-1", Epoch: 5}
			},
			func(a *api.GatewayAssignment) {
				a.Grant = &api.Grant{OrganizationID: string(id.NewOrganization()), AllocationID: string(id.NewAllocation())}
			},
		} {
			a := bad
			change(&a)
			f := api.AssignmentFrame{Index: 1000, Full: true, Domain: agenttest.Domain, Gateways: []api.GatewayAssignment{a, {GatewayID: "../x", Target: api.TargetRun}}}
			if err := h.Engine.Apply(f); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if r := h.Report(g); r.Phase != api.PhaseReady || len(h.Running(g)) != 1 {
				t.Fatalf("report: %+v", r)
			}
		}
	})
}

func TestVerifyAgain(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		org := id.NewOrganization()
		epoch := h.Grant(g, org)
		h.WaitServing(g, epoch)
		ask := func(r api.VerifyRequest) api.StepReport {
			t.Helper()
			if err := h.Engine.Apply(api.AssignmentFrame{Index: 5000, Verify: []api.VerifyRequest{r}}); err != nil {
				t.Fatal(err)
			}
			var answer api.StepReport
			h.Until("the answer to "+r.Nonce, func() bool {
				for _, s := range h.Steps(id.Gateway(r.GatewayID)) {
					if s.Nonce == r.Nonce {
						answer = s
					}
				}
				return answer.Nonce != ""
			})
			return answer
		}
		right := api.VerifyRequest{Nonce: "1", GatewayID: string(g), OrganizationID: string(org), Epoch: epoch}
		if s := ask(right); s.Step.State != api.StepDone || s.Epoch != epoch {
			t.Fatalf("answer: %+v", s)
		}
		for nonce, change := range map[string]func(r *api.VerifyRequest){
			"2": func(r *api.VerifyRequest) { r.OrganizationID = string(id.NewOrganization()) },
			"3": func(r *api.VerifyRequest) { r.Epoch++ },
			"4": func(r *api.VerifyRequest) { r.GatewayID = string(id.NewGateway()) },
		} {
			r := right
			r.Nonce = nonce
			change(&r)
			if s := ask(r); s.Step.State != api.StepFailed || s.Step.Code != "verify_failed" || s.Step.Error == "" {
				t.Fatalf("answer: %+v", s)
			}
		}
		// Somebody took the route away: the answer is no, and the agent brings it back by itself.
		h.Do(func(w *agenttest.World) { w.Fail["get"] = always(errBroken) })
		r := right
		r.Nonce = "5"
		if s := ask(r); s.Step.State != api.StepFailed {
			t.Fatalf("answer: %+v", s)
		}
		h.WaitPhase(g, api.PhaseUnhealthy, 1)
		h.Do(func(w *agenttest.World) { delete(w.Fail, "get") })
		h.WaitServing(g, epoch)
	})
}

func TestAFullDiskRefusesTheGrantAndUndoes(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		h.FS.Fail("journal.append", syscall.ENOSPC)
		h.FS.Fail("", syscall.ENOSPC)
		h.Grant(g, id.NewOrganization())
		h.Until("the failure", func() bool { return len(h.Steps(g)) > 0 })
		s := h.Steps(g)[0].Step
		if s.State != api.StepFailed || s.Code != "internal" || !strings.Contains(s.Error, "no space left") || !strings.Contains(s.Error, "free space") {
			t.Fatalf("step: %+v", s)
		}
		if h.Routes() != 0 || len(h.Log("activate")) != 0 {
			t.Fatal("something was done that could not be recorded")
		}
		h.FS.Fail("journal.append", nil)
		h.FS.Fail("", nil)
		h.Recycle(g)
		h.WaitPhase(g, api.PhaseReady, 2)
		h.WaitServing(g, h.Grant(g, id.NewOrganization()))
	})
}

func TestNothingIsStartedBeforeItIsOnRecord(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		full := func(err error) {
			h.FS.Fail("journal.append", err)
			h.FS.Fail("journal.rewrite.write", err)
		}
		h.Start()
		h.Connect()
		full(syscall.ENOSPC)
		g := h.NewGateway()
		time.Sleep(time.Minute) // of the bubble: it is tried again and again
		if r := h.Report(g); r.Phase == api.PhaseReady || len(h.Log("start")) != 0 {
			t.Fatalf("started without a record: %+v", r)
		}
		full(nil)
		if r := h.WaitPhase(g, api.PhaseReady, 1); r.Message != "" {
			t.Fatalf("report: %+v", r)
		}
		full(syscall.ENOSPC)
		h.Recycle(g)
		h.Until("the reason is told", func() bool { return strings.Contains(h.Report(g).Message, "free space") })
		if len(h.Log("start")) != 1 {
			t.Fatalf("the next incarnation was started without a record: %v", h.Log("start"))
		}
		full(nil)
		h.WaitPhase(g, api.PhaseReady, 2)
	})
}

func TestANewIncarnationEndsAStepThatHangs(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		entered := make(chan struct{})
		h.Do(func(w *agenttest.World) {
			w.Fail["route"] = func(ctx context.Context) error {
				close(entered)
				<-ctx.Done()
				return ctx.Err()
			}
		})
		begun := time.Now()
		h.Grant(g, id.NewOrganization())
		<-entered
		h.Do(func(w *agenttest.World) { delete(w.Fail, "route") })
		h.Recycle(g)
		h.WaitPhase(g, api.PhaseReady, 2)
		if took := time.Since(begun); took > 2*time.Second { // of virtual time: the step's own limit is 10 s
			t.Fatalf("it took %s", took)
		}
	})
}

func TestALongChainIsReportedStepByStep(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		h.Do(func(w *agenttest.World) {
			w.Fail["activate"] = func(context.Context) error { time.Sleep(time.Second); return nil }
			w.Fail["route"] = func(context.Context) error { time.Sleep(3 * time.Second); return nil }
		})
		epoch := h.Grant(g, id.NewOrganization())
		h.Until("the first step", func() bool { return len(h.Steps(g)) > 0 })
		if got := agenttest.Names(h.Steps(g)); got != "activate done" {
			t.Fatalf("steps: %s", got)
		}
		h.WaitServing(g, epoch)
	})
}

func TestLeftovers(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		known := h.Running(g)[0]
		h.Kill()
		second := h.Stray(g)                // another process of a gateway that is known
		unknown := h.Stray(id.NewGateway()) // and one of a gateway that nobody knows
		dir := filepath.Join(h.Dir(), string(id.NewGateway()), "state")
		other := filepath.Join(h.Dir(), "lost+found")
		for _, d := range []string{dir, other} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		h.Start()
		h.Until("the second process is ended", func() bool { return len(h.Running(g)) == 1 })
		if left := h.Running(g); len(left) != 1 || left[0] != known {
			t.Fatalf("running: %v, known %v, second %v", left, known, second)
		}
		h.Connect()
		h.Until("the leftovers are gone", func() bool {
			_, err := os.Stat(filepath.Dir(dir))
			return os.IsNotExist(err) && len(h.Running(unknown.Gateway)) == 0
		})
		if _, err := os.Stat(other); err != nil {
			t.Fatal("a directory that is no gateway's was removed")
		}
	})
}

func TestADeadGatewayIsFoundDeadAndStarted(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		epoch := h.Grant(g, id.NewOrganization())
		pid := h.WaitServing(g, epoch).PID
		h.Kill()
		h.End(pid, driver.Exit{})
		h.Start()
		h.Connect()
		h.Until("served again", func() bool {
			r := h.Report(g)
			return r.Phase == api.PhaseServing && r.PID != pid && r.Restarts == 1
		})
		if len(h.Events(reconcile.EventExited)) != 1 {
			t.Fatalf("events: %v", h.Events(reconcile.EventExited))
		}
	})
}

func TestAdoptionChangesNothing(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		epoch := h.Grant(g, id.NewOrganization())
		before := h.WaitServing(g, epoch)
		phases := len(h.Phases(g))
		h.Kill()
		h.Start()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		h.Engine.Settle(ctx)
		if ctx.Err() != nil {
			t.Fatal("it does not come to rest")
		}
		h.Until("its health is known again", func() bool { return h.Report(g).Phase == api.PhaseServing })
		after := h.Engine.Reports()
		if len(after) != 1 || after[0].Epoch != epoch || after[0].PID != before.PID || after[0].BootID != before.BootID {
			t.Fatalf("reports: %+v", after)
		}
		h.Connect()
		time.Sleep(time.Minute)
		if got := h.Log("stop", "unroute", "deactivate"); len(got) != 0 {
			t.Fatalf("log: %q, phases %q", got, h.Phases(g)[phases:])
		}
	})
}

func TestSlowNginxKeepsAGatewayFromBeingReady(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		h.Do(func(w *agenttest.World) { w.Fail["slot"] = always(errBroken) })
		h.Start()
		h.Connect()
		g := h.NewGateway()
		time.Sleep(time.Minute)
		if r := h.Report(g); r.Phase != api.PhaseStarting || len(h.Running(g)) != 1 {
			t.Fatalf("report: %+v", r)
		}
		h.Do(func(w *agenttest.World) { delete(w.Fail, "slot") })
		h.WaitPhase(g, api.PhaseReady, 1)
	})
}
