package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// blocked runs a blocking read, waits until it is past the gate, and delivers its answer.
func (k *kit) blocked(path string) <-chan reply {
	k.t.Helper()
	out, send := make(chan reply, 1), k.prepare(get, path, k.tokens[api.RoleAdmin], "")
	before := k.cluster.asked.Load() // a read asks before it looks, and the gate does not
	go func() { out <- send() }()
	eventually(k.t, "the read has begun", func() bool { return k.cluster.asked.Load() > before })
	return out
}

// soon waits for an answer.
func soon(t *testing.T, ch <-chan reply) reply {
	t.Helper()
	select {
	case r := <-ch:
		return r
	case <-time.After(patience):
		t.Fatal("the blocking read did not answer")
		return reply{}
	}
}

// still checks that a blocking read goes on. It can only miss a wrong wake-up on a slow machine, never
// see one that is not there.
func still(t *testing.T, ch <-chan reply, what string) {
	t.Helper()
	select {
	case r := <-ch:
		t.Errorf("%s woke the read: %d %s", what, r.status, r.body)
	case <-time.After(50 * time.Millisecond):
	}
}

func indexOf(t *testing.T, r reply) uint64 {
	t.Helper()
	index, err := strconv.ParseUint(r.header.Get(api.HeaderIndex), 10, 64)
	if err != nil {
		t.Fatalf("%d %s: index %q", r.status, r.body, r.header.Get(api.HeaderIndex))
	}
	return index
}

func TestBlockingReads(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	org := k.organization()
	admin := k.tokens[api.RoleAdmin]
	change := map[string]func(){
		"/v1/organizations/" + string(org): func() {
			k.apply(command.EditOrganization{Meta: k.meta(), Organization: org, PutProject: &command.Project{ID: id.Project("p" + string(id.NewToken())[3:])}})
		},
		"/v1/organizations": func() { k.organization() },
		"/v1/hosts": func() {
			k.apply(command.SetHostSchedulable{Meta: k.meta(), Host: k.host, Schedulable: k.store.View().Host(nil, k.host).Cordoned})
		},
		"/v1/tokens": func() { k.makeToken(api.RoleReader, time.Time{}) },
	}
	for path, happen := range change {
		t.Run(path, func(t *testing.T) {
			index := indexOf(t, k.call(get, path, admin, ""))
			read := k.blocked(fmt.Sprintf("%s?index=%d&wait=4m", path, index))
			still(t, read, "nothing")
			for other, happen := range change {
				if other != path && path == "/v1/tokens" {
					happen()
				}
			}
			if path == "/v1/tokens" {
				still(t, read, "a change of something else")
			}
			happen()
			got := soon(t, read)
			if got.status != 200 || indexOf(t, got) <= index {
				t.Errorf("%d at index %s, asked for newer than %d", got.status, got.header.Get(api.HeaderIndex), index)
			}
			if got := soon(t, k.blocked(fmt.Sprintf("%s?index=%d&wait=4m", path, index))); got.status != 200 {
				t.Errorf("something newer was there already: %d", got.status)
			}
		})
	}
}

func TestBlockingReadOfAnObjectIgnoresOthers(t *testing.T) {
	k := newKit(t)
	one, other := k.organization(), k.organization()
	path := "/v1/organizations/" + string(one)
	index := indexOf(t, k.call(get, path, k.tokens[api.RoleAdmin], ""))
	read := k.blocked(fmt.Sprintf("%s?index=%d&wait=4m", path, index))
	for range 5 {
		k.apply(command.PutOrganization{Meta: k.meta(), Organization: other, Name: "Changed"})
		k.makeToken(api.RoleReader, time.Time{})
	}
	still(t, read, "a change of another organization")
	if again := indexOf(t, k.call(get, path, k.tokens[api.RoleAdmin], "")); again != index {
		t.Errorf("index %d became %d without a change", index, again)
	}
	k.apply(command.DeleteOrganization{Meta: k.meta(), Organization: one})
	wantProblem(t, soon(t, read), fault.NotFound)
}

func TestBlockingReadSeesRemovalsAndAppearances(t *testing.T) {
	k := newKit(t)
	org := k.organization()
	admin := k.tokens[api.RoleAdmin]
	index := indexOf(t, k.call(get, "/v1/organizations", admin, ""))
	read := k.blocked(fmt.Sprintf("/v1/organizations?index=%d&wait=4m", index))
	k.apply(command.DeleteOrganization{Meta: k.meta(), Organization: org})
	got := soon(t, read)
	if got.status != 200 || indexOf(t, got) <= index {
		t.Errorf("after a removal: %d at %s", got.status, got.header.Get(api.HeaderIndex))
	}
	path := "/v1/organizations/" + string(org)
	wantProblem(t, k.call(get, path, admin, ""), fault.NotFound)
	read = k.blocked(fmt.Sprintf("%s?index=%d&wait=4m", path, k.store.View().Index()))
	still(t, read, "nothing")
	k.apply(command.PutOrganization{Meta: k.meta(), Organization: org, Name: "Back"})
	if got := soon(t, read); got.status != 200 {
		t.Errorf("after it appeared: %d %s", got.status, got.body)
	}
}

func TestBlockingReadEnds(t *testing.T) {
	k := newKit(t)
	org := k.organization()
	path := "/v1/organizations/" + string(org)
	index := indexOf(t, k.call(get, path, k.tokens[api.RoleAdmin], ""))
	got := soon(t, k.blocked(fmt.Sprintf("%s?index=%d&wait=20ms", path, index)))
	if got.status != 200 || indexOf(t, got) != index {
		t.Errorf("after the wait: %d at %s, want the same as before", got.status, got.header.Get(api.HeaderIndex))
	}
	held := k.blocked(fmt.Sprintf("%s?index=%d&wait=5m", path, index))
	still(t, held, "nothing")
	k.server.Drain()
	if got := soon(t, held); got.status != 200 {
		t.Errorf("at the end of the server: %d %s", got.status, got.body)
	}
}

func TestBlockingReadSurvivesARestore(t *testing.T) {
	k := newKit(t)
	k.organization()
	index := indexOf(t, k.call(get, "/v1/organizations", k.tokens[api.RoleAdmin], ""))
	read := k.blocked(fmt.Sprintf("/v1/organizations?index=%d&wait=4m", index))
	still(t, read, "nothing")
	older := state.New()
	saved := older.Begin()
	saved.Entry(state.Origin{Index: 1, At: k.now()})
	for token := range k.store.View().Tokens(nil) {
		saved.PutToken(*token)
	}
	saved.Commit()
	k.mu.Lock()
	k.store.Replace(older)
	k.index = 1
	k.mu.Unlock()
	if got := soon(t, read); got.status != 200 || string(got.body) != "{\"items\":[]}\n" {
		t.Errorf("after a restore: %d %s", got.status, got.body)
	}
	// What was read before at higher indexes does not disturb the reads of the older state.
	index = indexOf(t, k.call(get, "/v1/organizations", k.tokens[api.RoleAdmin], ""))
	read = k.blocked(fmt.Sprintf("/v1/organizations?index=%d&wait=4m", index))
	still(t, read, "nothing")
	k.organization()
	if got := soon(t, read); got.status != 200 || indexOf(t, got) <= index {
		t.Errorf("after a change of the restored state: %d at %s", got.status, got.header.Get(api.HeaderIndex))
	}
}

// No change is missed by a reader that always asks for what is newer than it has.
func TestFollowingByBlockingReadsMissesNothing(t *testing.T) {
	k := newKit(t)
	org := k.organization()
	const changes = 200
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range changes {
			k.apply(command.PutOrganization{Meta: k.meta(), Organization: org, Name: fmt.Sprint(i)})
			if i%3 == 0 {
				k.organization()
			}
		}
	}()
	defer func() { <-done }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := k.client(api.RoleAdmin)
	var index uint64
	for {
		before := index
		o, err := c.Organization(ctx, string(org), client.Blocking(index, 10*time.Second), client.IndexTo(&index))
		if err != nil {
			t.Fatal(err)
		}
		if index < before {
			t.Fatalf("the index went back from %d to %d", before, index)
		}
		if o.Name == fmt.Sprint(changes-1) {
			return
		}
	}
}

func TestReadsForgetTheOld(t *testing.T) {
	k := newKit(t)
	r := newReads()
	for i := range 3 * readsKept {
		key := fmt.Sprint(i)
		r.begin(key, k.store)
		r.end(key, k.store.View().Index(), state.WatchSet{})
	}
	if n := len(r.young) + len(r.old); n > 2*readsKept {
		t.Errorf("%d readings kept", n)
	}
	if r.lookup(fmt.Sprint(3*readsKept-1)) == nil || r.lookup("0") != nil {
		t.Error("the wrong ones were forgotten")
	}
}

func TestEveryReadCarriesItsIndex(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	for _, path := range []string{"/v1/allocations", "/v1/organizations", "/v1/pools", "/v1/pools/default", "/v1/gateways", "/v1/hosts", "/v1/hosts/h1", "/v1/events", "/v1/status", "/v1/tokens"} {
		if got := k.call(get, path, k.tokens[api.RoleAdmin], ""); got.status != http.StatusOK || indexOf(t, got) == 0 {
			t.Errorf("%s: %d with index %s", path, got.status, got.header.Get(api.HeaderIndex))
		}
	}
}
