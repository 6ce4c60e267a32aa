package httpapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// The tests of this file are named after the defects of the platform that this one replaces, as far as a coordinator can
// have them.

// P1: a signing call that signs any claims a gateway sends. A host's certificate is for that host, whatever it asks for.
func TestP1_AHostIsSignedNothingButItself(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Limits.Failed = Rate{1e6, 1e6} })
	token, e := k.joinToken(pki.RoleAgent, "h1"), k.enrolment()
	wantProblem(t, k.join(token.Secret, e, pki.RoleCoordinator, "h1"), fault.Forbidden)
	wantProblem(t, k.join(token.Secret, e, pki.RoleAgent, "h2"), fault.Forbidden)
	k.accepted(k.join(token.Secret, e, pki.RoleAgent, "h1"), e, pki.RoleAgent, "h1")
	k.enroll("h3")
	h3 := k.certified(k.trust.credentials(pki.RoleAgent, "h3", k.now()))
	wantProblem(t, k.renew(h3, k.enrolment(), pki.RoleAgent, "h2"), fault.Forbidden)
	wantProblem(t, k.renew(h3, k.enrolment(), pki.RoleCoordinator, "h3"), fault.Forbidden)
	wantProblem(t, k.call(post, "/v1/tokens", h3, `{"role":"admin","name":"x"}`), fault.Unauthenticated)
}

// P3: an unauthenticated start route. Without a login nothing starts or stops, and the old names are no other door.
func TestP3_NothingStartsWithoutALogin(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Limits.Failed = Rate{1e6, 1e6} })
	k.withGateways(1)
	org := k.withMembers()
	body := `{"organization_id":"` + string(org) + `"}`
	for _, path := range []string{"/v1/allocations", "/gateway/start"} {
		wantProblem(t, k.call(post, path, "", body), fault.Unauthenticated)
	}
	if k.store.View().LiveAllocation(nil, org) != nil {
		t.Fatal("something has started")
	}
	a := k.live(org)
	wantProblem(t, k.call(post, "/gateway/stop", "", body), fault.Unauthenticated)
	wantProblem(t, k.call(del, "/v1/allocations/"+string(a), "", ""), fault.Unauthenticated)
	if live := k.store.View().LiveAllocation(nil, org); live == nil || live.ID != a {
		t.Error("it was ended")
	}
}

// P4: a check of nothing but "has some access". A plain member may start and look, and may not stop.
func TestP4_SomeAccessIsNotEveryAccess(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.withMembers()
	a := k.live(org)
	wantProblem(t, k.call(del, "/v1/allocations/"+string(a), k.user("carol"), ""), fault.Forbidden)
	wantProblem(t, k.call(post, "/gateway/stop", k.user("carol"), `{"organization_id":"`+string(org)+`"}`), fault.Forbidden)
	if live := k.store.View().LiveAllocation(nil, org); live == nil || live.ID != a {
		t.Fatal("a plain member ended it")
	}
	if got := k.call(del, "/v1/allocations/"+string(a), k.user("bob"), ""); got.status != http.StatusOK {
		t.Errorf("an admin of the organization: %d %s", got.status, got.body)
	}
}

// P5: the check reads the organization from one place, the handler from another. Who owns one organization reaches no
// other by naming both.
func TestP5_WhatIsCheckedIsWhatIsDone(t *testing.T) {
	k := newKit(t)
	k.withGateways(2)
	org, own := k.withMembers(), id.NewOrganization()
	k.apply(command.PutOrganization{Meta: k.meta(), Organization: own, Name: "Own", Members: []command.Member{{User: "mallory", Role: owner}}})
	a, mallory := k.live(org), k.user("mallory")
	k.live(own)
	other := `{"organization_id":"` + string(own) + `"}`
	both := `{"organization_id":"` + string(own) + `","organization_id":"` + string(org) + `"}`
	for what, got := range map[string]reply{
		"an id of one, the body of the other":  k.call(del, "/v1/allocations/"+string(a), mallory, other),
		"an id of one, the query of the other": k.call(del, "/v1/allocations/"+string(a)+"?organization_id="+string(own), mallory, ""),
		"the path of one, the query of other":  k.call(get, "/v1/organizations/"+string(org)+"/allocation?organization_id="+string(own), mallory, ""),
		"the body of one, the query of other":  k.call(post, "/gateway/stop?organization_id="+string(own), mallory, `{"organization_id":"`+string(org)+`"}`),
		"a body that names both":               k.call(post, "/gateway/stop", mallory, both),
	} {
		if got.status/100 == 2 && strings.Contains(string(got.body), string(org)) {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	if live := k.store.View().LiveAllocation(nil, org); live == nil || live.ID != a {
		t.Error("the allocation of another organization was ended")
	}
}

// P6: roles ignored at the door, so that plain members are locked out.
func TestP6_APlainMemberMayStartAndLook(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.withMembers()
	if got := k.call(post, "/v1/allocations", k.user("carol"), `{"organization_id":"`+string(org)+`"}`); got.status != http.StatusCreated {
		t.Fatalf("start: %d %s", got.status, got.body)
	}
	if got := k.call(get, "/v1/organizations/"+string(org)+"/allocation", k.user("carol"), ""); got.status != http.StatusOK {
		t.Errorf("look: %d %s", got.status, got.body)
	}
}

// P7: an admin of an organization makes himself owner; the last owner is removed.
func TestP7_OwnersAreNeitherMadeByThemselvesNorLost(t *testing.T) {
	k := newKit(t)
	org := k.withMembers()
	members := "/v1/organizations/" + string(org) + "/members/"
	wantProblem(t, k.call(put, members+"bob", k.user("bob"), `{"role":"owner"}`), fault.Forbidden)
	wantProblem(t, k.call(put, "/v1/organizations/"+string(org), k.user("bob"), `{"name":"Mine","members":[{"user_id":"bob","role":"owner"}]}`), fault.Forbidden)
	platform := k.tokens[api.RolePlatform]
	wantProblem(t, k.call(del, members+"alice", platform, ""), fault.Conflict)
	wantProblem(t, k.call(put, members+"alice", platform, `{"role":"member"}`), fault.Conflict)
	wantProblem(t, k.call(put, "/v1/organizations/"+string(org), platform, `{"name":"Example","members":[{"user_id":"bob","role":"admin"}]}`), fault.Conflict)
	for _, m := range k.store.View().Organization(nil, org).Members {
		if (m.Role == owner) != (m.User == "alice") {
			t.Errorf("%s is %s", m.User, m.Role)
		}
	}
}

// P8: removal or demotion of a member never reaches the running gateway. The next call is refused, and what the agent
// is told of its gateway has changed.
func TestP8_ARemovalCountsAtOnceAndReachesTheGateway(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	org := k.withMembers()
	k.live(org)
	gateway := k.store.View().LiveAllocation(nil, org).Gateway
	look := "/v1/organizations/" + string(org) + "/allocation"
	if got := k.call(get, look, k.user("carol"), ""); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	told := k.store.View().Gateway(nil, gateway).Desired.Index
	if got := k.call(del, "/v1/organizations/"+string(org)+"/members/carol", k.tokens[api.RolePlatform], ""); got.status/100 != 2 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	wantProblem(t, k.call(get, look, k.user("carol"), ""), fault.NotFound)
	if now := k.store.View().Gateway(nil, gateway).Desired.Index; now <= told {
		t.Errorf("the agent is not told: index %d, before %d", now, told)
	}
}

// P16: the caller's address behind two proxies is the inner proxy, so that all share one limit. Behind a follower each
// caller has its own, and nobody chooses another by what he says of himself.
func TestP16_EachCallerHasALimitOfItsOwn(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Limits = Limits{Failed: Rate{PerSecond: 0.001, Burst: 2}} })
	peers := httptest.NewServer(k.server.PeerHandler())
	defer peers.Close()
	ask := func(caller string) int {
		req, err := http.NewRequest(get, peers.URL+"/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(headerCaller, caller)
		req.Header.Set("Authorization", "Bearer 0000")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for n, want := range []int{http.StatusUnauthorized, http.StatusUnauthorized, http.StatusTooManyRequests} {
		if got := ask("192.0.2.1"); got != want {
			t.Errorf("call %d of the first: %d, want %d", n, got, want)
		}
	}
	if got := ask("192.0.2.2"); got != http.StatusUnauthorized {
		t.Errorf("the second caller pays for the first: %d", got)
	}
	for n, want := range []int{http.StatusUnauthorized, http.StatusUnauthorized, http.StatusTooManyRequests} {
		got := k.call(get, "/v1/status", "0000", "", "X-Forwarded-For", "198.51.100."+string(rune('1'+n)), headerCaller, "198.51.100."+string(rune('1'+n)))
		if got.status != want {
			t.Errorf("call %d of one that names other addresses: %d, want %d", n, got.status, want)
		}
	}
}
