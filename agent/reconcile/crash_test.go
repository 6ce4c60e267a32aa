package reconcile_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/reconcile"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// act is a change of the assignment that is crashed at every step, and what must hold in the end.
type act struct {
	name   string
	before func(h *agenttest.Host, g id.Gateway, org id.Organization)
	change func(h *agenttest.Host, g id.Gateway, org id.Organization)
	// done must become true in the run that makes the change, and in the run after a crash of it.
	done func(h *agenttest.Host, g id.Gateway, org id.Organization) bool
}

func serving(h *agenttest.Host, g id.Gateway, org id.Organization) bool {
	w := h.Wanted(g)
	r := h.Report(g)
	if r.Phase != api.PhaseServing || r.Epoch != w.Grant.Epoch || r.Incarnation != w.Incarnation {
		return false
	}
	held, epoch, _ := h.Held(r.PID)
	route, routed := h.Route(org)
	return held == string(org) && epoch == r.Epoch && routed && route == reconcile.Route{Gateway: g, Epoch: id.Epoch(epoch)}
}

// fresh is a gateway of the wanted incarnation that is ready and has nothing of an organization.
func fresh(h *agenttest.Host, g id.Gateway, org id.Organization) bool {
	r := h.Report(g)
	if r.Phase != api.PhaseReady || r.Incarnation != h.Wanted(g).Incarnation || r.Epoch != 0 {
		return false
	}
	held, _, _ := h.Held(r.PID)
	_, routed := h.Route(org)
	_, err := os.Stat(filepath.Join(h.Dir(), string(g), reconcile.StateDir, string(org)))
	return held == "" && !routed && os.IsNotExist(err) && len(h.Running(g)) == 1
}

func gone(h *agenttest.Host, g id.Gateway, org id.Organization) bool {
	_, routed := h.Route(org)
	_, err := os.Stat(filepath.Join(h.Dir(), string(g)))
	return h.Report(g).Phase == api.PhaseGone && len(h.Running(g)) == 0 && !routed && os.IsNotExist(err)
}

func nothing(*agenttest.Host, id.Gateway, id.Organization) {}

func grant(h *agenttest.Host, g id.Gateway, org id.Organization) { h.Grant(g, org) }

func granted(h *agenttest.Host, g id.Gateway, org id.Organization) {
	h.WaitServing(g, h.Grant(g, org))
}

func recycle(h *agenttest.Host, g id.Gateway, _ id.Organization) { h.Recycle(g) }

func dismiss(h *agenttest.Host, g id.Gateway, _ id.Organization) {
	w := h.Wanted(g)
	w.Target, w.Grant = api.TargetGone, nil
	h.Assign(w)
}

var acts = []act{
	{"activation", nothing, grant, serving},
	{"recycling", granted, recycle, fresh},
	{"dismissal", granted, dismiss, gone},
	{"activation that fails, and its recycling", func(h *agenttest.Host, _ id.Gateway, _ id.Organization) {
		h.Do(func(w *agenttest.World) { w.Fail["get"] = always(errBroken) })
	}, func(h *agenttest.Host, g id.Gateway, org id.Organization) {
		h.Grant(g, org)
		h.Until("the failure", func() bool { return h.Report(g).Code != "" || h.Over() })
		h.Recycle(g)
	}, fresh},
}

// TestCrashAtEveryStep walks every labelled effect of every act: the agent dies there, a new one starts on
// what is left, and in the end all of it has happened; or, when the coordinator gave up meanwhile, none.
func TestCrashAtEveryStep(t *testing.T) {
	var met []string
	for _, a := range acts {
		t.Run(a.name, func(t *testing.T) {
			points := record(t, a)
			if len(points) < 5 {
				t.Fatalf("only %d steps: %v", len(points), points)
			}
			for _, p := range points {
				met = append(met, p.Label)
				t.Run(fmt.Sprintf("%s %d torn %v", p.Label, p.N, p.Torn), func(t *testing.T) {
					crash(t, a, p, false)
					crash(t, a, p, true)
				})
			}
		})
	}
	if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // only some of the acts were asked for
	}
	all, err := fsxtest.Labels(".", "reconcile.")
	if err != nil || len(all) < 8 {
		t.Fatalf("the labels of the sources are %v, %v", all, err)
	}
	met = append(met, "reconcile.leftover") // TestCrashWhileLeftoversAreRemoved
	for _, label := range fsxtest.Unwalked(all, met) {
		t.Errorf("nothing crashes at %s: add an act that reaches it", label)
	}
}

// What nobody knows is removed when a coordinator has said what it wants; an agent that dies there leaves it to the next.
func TestCrashWhileLeftoversAreRemoved(t *testing.T) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g := ready(h)
		pid := h.Report(g).PID
		h.Kill()
		stray := filepath.Join(h.Dir(), string(id.NewGateway()))
		if err := os.MkdirAll(filepath.Join(stray, reconcile.StateDir), 0o700); err != nil {
			t.Fatal(err)
		}
		h.Start()
		h.FS.CrashAt(fsxtest.Point{Label: "reconcile.leftover", N: 1})
		h.Connect()
		h.Until("the crash", h.Over)
		synctest.Wait()
		h.Kill()
		h.Start()
		h.Connect()
		h.Until("the stray directory is gone", func() bool { _, err := os.Stat(stray); return os.IsNotExist(err) })
		if r := h.WaitPhase(g, api.PhaseReady, 1); r.PID != pid {
			t.Fatalf("the gateway was touched: %+v", r)
		}
	})
}

// record runs an act without a crash and returns its effects.
func record(t *testing.T, a act) (points []fsxtest.Point) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g, org := ready(h), id.NewOrganization()
		a.before(h, g, org)
		synctest.Wait()
		h.FS.Record()
		a.change(h, g, org)
		h.Until(a.name, func() bool { return a.done(h, g, org) })
		synctest.Wait()
		points = h.FS.Points()
	})
	return points
}

// crash runs an act up to a point where the agent dies, and a new agent after it. When the coordinator has
// given up meanwhile it wants the next incarnation without an organization.
func crash(t *testing.T, a act, p fsxtest.Point, givenUp bool) {
	story(t, func(t *testing.T, h *agenttest.Host) {
		g, org := ready(h), id.NewOrganization()
		a.before(h, g, org)
		synctest.Wait()
		h.FS.CrashAt(p)
		a.change(h, g, org)
		h.Until("the crash", func() bool { return h.Over() || a.done(h, g, org) })
		synctest.Wait()
		if !h.Over() {
			t.Fatal("the step was not reached")
		}
		h.Kill()
		done := a.done
		if givenUp && h.Wanted(g).Target == api.TargetRun {
			h.Recycle(g)
			done = fresh
		}
		h.Start()
		h.Connect()
		h.Until("the end after the crash", func() bool { return done(h, g, org) })
	})
}
