package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func start(org id.Organization) api.StartAllocation {
	return api.StartAllocation{OrganizationID: string(org)}
}

func TestStartAndRelease(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	org := k.organization()
	ctx, platform := context.Background(), k.client(api.RolePlatform)
	status := 0
	var index uint64
	a, created, err := platform.Start(ctx, start(org), client.StatusTo(&status), client.IndexTo(&index))
	if err != nil || !created {
		t.Fatalf("%v, created %v", err, created)
	}
	host := "org-" + string(org) + ".example.test"
	if a.State != api.AllocationActive || a.OrganizationID != string(org) || a.GatewayID == "" || a.HostID != "h1" || a.HostAddress != "192.0.2.1" || a.Epoch == 0 || !a.Warm ||
		a.Hostname != host || a.URL != "http://"+host+":7480/" || a.ActiveAt == nil || a.EndedAt != nil || a.Index == 0 || index < a.Index {
		t.Errorf("allocation %+v at index %d", a, index)
	}
	if a.Timings != (api.Timings{Reserve: 1, Route: 1.5, Total: 3}) {
		t.Errorf("timings %+v", a.Timings)
	}
	again, created, err := platform.Start(ctx, start(org))
	if err != nil || created || again.AllocationID != a.AllocationID || again.Epoch != a.Epoch {
		t.Errorf("second start: %+v, created %v, %v", again, created, err)
	}
	live, err := k.client(api.RoleReader).OrganizationAllocation(ctx, string(org))
	if err != nil || live.AllocationID != a.AllocationID {
		t.Errorf("live allocation %+v, %v", live, err)
	}
	ended, err := platform.Release(ctx, a.AllocationID, 5*time.Second)
	if err != nil || ended.State != api.AllocationReleased || ended.EndedAt == nil {
		t.Errorf("released %+v, %v", ended, err)
	}
	if _, err := platform.Release(ctx, a.AllocationID, 0); err != nil {
		t.Errorf("second release: %v", err)
	}
	if _, err := platform.OrganizationAllocation(ctx, string(org)); !fault.Is(err, fault.NotFound) {
		t.Errorf("live allocation after the release: %v", err)
	}
	if _, err := platform.Release(ctx, "al-abcdefghijklmnop", 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("release of what is not there: %v", err)
	}
	if o, err := platform.Organization(ctx, string(org)); err != nil || o.AllocationID != "" {
		t.Errorf("organization %+v, %v", o, err)
	}
}

func TestStepsAndExplain(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.organization()
	ctx, platform := context.Background(), k.client(api.RolePlatform)
	a, _, err := platform.Start(ctx, start(org))
	if err != nil {
		t.Fatal(err)
	}
	e, err := platform.Explain(ctx, a.AllocationID)
	if err != nil || e.GatewayID != a.GatewayID || e.HostID != "h1" || e.Rule == "" || len(e.Candidates) != 1 || !e.Candidates[0].Eligible {
		t.Errorf("explanation %+v, %v", e, err)
	}
	if _, err := platform.Release(ctx, a.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	steps, err := platform.Steps(ctx, a.AllocationID)
	if err != nil {
		t.Fatal(err)
	}
	route := slices.IndexFunc(steps, func(s api.Step) bool { return s.Step == api.StepRoute })
	if route < 0 || steps[route].State != api.StepUndone || steps[route].Undo == nil || steps[route].Undo.Step != api.StepUnroute || steps[route].EndedAt == nil {
		t.Errorf("steps %+v", steps)
	}
	if !slices.ContainsFunc(steps, func(s api.Step) bool { return s.Step == api.StepUnroute && s.State == api.StepDone }) {
		t.Errorf("the undo itself is missing: %+v", steps)
	}
	for _, call := range []func() error{
		func() error { _, err := platform.Allocation(ctx, "al-abcdefghijklmnop"); return err },
		func() error { _, err := platform.Steps(ctx, "al-abcdefghijklmnop"); return err },
		func() error { _, err := platform.Explain(ctx, "al-abcdefghijklmnop"); return err },
	} {
		if err := call(); !fault.Is(err, fault.NotFound) {
			t.Errorf("of an unknown allocation: %v", err)
		}
	}
}

func TestWhatOnlyTheLeaderKnows(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.organization()
	ctx, platform := context.Background(), k.client(api.RolePlatform)
	in := start(org)
	in.WaitFor = "reserved"
	status := 0
	a, created, err := platform.Start(ctx, in, client.StatusTo(&status))
	if err != nil || !created || a.State != api.AllocationReserved {
		t.Fatalf("%+v, %v", a, err)
	}
	phase := api.AllocationRouting
	k.allocs.phase.Store(&phase)
	if a, err = platform.Allocation(ctx, a.AllocationID); err != nil || a.State != api.AllocationRouting {
		t.Errorf("state %q, %v", a.State, err)
	}
	if list, err := platform.ListAllocations(ctx, client.AllocationFilter{State: api.AllocationRouting}); err != nil || len(list) != 1 {
		t.Errorf("list by the phase: %v, %v", list, err)
	}
	steps, err := platform.Steps(ctx, a.AllocationID)
	if err != nil || !slices.ContainsFunc(steps, func(s api.Step) bool { return s.Step == api.StepActivate && s.State == api.StepDoing }) {
		t.Errorf("steps %+v, %v", steps, err)
	}
	if st, err := platform.Status(ctx); err != nil || st.Allocations[api.AllocationRouting] != 1 {
		t.Errorf("status %+v, %v", st.Allocations, err)
	}
	k.allocs.confirm(id.Allocation(a.AllocationID))
	if a, err = platform.Allocation(ctx, a.AllocationID); err != nil || a.State != api.AllocationActive {
		t.Errorf("what is in the log goes first: %q, %v", a.State, err)
	}
}

func TestStatusesOfStart(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.organization()
	secret := k.tokens[api.RolePlatform]
	body := `{"organization_id":"` + string(org) + `","wait_for":"reserved"}`
	for _, want := range []int{http.StatusAccepted, http.StatusOK} {
		got := k.call(post, "/v1/allocations", secret, body)
		if got.status != want || got.header.Get("X-Demiurge-Index") == "" {
			t.Errorf("status %d, want %d: %s", got.status, want, got.body)
		}
	}
}

func TestRefusalsOfStart(t *testing.T) {
	k := newKit(t)
	k.withGateways(0)
	org := k.organization()
	ctx, platform := context.Background(), k.client(api.RolePlatform)
	if _, _, err := platform.Start(ctx, start(id.NewOrganization())); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown organization: %v", err)
	}
	in := start(org)
	in.Pool = "nowhere"
	if _, _, err := platform.Start(ctx, in); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown pool: %v", err)
	}
	_, _, err := platform.Start(ctx, start(org))
	if f := fault.From(err); f.Code != fault.PoolExhausted || f.RetryAfter < time.Second {
		t.Errorf("empty pool: %v, retry after %s", err, f.RetryAfter)
	}
	for code := range fault.Codes() {
		if code == fault.NoLeader || code == fault.RateLimited {
			continue // the client's own business
		}
		k.allocs.fail.Store(fault.New(code, "because of %s", code))
		if _, _, err := platform.Start(ctx, start(org)); fault.CodeOf(err) != code || fault.From(err).Message != "because of "+string(code) {
			t.Errorf("%s came back as %v", code, err)
		}
	}
}

func TestWaitingInLine(t *testing.T) {
	k := newKit(t)
	k.withGateways(0)
	ctx, platform := context.Background(), k.client(api.RolePlatform)
	wait := api.Duration(time.Minute)
	for want := 1; want <= 3; want++ {
		in := start(k.organization())
		in.Wait = &wait
		a, _, err := platform.Start(ctx, in)
		if err != nil || a.State != api.AllocationQueued || a.Position != want {
			t.Errorf("%+v, %v; want place %d", a, err, want)
		}
	}
	if p, err := k.client(api.RoleOperator).Pool(ctx, "default"); err != nil || p.Queued != 3 {
		t.Errorf("pool %+v, %v", p, err)
	}
}

func TestBatch(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	var in api.StartBatch
	for range 3 {
		in.OrganizationIDs = append(in.OrganizationIDs, string(k.organization()))
	}
	unknown := string(id.NewOrganization())
	in.OrganizationIDs = append(in.OrganizationIDs, unknown)
	out, err := k.client(api.RolePlatform).StartBatch(context.Background(), in)
	if err != nil || len(out) != 4 {
		t.Fatalf("%+v, %v", out, err)
	}
	for i, want := range []string{"", "", string(fault.PoolExhausted), string(fault.NotFound)} {
		r := out[i]
		if r.OrganizationID != in.OrganizationIDs[i] || (r.Allocation == nil) != (want != "") || (r.Problem == nil) != (want == "") {
			t.Errorf("%d: %+v", i, r)
		} else if want != "" && (r.Problem.Code != want || r.Problem.Status == 0) {
			t.Errorf("%d: problem %+v, want %s", i, r.Problem, want)
		}
	}
}

func TestIdempotencyKeys(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	org := k.organization()
	body := `{"organization_id":"` + string(org) + `","metadata":{"n":"1"}}`
	send := func(secret, body, key string) reply {
		return k.call(post, "/v1/allocations", secret, body, "Idempotency-Key", key)
	}
	platform, other := k.tokens[api.RolePlatform], k.tokens[api.RoleOperator]
	var first, second api.Allocation
	if got := send(platform, body, "k1"); got.status != http.StatusCreated || json.Unmarshal(got.body, &first) != nil {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if _, err := k.client(api.RolePlatform).Release(context.Background(), first.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	if got := send(platform, body, "k1"); got.status != http.StatusOK || json.Unmarshal(got.body, &second) != nil || second.AllocationID != first.AllocationID {
		t.Errorf("the same key answered %d %s, want the first result", got.status, got.body)
	}
	wantProblem(t, send(platform, `{"organization_id":"`+string(org)+`"}`, "k1"), fault.Conflict)
	if got := send(other, body, "k1"); got.status != http.StatusCreated {
		t.Errorf("another caller's same key: %d %s", got.status, got.body)
	}
	k.allocs.mu.Lock()
	key := k.allocs.last.Key
	k.allocs.mu.Unlock()
	if len(key) != 64 {
		t.Errorf("the log gets the key %q, want a digest", key)
	}
	wantProblem(t, send(platform, body, strings.Repeat("k", 201)), fault.InvalidRequest)
}

func TestThePlatformsOldNames(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.organization()
	secret := k.tokens[api.RolePlatform]
	body := `{"organization_id":"` + string(org) + `"}`
	var first, second api.GatewayStarted
	if got := k.call(post, "/gateway/start", secret, body); got.status != 200 || json.Unmarshal(got.body, &first) != nil {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if first.GatewayHostname != "org-"+string(org)+".example.test" || first.GatewayID == "" || first.Epoch == 0 || first.State != api.AllocationActive {
		t.Errorf("started %+v", first)
	}
	if got := k.call(post, "/gateway/start", secret, body); got.status != 200 || json.Unmarshal(got.body, &second) != nil || second != first {
		t.Errorf("second start: %d %s", got.status, got.body)
	}
	var stopped api.GatewayStopped
	if got := k.call(post, "/gateway/stop", secret, body); got.status != 200 || json.Unmarshal(got.body, &stopped) != nil || !stopped.Success {
		t.Errorf("stop: %d %s", got.status, got.body)
	}
	wantProblem(t, k.call(post, "/gateway/stop", secret, body), fault.NotFound)
	k.apply(command.SetHostSchedulable{Meta: k.meta(), Host: k.host, Schedulable: false})
	wantProblem(t, k.call(post, "/gateway/start", secret, body), fault.NoEligibleHost)
}

func TestListsAreFilteredAndPaged(t *testing.T) {
	k := newKit(t)
	k.withGateways(5)
	ctx, reader := context.Background(), k.client(api.RoleReader)
	var started []string
	for range 5 {
		a, _, err := k.client(api.RolePlatform).Start(ctx, start(k.organization()))
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, a.AllocationID)
	}
	slices.Sort(started)
	var paged []string
	cursor := ""
	for pages := 1; ; pages++ {
		var list api.List[api.Allocation]
		got := k.call(get, "/v1/allocations?limit=2&cursor="+cursor, k.tokens[api.RoleReader], "")
		if err := json.Unmarshal(got.body, &list); err != nil {
			t.Fatal(err)
		}
		for _, a := range list.Items {
			paged = append(paged, a.AllocationID)
		}
		if cursor = list.Cursor; cursor == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if !slices.Equal(paged, started) {
		t.Errorf("pages gave %v, want %v", paged, started)
	}
	one, err := reader.Allocation(ctx, started[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.client(api.RolePlatform).Release(ctx, started[1], 0); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		filter client.AllocationFilter
		want   int
	}{
		"all":           {client.AllocationFilter{}, 5},
		"live":          {client.AllocationFilter{Live: true}, 4},
		"state":         {client.AllocationFilter{State: api.AllocationReleased}, 1},
		"organization":  {client.AllocationFilter{OrganizationID: one.OrganizationID}, 1},
		"gateway":       {client.AllocationFilter{GatewayID: one.GatewayID}, 1},
		"host":          {client.AllocationFilter{HostID: "h1"}, 5},
		"another host":  {client.AllocationFilter{HostID: "h2"}, 0},
		"another pool":  {client.AllocationFilter{Pool: "other"}, 0},
		"together":      {client.AllocationFilter{Pool: "default", HostID: "h1", State: api.AllocationActive}, 4},
		"contradictory": {client.AllocationFilter{Live: true, State: api.AllocationReleased}, 0},
	} {
		if list, err := reader.ListAllocations(ctx, c.filter); err != nil || len(list) != c.want {
			t.Errorf("%s: %d allocations, %v; want %d", name, len(list), err, c.want)
		}
	}
	if got := k.call(get, "/v1/allocations?host_id=h2", k.tokens[api.RoleReader], ""); string(got.body) != "{\"items\":[]}\n" {
		t.Errorf("an empty list is %s", got.body)
	}
}

// TestAPageReadsItsOwnRecords counts what is read of a list: the items of the page, those that the filter leaves out
// between them, and one that tells that there are more.
func TestAPageReadsItsOwnRecords(t *testing.T) {
	read := 0
	list := func(after id.Host) iter.Seq[int] {
		from := 0
		if after != "" {
			if _, err := fmt.Sscanf(string(after), "h%d", &from); err != nil {
				t.Fatal(err)
			}
			from++
		}
		return func(yield func(int) bool) {
			for n := from; n < 1000; n++ {
				if read++; !yield(n) {
					return
				}
			}
		}
	}
	same := func(n int) int { return n }
	idOf := func(n int) id.Host { return id.Host(fmt.Sprintf("h%d", n)) }
	even := func(n int) bool { return n%2 == 0 }
	for _, c := range []struct {
		after  id.Host
		keep   func(int) bool
		items  []int
		cursor string
		read   int
	}{
		{"", every[int], []int{0, 1, 2}, "h2", 4},
		{"h989", every[int], []int{990, 991, 992}, "h992", 4},
		{"h989", even, []int{990, 992, 994}, "h994", 7},
		{"h996", every[int], []int{997, 998, 999}, "", 3},
		{"h999", every[int], []int{}, "", 0},
	} {
		read = 0
		got := page(pages[id.Host]{limit: 3, after: c.after}, list, idOf, c.keep, same)
		if !slices.Equal(got.Items, c.items) || got.Cursor != c.cursor || read != c.read {
			t.Errorf("after %q: %d and %q from %d records, want %d and %q from %d", c.after, got.Items, got.Cursor, read, c.items, c.cursor, c.read)
		}
	}
}
