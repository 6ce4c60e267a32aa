package systemtest

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/failpoint"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// walk is a system whose programs can be killed at any label.
type walk struct {
	*system
	org         string
	armed       string // file that arms a label
	trace       string // file that collects labels
	seen        int    // bytes of the trace that were read
	generations int    // changes made, so that each is another one
}

// operation is something that the system does, and that a crash may cut off anywhere.
type operation struct {
	name string
	// before brings the system, which is whole, to where the operation makes sense.
	before func(*walk)
	// do asks for it. The error is what the caller was told.
	do func(*walk) error
	// after fails the test when the outcome of do, on a system that is whole again, was neither all nor
	// nothing, or not what the caller was told.
	after func(*walk, error)
}

const extraPool = "extra"

// walks are the operations by systems, which go on beside each other: nearly all of the time is waiting for programs
// that start again. A label is walked in the first operation that reaches it.
var walks = []struct {
	operations []operation
	backwards  bool // from the last label, to meet the walk of the same labels
}{
	{operations: []operation{
		{"start", (*walk).stopped, (*walk).start, (*walk).startedOrNot},
		{"member", (*walk).started, (*walk).member, (*walk).stillStarted},
		{"stop", (*walk).started, (*walk).stop, (*walk).stoppedOrNot},
		{"gateway dies", (*walk).started, func(w *walk) error { return w.killOne("gateway-" + w.allocation().GatewayID) }, (*walk).stillStarted},
		{"recycling", (*walk).stopped, (*walk).recycle, nil},
	}},
	{operations: []operation{
		{"pool grows", (*walk).withoutExtra, (*walk).putExtra, (*walk).extraOrNot},
	}},
	{backwards: true, operations: []operation{
		{"pool ends", (*walk).withExtra, (*walk).deleteExtra, (*walk).extraOrNot},
	}},
	{operations: []operation{
		{"organization and token", (*walk).stopped, (*walk).otherRecords, nil},
		{"cordon", (*walk).started, (*walk).cordon, (*walk).stillStarted},
		{"pool waits for a host", (*walk).withoutExtra, (*walk).putExtraWithoutHosts, (*walk).extraOrNot},
		{"agent restarts", (*walk).started, func(w *walk) error { return w.killOne("agent-1") }, (*walk).stillStarted},
		{"stop after a login", (*walk).asked, (*walk).stop, (*walk).stoppedOrNot},
		{"nginx restarts", (*walk).started, func(w *walk) error { return w.killOne("nginx-1") }, (*walk).stillStarted},
		{"coordinator restarts", (*walk).started, func(w *walk) error { return w.killOne("coordinator-1") }, (*walk).stillStarted},
	}},
}

// labels are what all walks together reached in clean runs, and where they saw a program die.
type labels struct {
	mu      sync.Mutex
	reached []string        // guarded by mu
	walked  map[string]bool // guarded by mu
}

func (l *labels) isWalked(label string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.walked[label]
}

func (l *labels) walk(label string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.walked[label] = true
}

func (l *labels) reach(all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reached = append(l.reached, all...)
}

// Every label that a clean run reaches is a place where a program dies, and after its restart either all of
// the operation happened or nothing, and nothing is left over.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	l := &labels{walked: map[string]bool{}}
	var group sync.WaitGroup // not t.Parallel: these wait, and the number of cores is no bound
	for i, some := range walks {
		group.Go(func() {
			t.Run(fmt.Sprintf("system %d", i+1), func(t *testing.T) { walkAll(t, l, some.operations, some.backwards) })
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	walked := slices.Sorted(maps.Keys(l.walked))
	t.Logf("walked %d labels: %s", len(walked), strings.Join(walked, " "))
	for _, label := range l.reached {
		if l.walked[label] {
			continue
		}
		// How often the journal is written depends on what else happens: that it was once is needed.
		name, _, _ := strings.Cut(label, ":")
		if l.walked[name+":1"] {
			t.Logf("no program died at %s: it was reached by chance", label)
		} else {
			t.Errorf("no program died at %s, which a clean run reached", label)
		}
	}
	for _, needed := range []string{
		"nginx.generation.rename", "nginx.test", "nginx.journal.candidate.rename", "nginx.fence.link", "nginx.pointer.rename", "nginx.hup",
		"nginx.fence.answer", "nginx.fence.refuse", "nginx.canary", "nginx.journal.live.rename", "nginx.route.symlink", "journal.append:1",
		"reconcile.activate", "reconcile.route", "reconcile.verify", "reconcile.unroute", "reconcile.deactivate", "reconcile.wipe",
		"propose.reserve.before", "propose.reserve.after", "propose.confirm.before", "propose.confirm.after", "propose.release.before",
		"propose.release.after", "propose.observe_host.before", "propose.create_gateways.after", "propose.note_pool.before", "propose.note_pool.after", "oauth.drop", "tenant.permissions.remove",
	} {
		if !l.walked[needed] {
			t.Errorf("the clean run did not reach %s: the walk is not whole", needed)
		}
	}
}

// walkAll crashes some operations, one after the other, on a system of their own.
func walkAll(t *testing.T, l *labels, some []operation, backwards bool) {
	dir := t.TempDir()
	w := &walk{armed: filepath.Join(dir, "armed"), trace: filepath.Join(dir, "trace")}
	w.system = start(t, setup{flavor: crashing, gateways: 2, env: []string{
		failpoint.FileVariable + "=" + w.armed, failpoint.TraceVariable + "=" + w.trace,
	}})
	w.org = w.organizations(1)[0]
	one, most := 1, 8
	w.pool("default", api.PutPool{Step: &one, Max: &most})
	w.waitWhole(w.org)
	for _, o := range some {
		all := w.record(o)
		if backwards {
			slices.Reverse(all)
		}
		t.Run(o.name, func(t *testing.T) {
			w.t = t
			for _, label := range all {
				// The journal is written several times by one operation, each time for another step.
				again := strings.HasPrefix(label, "journal.") && o.after != nil
				if (again || !l.isWalked(label)) && w.crash(o, label) {
					l.walk(label)
				}
			}
		})
		if w.t = t; t.Failed() {
			return
		}
		l.reach(all)
	}
}

// record does an operation without a crash and lists the labels that it reaches, in order.
func (w *walk) record(o operation) []string {
	w.t.Helper()
	o.before(w)
	w.waitWhole(w.org)
	w.labels()
	if err := o.do(w); err != nil {
		w.t.Fatalf("%s fails without a crash: %v", o.name, err)
	}
	w.waitWhole(w.org)
	if o.after != nil {
		o.after(w, nil)
	}
	return w.labels()
}

// labels are those reached since the last call, each once; those of the journal with their count, "label:2".
func (w *walk) labels() []string {
	w.t.Helper()
	b, err := os.ReadFile(w.trace)
	if err != nil {
		w.t.Fatal(err)
	}
	end := strings.LastIndexByte(string(b), '\n') + 1
	var out []string
	counts := map[string]int{}
	for label := range strings.Lines(string(b[w.seen:end])) {
		label = strings.TrimSpace(label)
		if counts[label]++; strings.HasPrefix(label, "journal.") {
			label = fmt.Sprintf("%s:%d", label, counts[label])
		}
		if !slices.Contains(out, label) {
			out = append(out, label)
		}
	}
	w.seen = end
	return out
}

// tries is how often an operation is repeated to reach a label that it does not reach every time, such as
// the removal of the oldest generation. A label that it reached by chance is left to the next operation.
const tries = 3

// crash does an operation with a label armed, and tells whether a program died there.
func (w *walk) crash(o operation, label string) bool {
	w.t.Helper()
	for range tries {
		o.before(w)
		w.waitWhole(w.org)
		begun := time.Now()
		if err := os.WriteFile(w.armed+".new", []byte(label), 0o600); err != nil {
			w.t.Fatal(err)
		}
		if err := os.Rename(w.armed+".new", w.armed); err != nil {
			w.t.Fatal(err)
		}
		told := o.do(w)
		asked := time.Now()
		var f *fault.Error
		if errors.As(told, &f) && (f.Code == fault.Internal || f.Code == fault.Unauthenticated || f.Message == "") {
			w.t.Errorf("%s, killed at %s, told its caller %v", o.name, label, told)
		}
		what := fmt.Sprintf("the system to be whole after a crash at %s during: %s (the caller was told: %v)", label, o.name, told)
		waitFor(w.t, what, func() string { return w.wrong(w.org) })
		// What was asked for may go on for a moment after the answer.
		died := waitDeath(w.armed)
		waitFor(w.t, what, func() string { return w.wrong(w.org) })
		if o.after != nil {
			o.after(w, told)
		}
		if died {
			w.t.Logf("%s: asked %s, whole after %s: %v", label, asked.Sub(begun).Round(time.Millisecond), time.Since(begun).Round(time.Millisecond), told)
			w.works(label)
			return true
		}
	}
	return false
}

// waitDeath waits a moment for the file that armed a label to be taken, and takes it back otherwise.
func waitDeath(armed string) bool {
	for range 20 {
		if _, err := os.Stat(armed); err != nil {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return os.Remove(armed) != nil
}

// works fails the test unless an organization can be started and is served, whatever came before.
func (w *walk) works(label string) {
	w.t.Helper()
	a, _, err := w.client.Start(w.t.Context(), api.StartAllocation{OrganizationID: w.org})
	if err != nil {
		w.t.Fatalf("cannot start after a crash at %s: %v", label, err)
	}
	w.mustServe(a)
}

// allocation is the live one.
func (w *walk) allocation() api.Allocation {
	w.t.Helper()
	a, err := w.client.OrganizationAllocation(w.t.Context(), w.org)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *walk) live() (api.Allocation, bool) {
	w.t.Helper()
	a, err := w.client.OrganizationAllocation(w.t.Context(), w.org)
	if err != nil && !fault.Is(err, fault.NotFound) {
		w.t.Fatal(err)
	}
	return a, err == nil
}

func (w *walk) started() {
	w.t.Helper()
	if _, ok := w.live(); !ok {
		w.allocate(w.org, "")
	}
}

func (w *walk) stopped() {
	w.t.Helper()
	if a, ok := w.live(); ok {
		w.release(a)
	}
}

// asked: started, and somebody has asked its OAuth server for a token. From then on it has a journal on disk.
func (w *walk) asked() {
	w.t.Helper()
	w.started()
	form := strings.NewReader("grant_type=refresh_token&refresh_token=none&client_id=none")
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.file.HTTP+"/oauth/token", form)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = w.host(w.org)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := web.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		w.t.Fatalf("an unknown client's question for a token is answered %d", resp.StatusCode)
	}
}

func (w *walk) start() error {
	a, _, err := w.client.Start(w.t.Context(), api.StartAllocation{OrganizationID: w.org})
	if err == nil && a.State != api.AllocationActive {
		w.t.Errorf("the start was answered with %+v", a)
	}
	return err
}

func (w *walk) startedOrNot(told error) {
	w.t.Helper()
	_, ok := w.live()
	var f *fault.Error
	if told == nil && !ok {
		w.t.Error("a start that was acknowledged is gone")
	}
	if errors.As(told, &f) && f.Code != fault.NoLeader && ok {
		w.t.Errorf("a start that was refused with %v is there", told)
	}
}

func (w *walk) stillStarted(error) {
	w.t.Helper()
	if _, ok := w.live(); !ok {
		w.t.Error("the allocation is gone")
	}
}

func (w *walk) stop() error {
	_, err := w.client.Release(w.t.Context(), w.allocation().AllocationID, 0)
	return err
}

func (w *walk) stoppedOrNot(told error) {
	w.t.Helper()
	if _, ok := w.live(); ok && told == nil {
		w.t.Error("a release that was acknowledged did not happen")
	}
}

func (w *walk) member() error {
	w.generations++
	_, err := w.client.PutMember(w.t.Context(), w.org, "carol", api.PutMember{Username: fmt.Sprint("Carol ", w.generations), Role: "member"})
	return err
}

// killOne kills a program and waits for its successor. Whoever asked for that is told nothing.
func (w *walk) killOne(name string) error {
	old := w.pid(name)
	w.kill(old)
	waitTrue(w.t, name+" to run again", func() bool { return w.pid(name) != old })
	return nil
}

func (w *walk) recycle() error {
	gateways, err := w.client.ListGateways(w.t.Context(), client.GatewayFilter{State: api.GatewayReady, Pool: "default"})
	if err != nil || len(gateways) == 0 {
		return errors.Join(err, fmt.Errorf("%d gateways are ready", len(gateways)))
	}
	_, err = w.client.RecycleGateway(w.t.Context(), gateways[0].GatewayID)
	return err
}

func (w *walk) hasExtra() bool {
	w.t.Helper()
	_, err := w.client.Pool(w.t.Context(), extraPool)
	if err != nil && !fault.Is(err, fault.NotFound) {
		w.t.Fatal(err)
	}
	return err == nil
}

func (w *walk) withoutExtra() {
	w.t.Helper()
	if w.hasExtra() {
		if err := w.deleteExtra(); err != nil {
			w.t.Fatal(err)
		}
		waitTrue(w.t, "the pool to be gone", func() bool { return !w.hasExtra() })
		w.waitWhole(w.org)
	}
}

func (w *walk) withExtra() {
	w.t.Helper()
	if !w.hasExtra() {
		if err := w.putExtra(); err != nil {
			w.t.Fatal(err)
		}
		w.waitWhole(w.org)
	}
}

func (w *walk) putExtra() error {
	one, two := 1, 2
	_, err := w.client.PutPool(w.t.Context(), extraPool, api.PutPool{MinReady: &one, Step: &one, Max: &two})
	return err
}

func (w *walk) deleteExtra() error { return w.client.DeletePool(w.t.Context(), extraPool) }

// extraOrNot: a pool that is there has its gateway, or the system would not be whole.
func (w *walk) extraOrNot(error) {
	w.t.Helper()
	gateways, err := w.client.ListGateways(w.t.Context(), client.GatewayFilter{Pool: extraPool})
	if err != nil {
		w.t.Fatal(err)
	}
	if has := w.hasExtra(); has != (len(gateways) > 0) {
		w.t.Errorf("the pool is there: %t, and it has %d gateways", has, len(gateways))
	}
}

func (w *walk) otherRecords() error {
	w.generations++
	org := fmt.Sprintf("00000000-0000-4000-8000-%012d", w.generations)
	ctx := w.t.Context()
	_, err := w.client.PutOrganization(ctx, org, api.PutOrganization{Name: "Short-lived"})
	if err == nil {
		err = w.client.DeleteOrganization(ctx, org)
	}
	if err == nil {
		var token api.CreatedToken
		if token, err = w.client.CreateToken(ctx, api.CreateToken{Role: api.RoleReader}); err == nil {
			err = w.client.DeleteToken(ctx, token.TokenID)
		}
	}
	return err
}

func (w *walk) cordon() error {
	_, err := w.client.CordonHost(w.t.Context(), "host-1")
	if err == nil {
		_, err = w.client.UncordonHost(w.t.Context(), "host-1")
	}
	if err != nil {
		w.uncordon()
	}
	return err
}

// uncordon sees to it that what was cut off leaves no cordoned host to the next.
func (w *walk) uncordon() {
	w.t.Helper()
	waitTrue(w.t, "the host to be uncordoned", func() bool {
		_, err := w.client.UncordonHost(w.t.Context(), "host-1")
		return err == nil
	})
}

// putExtraWithoutHosts: the pool keeper can make no gateway, and says so, before there is a host again.
func (w *walk) putExtraWithoutHosts() error {
	_, err := w.client.CordonHost(w.t.Context(), "host-1")
	if err == nil {
		err = w.putExtra()
	}
	if err == nil {
		waitTrue(w.t, "the pool to say what it lacks", func() bool {
			p, err := w.client.Pool(w.t.Context(), extraPool)
			return err == nil && p.Limited != ""
		})
	}
	w.uncordon()
	return err
}
