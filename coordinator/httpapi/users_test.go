package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
	"github.com/demiurge-platform/demiurge/shared/usertoken/usertokentest"
)

// user is a good token of a platform user, made now.
func (k *kit) user(name string) string {
	k.t.Helper()
	return usertokentest.Sign(k.t, k.issuer, usertokentest.For(name, k.now()))
}

// withMembers makes an organization that alice owns, bob administers and carol is a member of.
func (k *kit) withMembers() id.Organization {
	k.t.Helper()
	org := id.NewOrganization()
	k.apply(command.PutOrganization{Meta: k.meta(), Organization: org, Name: "Example", Members: []command.Member{
		{User: "alice", Role: owner}, {User: "bob", Role: administrator}, {User: "carol", Role: "member"},
	}})
	return org
}

// live is the allocation of an organization, which an operator has started if there was none.
func (k *kit) live(org id.Organization) id.Allocation {
	k.t.Helper()
	if got := k.call(post, "/v1/allocations", k.tokens[api.RolePlatform], `{"organization_id":"`+string(org)+`"}`); got.status/100 != 2 {
		k.t.Fatalf("%d %s", got.status, got.body)
	}
	return k.store.View().LiveAllocation(nil, org).ID
}

// asUser is how a platform user makes a call of the table.
type asUser struct {
	path func(org id.Organization, a id.Allocation) string
	body func(org id.Organization) string
	// stranger is the answer to who is no member, and to everybody where there is no such organization.
	stranger fault.Code
}

// userCalls has every row that platform users may call.
func userCalls() map[string]asUser {
	fixed := func(path string) func(id.Organization, id.Allocation) string {
		return func(id.Organization, id.Allocation) string { return path }
	}
	body := func(org id.Organization) string { return `{"organization_id":"` + string(org) + `"}` }
	none := func(id.Organization) string { return "" }
	return map[string]asUser{
		"start-allocation":   {fixed("/v1/allocations"), body, fault.Forbidden},
		"gateway-start":      {fixed("/gateway/start"), body, fault.Forbidden},
		"gateway-stop":       {fixed("/gateway/stop"), body, fault.Forbidden},
		"release-allocation": {func(_ id.Organization, a id.Allocation) string { return "/v1/allocations/" + string(a) }, none, fault.NotFound},
		"get-organization-allocation": {func(o id.Organization, _ id.Allocation) string {
			return "/v1/organizations/" + string(o) + "/allocation"
		}, none, fault.NotFound},
	}
}

// TestSecurityEveryRouteForMembersAndStrangers: what a platform user may do follows from the membership of
// the one organization that the call is about.
func TestSecurityEveryRouteForMembersAndStrangers(t *testing.T) {
	k := newKit(t)
	k.withGateways(5)
	calls := userCalls()
	org, other := k.withMembers(), id.NewOrganization()
	k.apply(command.PutOrganization{Meta: k.meta(), Organization: other, Name: "Other", Members: []command.Member{{User: "mallory", Role: owner}}})
	for _, rt := range routes() {
		call, ok := calls[rt.name]
		if open := rt.access&(aMember|aManager) != 0; open != ok {
			t.Errorf("%s lets users in: %v, is in the list of this test: %v", rt.name, open, ok)
		}
		if !ok {
			continue
		}
		delete(calls, rt.name)
		for user, may := range map[string]bool{"alice": true, "bob": true, "carol": rt.access&aMember != 0} {
			got := k.call(rt.method, call.path(org, k.live(org)), k.user(user), call.body(org))
			if may && got.status/100 != 2 {
				t.Errorf("%s as %s: %d %s", rt.name, user, got.status, got.body)
			}
			if !may {
				wantProblem(t, got, fault.Forbidden)
			}
		}
		// A member of another organization learns nothing, not even whether there is such a one.
		a := k.live(org)
		real := k.call(rt.method, call.path(org, a), k.user("mallory"), call.body(org))
		wantProblem(t, real, call.stranger)
		absent := id.NewOrganization()
		made := k.call(rt.method, call.path(absent, id.NewAllocation()), k.user("mallory"), call.body(absent))
		wantProblem(t, made, call.stranger)
		if k.store.View().LiveAllocation(nil, org) == nil {
			t.Errorf("%s: a stranger ended the allocation", rt.name)
		}
		strip := func(r reply, org id.Organization) string {
			return strings.NewReplacer(string(org), "O", string(a), "A").Replace(r.problem.Detail)
		}
		if strings.HasPrefix(rt.path, "/v1/allocations/") {
			continue // names the allocation that was asked for, in both cases
		}
		if strip(real, org) != strip(made, absent) {
			t.Errorf("%s tells strangers whether an organization exists:\n%s\n%s", rt.name, real.body, made.body)
		}
	}
	if len(calls) > 0 {
		t.Errorf("no such routes: %v", calls)
	}
}

// TestSecurityRemovedMember: whoever is removed or demoted is refused from that moment on.
func TestSecurityRemovedMember(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	org := k.withMembers()
	a := k.live(org)
	bob := k.user("bob")
	look, stop := "/v1/organizations/"+string(org)+"/allocation", "/v1/allocations/"+string(a)
	admin := k.client(api.RolePlatform)
	ctx := context.Background()
	if got := k.call(get, look, bob, ""); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if _, err := admin.PutMember(ctx, string(org), "bob", api.PutMember{Role: "member"}); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, k.call(del, stop, bob, ""), fault.Forbidden)
	if got := k.call(get, look, bob, ""); got.status != 200 {
		t.Errorf("demoted: %d %s", got.status, got.body)
	}
	if _, err := admin.DeleteMember(ctx, string(org), "bob"); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, k.call(get, look, bob, ""), fault.NotFound)
	wantProblem(t, k.call(del, stop, bob, ""), fault.NotFound)
	wantProblem(t, k.call(post, "/gateway/stop", bob, `{"organization_id":"`+string(org)+`"}`), fault.Forbidden)
	wantProblem(t, k.call(post, "/v1/allocations", bob, `{"organization_id":"`+string(org)+`"}`), fault.Forbidden)
	if _, err := admin.Release(ctx, string(a), 0); err != nil {
		t.Fatal(err)
	}
	if err := admin.DeleteOrganization(ctx, string(org)); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, k.call(post, "/v1/allocations", k.user("alice"), `{"organization_id":"`+string(org)+`"}`), fault.Forbidden)
}

// TestSecurityRemovedMemberWhileReading: a read that is held ends for who is a member no more, without a word
// of what happened since.
func TestSecurityRemovedMemberWhileReading(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	org := k.withMembers()
	k.live(org)
	path := "/v1/organizations/" + string(org) + "/allocation"
	carol := k.user("carol")
	first := k.call(get, path, carol, "")
	answered := make(chan reply, 1)
	go func() { answered <- k.call(get, path+"?wait=5m&index="+first.header.Get(api.HeaderIndex), carol, "") }()
	if _, err := k.client(api.RolePlatform).DeleteMember(context.Background(), string(org), "carol"); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-answered:
		wantProblem(t, got, fault.NotFound)
	case <-time.After(patience):
		t.Fatal("the read goes on")
	}
}

// TestSecurityExpiryWhileReading: no read is held longer than the token counts.
func TestSecurityExpiryWhileReading(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.withMembers()
	k.live(org)
	path := "/v1/organizations/" + string(org) + "/allocation"
	short := usertokentest.Sign(t, k.issuer, usertokentest.For("carol", k.now()).With(usertokentest.Claims{"exp": k.now().Add(-9 * time.Second).Unix(), "iat": nil, "nbf": nil}))
	first := k.call(get, path, k.user("carol"), "")
	answered := make(chan reply, 1)
	go func() { answered <- k.call(get, path+"?wait=5m&index="+first.header.Get(api.HeaderIndex), short, "") }()
	select {
	case got := <-answered:
		if got.status != 200 && got.problem.Code != string(fault.Unauthenticated) { // on a slow machine it has expired before
			t.Errorf("%d %s", got.status, got.body)
		}
	case <-time.After(patience):
		t.Fatal("the read outlives the token")
	}
}

// TestSecurityUserTokens: what is wrong with a token makes no difference to the answer.
func TestSecurityUserTokens(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Limits.Failed = Rate{1e6, 1e6} })
	k.withGateways(1)
	org := k.withMembers()
	k.live(org)
	path := "/v1/organizations/" + string(org) + "/allocation"
	good := usertokentest.For("alice", k.now())
	if got := k.call(get, path, usertokentest.Sign(t, k.issuer, good), ""); got.status != 200 {
		t.Fatalf("a good one: %d %s", got.status, got.body)
	}
	der, err := x509.MarshalPKIXPublicKey(k.issuer.Private.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	evil := usertokentest.NewKey(t, "k1")
	signed := func(change usertokentest.Claims) string { return usertokentest.Sign(t, k.issuer, good.With(change)) }
	var answer string
	for what, token := range map[string]string{
		"expired":         signed(usertokentest.Claims{"exp": k.now().Add(-time.Minute).Unix()}),
		"not yet valid":   signed(usertokentest.Claims{"nbf": k.now().Add(time.Minute).Unix()}),
		"other audience":  signed(usertokentest.Claims{"aud": "billing"}),
		"other issuer":    signed(usertokentest.Claims{"iss": "https://evil.example.org"}),
		"refresh token":   signed(usertokentest.Claims{"token_use": "refresh"}),
		"a year":          signed(usertokentest.Claims{"exp": k.now().AddDate(1, 0, 0).Unix()}),
		"alg none":        usertokentest.Unsigned(t, usertokentest.Claims{"alg": "none", "typ": "JWT"}, good),
		"key confusion":   usertokentest.SignWithSecret(t, "k1", public, good),
		"unknown kid":     usertokentest.Sign(t, usertokentest.NewKey(t, "k2"), good),
		"embedded jwk":    usertokentest.SignWithOwnKey(t, evil, good),
		"embedded jku":    usertokentest.Sign(t, evil, good, "jku", "https://evil.example.org/jwks.json"),
		"embedded x5u":    usertokentest.Sign(t, evil, good, "x5u", "https://evil.example.org/cert.pem"),
		"another key":     usertokentest.Sign(t, evil, good),
		"no user":         signed(usertokentest.Claims{"sub": nil}),
		"a path as user":  signed(usertokentest.Claims{"sub": "../alice"}),
		"oversized":       signed(usertokentest.Claims{"pad": strings.Repeat("x", usertoken.MaxToken)}),
		"no JSON":         "a.b.c",
		"an API token in": strings.Repeat("0", 64) + "..",
	} {
		got := k.call(get, path, token, "")
		wantProblem(t, got, fault.Unauthenticated)
		if answer == "" {
			answer = string(got.body)
		}
		if string(got.body) != answer {
			t.Errorf("%s: the answer tells what is wrong: %s", what, got.body)
		}
	}
	wantProblem(t, k.call(get, path, "", ""), fault.Unauthenticated) // no token
}

// TestSecurityUsersWithoutIssuers: where no issuer is configured, no user gets in.
func TestSecurityUsersWithoutIssuers(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Users = nil })
	wantProblem(t, k.call(post, "/v1/allocations", k.user("alice"), `{"organization_id":"`+string(k.withMembers())+`"}`), fault.Unauthenticated)
}

// TestSecurityUsersAskTheLeader: a coordinator that does not lead does not know who is a member now, not even
// for a caller that is content with an old answer.
func TestSecurityUsersAskTheLeader(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.withMembers()
	k.live(org)
	k.cluster.leader.Store(false)
	path := "/v1/organizations/" + string(org) + "/allocation"
	if got := k.call(get, path+"?consistency=stale", k.tokens[api.RoleReader], ""); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	for _, query := range []string{"", "?consistency=stale"} {
		wantProblem(t, k.call(get, path+query, k.user("alice"), ""), fault.NoLeader)
	}
	row := &route{method: get}
	for secret, want := range map[string]bool{k.tokens[api.RoleReader]: false, k.user("alice"): true, "a.b.c": true, "": false} {
		r, err := http.NewRequest(get, path+"?consistency=stale", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+secret)
		follower := &Server{opts: Options{Peers: http.DefaultTransport, Cluster: k.cluster}}
		if follower.elsewhere(row, r) != want {
			t.Errorf("a stale read with %.10q is passed on: %v", secret, !want)
		}
	}
}

// TestUserRateLimit: users are limited each for itself, whatever tokens they come with, and less is allowed
// to them than to the platform.
func TestUserRateLimit(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Limits = Limits{User: Rate{PerSecond: 0.001, Burst: 3}} })
	k.withGateways(1)
	org := k.withMembers()
	k.live(org)
	path := "/v1/organizations/" + string(org) + "/allocation"
	for range 3 {
		if got := k.call(get, path, k.user("alice"), ""); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	wantProblem(t, k.call(get, path, k.user("alice"), ""), fault.RateLimited)
	for _, caller := range []string{k.user("bob"), k.tokens[api.RolePlatform]} {
		if got := k.call(get, path, caller, ""); got.status != 200 {
			t.Errorf("another caller: %d %s", got.status, got.body)
		}
	}
}

// TestUsersDoAsTheyMay: the calls of a user are the same as the platform's, and are told apart in the events.
func TestUsersDoAsTheyMay(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.withMembers()
	body := `{"organization_id":"` + string(org) + `"}`
	started := k.call(post, "/v1/allocations", k.user("carol"), body, "Idempotency-Key", "k")
	if started.status != http.StatusCreated {
		t.Fatalf("%d %s", started.status, started.body)
	}
	var a api.Allocation
	if err := json.Unmarshal(started.body, &a); err != nil {
		t.Fatal(err)
	}
	if got := k.call(post, "/gateway/start", k.user("bob"), body); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := k.call(del, "/v1/allocations/"+a.AllocationID, k.user("bob"), ""); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	actors := map[string]string{}
	events, _, _ := k.store.Events(state.EventID{}, state.KeptEvents)
	for _, e := range events {
		if string(e.Allocation) == a.AllocationID {
			actors[e.After] = e.Actor + " " + e.Source
		}
	}
	if actors["reserved"] != "user/platform/carol 127.0.0.1" || actors["releasing"] != "user/platform/bob 127.0.0.1" {
		t.Errorf("actors %v", actors)
	}
}

// TestSecurityP15UserTokensStayOutOfTheLog: neither a good nor a bad token is in it, nor in an answer.
func TestSecurityP15UserTokensStayOutOfTheLog(t *testing.T) {
	var log logged
	k := newKit(t, func(o *Options) { o.Logger = hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace}) })
	good := k.user("alice")
	bad := usertokentest.Sign(t, usertokentest.NewKey(t, "k1"), usertokentest.For("alice", k.now()))
	for _, token := range []string{good, bad, "a.b." + strings.Repeat("c", 50)} {
		got := k.call(get, "/v1/pools", token, "")
		if got.status/100 != 4 {
			t.Errorf("%d %s", got.status, got.body)
		}
		for _, part := range strings.Split(token, ".") {
			if len(part) > 20 && (strings.Contains(log.String(), part) || strings.Contains(string(got.body), part)) {
				t.Error("a part of a token was told")
			}
		}
	}
	if !strings.Contains(log.String(), "signature is invalid") {
		t.Errorf("the log does not say why: %s", log.String())
	}
}

// TestEveryRefusedCallIsAnEvent: whoever is refused at whatever row, for having no right or no fitting one,
// is in the events with actor, source and the row.
func TestEveryRefusedCallIsAnEvent(t *testing.T) {
	k := newKit(t, func(o *Options) {
		o.Limits = Limits{Failed: Rate{1e6, 1e6}, User: Rate{1e6, 1e6}}
	})
	org := k.withMembers()
	mallory := k.user("mallory")
	holder := k.store.View().TokenByHash(hashOf(k.tokens[api.RoleReader]))
	for _, rt := range routes() {
		if rt.access == public {
			continue
		}
		row := rt.method + " " + rt.path
		path := strings.NewReplacer("{id}", string(org), "{name}", "p", "{user_id}", "u", "{project_id}", "p").Replace(rt.path)
		want := map[string]bool{"anonymous " + string(fault.Unauthenticated): true}
		k.call(rt.method, path, "", "")
		switch {
		case rt.access&(agent|joiner) != 0: // they ask for no token
		case rt.access&reader == 0:
			want[string(holder.ID)+" "+string(fault.Forbidden)] = true
			k.call(rt.method, path, k.tokens[api.RoleReader], "")
		}
		if rt.access&(agent|joiner|aMember|aManager) == 0 {
			want["user/platform/mallory "+string(fault.Forbidden)] = true
			k.call(rt.method, path, mallory, "")
		} else if call, ok := userCalls()[rt.name]; ok && call.stranger == fault.Forbidden {
			want["user/platform/mallory "+string(fault.Forbidden)] = true
			k.call(rt.method, call.path(org, ""), mallory, call.body(org))
		}
		k.server.refusals.record(context.Background()) // sooner than it would by itself
		eventually(t, row+" is in the events", func() bool {
			missing := len(want)
			events, _, _ := k.store.Events(state.EventID{}, state.KeptEvents)
			for _, e := range events {
				if e.Type == eventRefused && want[e.Actor+" "+string(e.Code)] && e.Source == "127.0.0.1" && strings.Contains(e.Reason, row+" ") {
					missing--
				}
			}
			return missing <= 0
		})
	}
}

// TestAFloodOfOriginsIsBounded: few entries of the log tell of many callers, and none is left out.
func TestAFloodOfOriginsIsBounded(t *testing.T) {
	seen := map[refusal]int{}
	for i := range refusalKinds {
		seen[refusal{code: fault.Forbidden, route: "GET /", actor: "tk-" + strconv.Itoa(i), address: "192.0.2.1"}] = 1
	}
	seen[refusal{code: fault.Unauthenticated, route: "GET /", actor: "tk-1", address: "192.0.2.1"}] = 1
	made := entries(seen, 7, time.Now())
	told := 0
	for _, e := range made {
		told += len(e.Events)
		if e.Actor == "" || e.Actor != gateActor && e.Source == "" {
			t.Errorf("no origin: %+v", e.Meta)
		}
	}
	if len(made) != refusalOrigins+1 || told != len(seen)+1 {
		t.Errorf("%d entries tell of %d", len(made), told)
	}
}

// hashOf is how the store knows a secret.
func hashOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
