package nginx

import (
	"fmt"
	"iter"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// walker takes a host through one change again and again, and each time the engine crashes at another
// labelled step of it. nginx and the gateways go on running, as they do when an agent dies.
type walker struct {
	*host
	org   id.Organization
	gw    *gateway
	round int
	epoch id.Epoch
}

func newWalker(t *testing.T, prepare func(*host)) *walker {
	h := newHost(t)
	if prepare != nil {
		prepare(h)
	}
	h.startNginx()
	w := &walker{host: h, org: id.NewOrganization(), gw: h.gateway(nil), epoch: 7}
	w.restart()
	w.apply(w.config())
	w.route(w.org, w.gw, w.epoch)
	w.settled()
	return w
}

// restart builds a new engine on what the last one left.
func (w *walker) restart() {
	w.t.Helper()
	w.withFaults()
	w.startEngine()
}

// config differs from round to round, so that every round needs a generation.
func (w *walker) config() Config {
	return Config{Slots: []Slot{{w.gw.id, int64(1000 + w.round)}}}
}

// done tells whether the live generation is the one of this round and what came before is cleared away.
func (w *walker) done() bool {
	st := w.engine.snapshot()
	if fences, err := filepath.Glob(w.opts.RunDir + "/*.fence"); err != nil || len(fences) > 0 {
		return false
	}
	return st.slots[w.gw.id].MaxBody == int64(1000+w.round) && st.j.Candidate == 0
}

// crashed waits until the engine has crashed at the point or ended its work without reaching it.
func (w *walker) crashed(ended func() bool) bool {
	w.t.Helper()
	reached := false
	eventually(w.t, "the crash or the end", func() bool {
		select {
		case <-w.faulty.Crashed():
			reached = true
		default:
		}
		return reached || ended()
	})
	return reached
}

// stillServed is the promise at every moment: the organization reaches its own gateway at its epoch.
func (w *walker) stillServed(when string) {
	w.t.Helper()
	if err := w.servedBy(w.org, w.gw, w.epoch); err != nil {
		w.t.Errorf("%s: %v", when, err)
	}
}

// unique drops repeated calls of one label beyond the second: a hundred files written are one step.
func unique(points []fsxtest.Point, from string) []fsxtest.Point {
	var out []fsxtest.Point
	begun := from == ""
	for _, p := range points {
		begun = begun || p.Label == from
		if begun && p.N <= 2 && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// walk lets one clean run record its steps, then crashes at each of them.
func (w *walker) walk(points iter.Seq[fsxtest.Point], change func(), ended func() bool, recovered func(when string)) {
	w.t.Helper()
	walked, reached := 0, 0
	for p := range points {
		walked++
		w.round++
		met.add(p.Label)
		when := fmt.Sprintf("crash at %s, call %d, torn %t", p.Label, p.N, p.Torn)
		w.faulty.CrashAt(p)
		change()
		if w.crashed(ended) {
			reached++
		}
		w.stillServed(when)
		w.stopEngine()
		w.restart()
		recovered(when)
		w.stillServed(when + ", recovered")
		w.clean()
		if w.t.Failed() {
			w.t.Fatalf("failed at: %s", when)
		}
	}
	if walked-reached > 1+walked/10 {
		w.t.Errorf("only %d of %d crash points were reached", reached, walked)
	}
	w.t.Logf("%d crash points, %d reached", walked, reached)
}

// record runs the change once without a crash and returns its steps.
func (w *walker) record(change func(), ended func() bool) []fsxtest.Point {
	w.t.Helper()
	w.round++
	w.faulty.Record()
	change()
	eventually(w.t, "the recorded run ends", ended)
	return w.faulty.Points()
}

func labels(points []fsxtest.Point) map[string]bool {
	out := map[string]bool{}
	for _, p := range points {
		out[p.Label] = true
	}
	return out
}

// share hands out the points of a walk that several hosts do side by side: each point to the first that comes to
// it. What they recorded may differ by an effect more here and there, so a host's part is not told by counting.
type share func([]fsxtest.Point) iter.Seq[fsxtest.Point]

func shared() share {
	var taken sync.Map
	return func(points []fsxtest.Point) iter.Seq[fsxtest.Point] {
		return func(yield func(fsxtest.Point) bool) {
			for _, p := range points {
				if _, before := taken.LoadOrStore(p, true); !before && !yield(p) {
					return
				}
			}
		}
	}
}

// alone is for a walk without points to hand out.
func alone(run func(*testing.T)) func(*testing.T, share) {
	return func(t *testing.T, _ share) { run(t) }
}

// TestCrashAtEveryStep walks all changes, each on several hosts side by side: nearly all of the time is
// waiting for nginx, so they are not kept to the number of cores.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	var group sync.WaitGroup
	for _, walk := range []struct {
		name  string
		hosts int
		run   func(*testing.T, share)
	}{
		{"good generation", 3, crashInGoodGeneration},
		{"refused part", 2, crashInRefusedPart},
		{"rejected configuration", 2, crashInRejectedConfiguration},
		{"port taken", 8, crashWhilePortIsTaken},
		{"recovery before the pointer", 1, func(t *testing.T, s share) { crashInRecovery(t, s, "nginx.pointer.rename") }},
		{"recovery before the signal", 2, func(t *testing.T, s share) { crashInRecovery(t, s, "nginx.pointer.sync") }},
		{"recovery after the signal", 2, func(t *testing.T, s share) { crashInRecovery(t, s, "nginx.fence.refuse") }},
		{"route switch", 1, alone(crashInRouteSwitch)},
		{"prepare", 1, alone(crashInPrepare)},
		{"start on leftovers", 1, alone(crashOnLeftovers)},
		{"start after nginx died", 1, alone(crashOnOrphans)},
		{"what is rarely reached", 1, alone(crashWhereRarely)},
		{"last resort", 1, alone(crashInLastResort)},
	} {
		points := shared()
		for i := range walk.hosts {
			group.Go(func() {
				t.Run(fmt.Sprintf("%s, host %d", walk.name, i+1), func(t *testing.T) { walk.run(t, points) })
			})
		}
	}
	group.Wait()
	if !t.Failed() {
		everyLabelIsMet(t)
	}
}

func crashInGoodGeneration(t *testing.T, part share) {
	w := newWalker(t, nil)
	change := func() { w.engine.SetConfig(w.config()) }
	for range kept { // from then on each takes the oldest away
		w.round++
		w.apply(w.config())
		w.settled()
		eventually(t, "the configuration is live", w.done)
	}
	points := unique(w.record(change, w.done), "")
	for _, label := range []string{
		"nginx.generation.write", "nginx.generation.durable", "nginx.generation.rename", "nginx.generation.sync", "nginx.test",
		"nginx.preflight", "nginx.journal.candidate.write", "nginx.journal.candidate.rename", "nginx.fence.link", "nginx.pointer.write",
		"nginx.pointer.rename", "nginx.pointer.sync", "nginx.hup", "nginx.fence.answer", "nginx.fence.refuse", "nginx.canary",
		"nginx.journal.live.rename", "nginx.tidy.socket",
	} {
		if !labels(points)[label] {
			t.Errorf("step %s is not in the clean run", label)
		}
	}
	w.walk(part(points), change, w.done, func(string) {
		// Half of the time the new engine recovers before it is told anything.
		if w.round%2 == 0 {
			eventually(t, "the cut generation is finished or undone", func() bool {
				st := w.engine.snapshot()
				return st.j.Candidate == 0 && st.proven && st.lastError == ""
			})
			w.stillServed("recovered without a configuration")
		}
		w.apply(w.config())
		w.settled()
		eventually(t, "the configuration of this round is live", w.done)
	})
}

func crashInRefusedPart(t *testing.T, part share) {
	w := newWalker(t, func(h *host) { certify(t, h) })
	bad := id.NewOrganization()
	config := func() Config {
		cfg := w.config()
		cfg.Sites = []Site{{Organization: bad, Certificate: true}} // there is none
		return cfg
	}
	change := func() {
		bad = id.NewOrganization()
		w.engine.SetConfig(config())
	}
	isolated := func() bool {
		q := w.engine.Status().Quarantined
		return w.done() && len(q) == 1 && q[0].Part == sitePart(bad) && strings.Contains(q[0].Message, "cannot load certificate")
	}
	w.record(change, isolated) // so that there is something to release
	all := unique(w.record(change, isolated), "")
	for _, label := range []string{"nginx.generation.discard", "nginx.scratch", "nginx.quarantine.write", "nginx.quarantine.rename", "nginx.quarantine.remove"} {
		if !labels(all)[label] {
			t.Errorf("step %s is not in the clean run", label)
		}
	}
	// What a good generation does as well is walked above.
	points := slices.DeleteFunc(all, func(p fsxtest.Point) bool {
		return p.N == 1 && !strings.Contains(p.Label, "quarantine") && !strings.Contains(p.Label, "scratch") && !strings.Contains(p.Label, "discard")
	})
	w.walk(part(points), change, isolated, func(string) {
		w.engine.SetConfig(config())
		eventually(t, "the bad part is isolated, the rest is live", isolated)
		w.settled()
	})
}

func crashInRejectedConfiguration(t *testing.T, part share) {
	w := newWalker(t, func(h *host) { certify(t, h) })
	good, err := os.ReadFile(w.opts.CertificateFile)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		if err := os.WriteFile(w.opts.CertificateFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change := func() {
		put(fmt.Appendf(nil, "no certificate, round %d", w.round))
		w.engine.SetConfig(w.config())
	}
	rejected := func() bool { return strings.Contains(w.engine.Status().LastError, "refused until it changes") }
	points := slices.DeleteFunc(unique(w.record(change, rejected), "nginx.test"), func(p fsxtest.Point) bool { return p.N > 1 })
	if !labels(points)["nginx.journal.rejected.rename"] {
		t.Errorf("the refusal is not recorded: %v", points)
	}
	w.walk(part(points), change, rejected, func(string) {
		w.engine.SetConfig(w.config())
		eventually(t, "nginx's words are reported", func() bool {
			return strings.Contains(w.engine.Status().LastError, "cannot load certificate")
		})
		put(good)
		w.round++
		w.apply(w.config())
		w.settled()
	})
}

func crashWhilePortIsTaken(t *testing.T, part share) {
	w := newWalker(t, nil)
	one := w.opts.Listen
	var occupant net.Listener
	// arm opens the engine with one listener more, whose port is taken between preflight and SIGHUP.
	arm := func() {
		w.stopEngine()
		port := freePort(t)
		w.opts.Listen = append(slices.Clone(one), port)
		w.restart()
		w.faulty.Before("nginx.hup", func() {
			if occupant == nil {
				occupant, _ = net.Listen("tcp", port.String())
			}
		})
	}
	release := func() {
		if occupant != nil {
			_ = occupant.Close()
			occupant = nil
		}
	}
	failed := func() bool { // and rolled back
		return strings.Contains(w.engine.Status().LastError, "Address already in use") && w.engine.snapshot().j.Candidate == 0
	}
	change := func() {
		w.engine.SetConfig(w.config())
	}
	arm()
	points := unique(w.record(change, failed), "nginx.hup")
	for _, label := range []string{"nginx.hup", "nginx.fence.answer", "nginx.pointer.rename", "nginx.journal.candidate.rename", "nginx.journal.live.rename"} {
		if !labels(points)[label] {
			t.Errorf("step %s is not in the recorded rollback", label)
		}
	}
	w.stopEngine()
	release()
	// Counting begins with the change, so the numbers of the recording hold.
	for p := range part(points) {
		w.round++
		met.add(p.Label)
		when := fmt.Sprintf("port taken, crash at %s, call %d, torn %t", p.Label, p.N, p.Torn)
		arm0 := func() { // the engine is stopped here
			port := freePort(t)
			w.opts.Listen = append(slices.Clone(one), port)
			w.restart()
			w.faulty.Before("nginx.hup", func() {
				if occupant == nil {
					occupant, _ = net.Listen("tcp", port.String())
				}
			})
		}
		arm0()
		w.faulty.CrashAt(p)
		change()
		w.crashed(failed)
		w.stillServed(when)
		w.stopEngine()
		w.opts.Listen = one
		w.restart()
		w.apply(w.config())
		w.settled()
		w.stillServed(when + ", recovered")
		w.clean()
		w.stopEngine()
		release()
		if t.Failed() {
			t.Fatalf("failed at: %s", when)
		}
	}
	w.restart() // for the cleanup
}

// crashInRecovery: a crash in the middle, then another at every step of the recovery.
func crashInRecovery(t *testing.T, part share, first string) {
	w := newWalker(t, nil)
	cut := func() {
		w.round++
		w.faulty.CrashAt(fsxtest.Point{Label: first, N: 1})
		w.engine.SetConfig(w.config())
		if !w.crashed(w.done) {
			t.Fatal("the first crash was not reached")
		}
		w.stopEngine()
	}
	recovered := func() bool {
		st := w.engine.snapshot()
		return st.j.Candidate == 0 && st.proven && st.lastError == ""
	}
	cut()
	w.withFaults()
	w.faulty.Record()
	w.startEngine()
	eventually(t, "the recovery ends", recovered)
	points := slices.DeleteFunc(unique(w.faulty.Points(), ""), func(p fsxtest.Point) bool {
		return p.N > 1 || strings.HasPrefix(p.Label, "nginx.layout") || strings.HasPrefix(p.Label, "nginx.route")
	})
	for p := range part(points) {
		met.add(p.Label)
		cut()
		when := fmt.Sprintf("second crash at %s, torn %t", p.Label, p.Torn)
		w.withFaults().CrashAt(p)
		if e, err := Open(w.opts); err == nil {
			w.run(e)
			w.crashed(recovered)
			w.stillServed(when)
			w.stopEngine()
		}
		w.restart()
		w.apply(w.config())
		w.settled()
		w.stillServed(when + ", recovered")
		w.clean()
		if t.Failed() {
			t.Fatalf("failed at: %s", when)
		}
	}
}

func crashInRouteSwitch(t *testing.T) {
	w := newWalker(t, nil)
	other := w.gateway(nil)
	cfg := w.config()
	cfg.Slots = append(cfg.Slots, Slot{Gateway: other.id})
	w.apply(cfg)
	w.settled()
	w.faulty.Record()
	w.route(w.org, other, 8)
	w.route(w.org, w.gw, 9)
	if err := w.engine.Unroute(within(t), w.org, Target{w.gw.id, 9}); err != nil {
		t.Fatal(err)
	}
	points := unique(w.faulty.Points(), "")
	epoch := id.Epoch(10)
	for _, p := range points {
		met.add(p.Label)
		when := fmt.Sprintf("crash at %s, call %d", p.Label, p.N)
		w.route(w.org, w.gw, epoch)
		w.faulty.CrashAt(p)
		_ = w.engine.Route(within(t), w.org, Target{other.id, epoch + 1})
		_ = w.engine.Route(within(t), w.org, Target{w.gw.id, epoch + 2})
		_ = w.engine.Unroute(within(t), w.org, Target{w.gw.id, epoch + 2})
		// Whole: one of the targets that were asked for, or none, and nothing else.
		status, header, _ := w.ask(orgHost(w.org), "/")
		got := header.Get("X-Demiurge-Gateway") + " " + header.Get("X-Demiurge-Epoch")
		allowed := []string{proofText(Target{w.gw.id, epoch}), proofText(Target{other.id, epoch + 1}), proofText(Target{w.gw.id, epoch + 2}), " "}
		if !slices.Contains(allowed, got) || (status == 503) != (got == " ") {
			t.Errorf("%s: %d %q", when, status, got)
		}
		w.stopEngine()
		w.restart()
		w.engine.Retain(map[id.Organization]Target{w.org: {other.id, epoch + 3}})
		w.gw, other = other, w.gw
		w.epoch = epoch + 3
		eventually(t, when+", recovered", func() bool { return w.servedBy(w.org, w.gw, w.epoch) == nil })
		w.clean()
		epoch += 4
	}
	t.Logf("%d crash points", len(points))
}

// The same with the pieces that Prepare does before nginx starts.
func crashInPrepare(t *testing.T) {
	h := newHost(t)
	f := h.withFaults()
	f.Record()
	if err := Prepare(within(t), h.opts); err != nil {
		t.Fatal(err)
	}
	points := unique(f.Points(), "")
	for _, p := range points {
		met.add(p.Label)
		for _, dir := range []string{h.opts.DataDir, h.opts.RunDir} {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				_ = os.RemoveAll(dir + "/" + e.Name())
			}
		}
		h.withFaults().CrashAt(p)
		if err := Prepare(within(t), h.opts); err == nil {
			t.Errorf("crash at %s is not reported", p.Label)
		}
		h.withFaults()
		if err := Prepare(within(t), h.opts); err != nil {
			t.Errorf("after a crash at %s: %v", p.Label, err)
		}
		if _, err := readJournalFile(h.layout()); err != nil {
			t.Errorf("after a crash at %s: %v", p.Label, err)
		}
	}
	h.startNginx()
	h.startEngine()
	g := h.gateway(nil)
	h.apply(slots(g))
	org := id.NewOrganization()
	h.route(org, g, 1)
	h.mustServe(org, g, 1)
	h.settled()
	h.clean()
}
