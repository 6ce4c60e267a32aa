package httpapi

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// joinToken makes a join token over the API.
func (k *kit) joinToken(role pki.Role, name string) api.CreatedJoinToken {
	k.t.Helper()
	made, err := k.client(api.RoleAdmin).CreateJoinToken(context.Background(), api.CreateJoinToken{Role: string(role), Name: name})
	if err != nil {
		k.t.Fatal(err)
	}
	return made
}

// enrolment is the key of a program that wants to join.
func (k *kit) enrolment() *pki.Enrolment {
	k.t.Helper()
	e, err := pki.NewEnrolment()
	if err != nil {
		k.t.Fatal(err)
	}
	return e
}

// join sends a request to join.
func (k *kit) join(secret string, e *pki.Enrolment, role pki.Role, name string) reply {
	k.t.Helper()
	return k.call(post, "/v1/join", secret, k.joinRequest(e, role, name))
}

// renew sends a request for the next certificate.
func (k *kit) renew(caller string, e *pki.Enrolment, role pki.Role, name string) reply {
	k.t.Helper()
	return k.call(post, "/v1/agent/certificate", caller, k.joinRequest(e, role, name))
}

func (k *kit) joinRequest(e *pki.Enrolment, role pki.Role, name string) string {
	k.t.Helper()
	body, err := json.Marshal(api.JoinRequest{CSR: e.Request(), Role: string(role), Name: name, Version: "test"})
	if err != nil {
		k.t.Fatal(err)
	}
	return string(body)
}

// accepted checks an answer as the program that joins does.
func (k *kit) accepted(r reply, e *pki.Enrolment, role pki.Role, name string) api.JoinCluster {
	k.t.Helper()
	var a api.JoinAnswer
	if err := json.Unmarshal(r.body, &a); r.status != 200 || err != nil {
		k.t.Fatalf("%d %s", r.status, r.body)
	}
	if _, err := e.Accept(a.Certificate, a.CA, k.trust.identity(role, name), k.now()); err != nil {
		k.t.Errorf("the answer cannot be used: %v", err)
	}
	if r.header.Get("Cache-Control") != "no-store" {
		k.t.Error("the answer may be kept by caches")
	}
	return a.Cluster
}

func TestJoin(t *testing.T) {
	k := newKit(t)
	token, e := k.joinToken(pki.RoleAgent, ""), k.enrolment()
	got := k.accepted(k.join(token.Secret, e, pki.RoleAgent, "h8"), e, pki.RoleAgent, "h8")
	if got.ClusterID != k.trust.cluster || len(got.APIAddresses) != 1 || got.GossipKey == "" || got.ClusterKey != "" || got.Trust != nil {
		t.Errorf("a host gets %+v", got)
	}
	listed, err := k.client(api.RoleOperator).ListJoinTokens(context.Background())
	used := slices.ContainsFunc(listed, func(j api.JoinToken) bool {
		return j.JoinTokenID == token.JoinTokenID && j.UsedBy == "h8" && j.UsedAt != nil
	})
	if err != nil || !used {
		t.Errorf("%+v, %v", listed, err)
	}
	coordinator := k.joinToken(pki.RoleCoordinator, "c2")
	got = k.accepted(k.join(coordinator.Secret, e, pki.RoleCoordinator, "c2"), e, pki.RoleCoordinator, "c2")
	if got.ClusterKey == "" || got.Trust == nil {
		t.Errorf("a coordinator gets %+v", got)
	}
	enrolled, _, _ := k.store.Events(state.EventID{}, state.KeptEvents)
	if last := enrolled[len(enrolled)-1]; last.Type != "coordinator.enrolled" || last.Actor != coordinator.JoinTokenID || last.Source != "127.0.0.1" {
		t.Errorf("event %+v", last)
	}
}

// A program whose answer was lost asks again with the same key; nobody else can use the token.
func TestReplayedJoinTokenIsRefused(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Limits.Failed = Rate{0.001, 4} })
	token, e := k.joinToken(pki.RoleAgent, ""), k.enrolment()
	k.accepted(k.join(token.Secret, e, pki.RoleAgent, "h8"), e, pki.RoleAgent, "h8")
	k.accepted(k.join(token.Secret, e, pki.RoleAgent, "h8"), e, pki.RoleAgent, "h8")
	wantProblem(t, k.join(token.Secret, k.enrolment(), pki.RoleAgent, "h8"), fault.Unauthenticated)
	wantProblem(t, k.join(token.Secret, k.enrolment(), pki.RoleAgent, "h9"), fault.Unauthenticated)
	wantProblem(t, k.join(token.Secret, e, pki.RoleAgent, "h9"), fault.Unauthenticated)
	if k.store.View().Enrolment(nil, "agent", "h9") != nil {
		t.Error("a replayed token let somebody in")
	}
	k.apply(command.DeleteEnrolment{Meta: k.meta(), Role: "agent", Name: "h8"})
	wantProblem(t, k.join(token.Secret, e, pki.RoleAgent, "h8"), fault.Unauthenticated)
	wantProblem(t, k.join(token.Secret, e, pki.RoleAgent, "h8"), fault.RateLimited) // failures of one address
	eventually(t, "the refusals are recorded", func() bool { return strings.Contains(k.refused(), "POST /v1/join by "+token.JoinTokenID) })
}

// refused is what the events say of refusals.
func (k *kit) refused() string {
	var b strings.Builder
	events, _, _ := k.store.Events(state.EventID{}, state.KeptEvents)
	for _, e := range events {
		if e.Type == eventRefused {
			b.WriteString(e.Reason + "\n")
		}
	}
	return b.String()
}

func TestExpiredJoinTokenIsRefused(t *testing.T) {
	k := newKit(t)
	token := k.joinToken(pki.RoleAgent, "")
	k.offset.Store(int64(joinTTL))
	wantProblem(t, k.join(token.Secret, k.enrolment(), pki.RoleAgent, "h1"), fault.Unauthenticated)
	eventually(t, "the refusal is recorded", func() bool { return strings.Contains(k.refused(), "POST /v1/join by anonymous from 127.0.0.1") })
}

func TestJoinTokenIsGoodForWhatItWasMadeFor(t *testing.T) {
	k := newKit(t, func(o *Options) { o.Limits.Failed = Rate{1e6, 1e6} })
	token, e := k.joinToken(pki.RoleAgent, "h1"), k.enrolment()
	wantProblem(t, k.join(token.Secret, e, pki.RoleCoordinator, "h1"), fault.Forbidden)
	wantProblem(t, k.join(token.Secret, e, pki.RoleAgent, "h2"), fault.Forbidden)
	other := pki.NewJoinToken(k.trust.Pin())
	for what, secret := range map[string]string{
		"no token": "", "no join token": k.tokens[api.RoleAdmin], "unknown": other.Reveal(), "cut off": token.Secret[:40],
		"the secret of another": strings.Replace(token.Secret, strings.Split(token.Secret, ".")[2], strings.Split(other.Reveal(), ".")[2], 1),
	} {
		got := k.join(secret, e, pki.RoleAgent, "h1")
		if wantProblem(t, got, fault.Unauthenticated); t.Failed() {
			t.Fatal(what)
		}
	}
	for what, body := range map[string]string{
		"no request": `{"csr":"x","role":"agent","name":"h1","version":"1"}`, "no name": `{"csr":"` + strings.ReplaceAll(e.Request(), "\n", `\n`) + `","role":"agent","name":"..","version":"1"}`,
	} {
		got := k.call(post, "/v1/join", token.Secret, body)
		if wantProblem(t, got, fault.InvalidRequest); t.Failed() {
			t.Fatal(what)
		}
	}
	k.accepted(k.join(token.Secret, e, pki.RoleAgent, "h1"), e, pki.RoleAgent, "h1") // none of it used the token up
	if err := k.client(api.RoleOperator).DeleteJoinToken(context.Background(), token.JoinTokenID); err != nil {
		t.Error(err)
	}
	wantProblem(t, k.join(token.Secret, e, pki.RoleAgent, "h1"), fault.Unauthenticated)
	k.cluster.leader.Store(false)
	wantProblem(t, k.join(other.Reveal(), e, pki.RoleAgent, "h1"), fault.NoLeader)
}

func TestJoinTokensOverTheAPI(t *testing.T) {
	k := newKit(t)
	ctx := context.Background()
	operator := k.client(api.RoleOperator)
	status := 0
	ttl := api.Duration(30 * time.Minute)
	first, err := operator.CreateJoinToken(ctx, api.CreateJoinToken{Role: "agent", Name: "h1", TTL: &ttl}, client.IdempotencyKey("one"), client.StatusTo(&status))
	if err != nil || status != 201 || first.Secret == "" || first.ExpiresAt.Sub(first.CreatedAt) != 30*time.Minute {
		t.Fatalf("%d %+v, %v", status, first, err)
	}
	again, err := operator.CreateJoinToken(ctx, api.CreateJoinToken{Role: "agent", Name: "h1", TTL: &ttl}, client.IdempotencyKey("one"), client.StatusTo(&status))
	if err != nil || status != 200 || again.Secret != "" || again.JoinTokenID != first.JoinTokenID {
		t.Errorf("%d %+v, %v", status, again, err)
	}
	if _, err = operator.CreateJoinToken(ctx, api.CreateJoinToken{Role: "coordinator"}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("an operator brings in a coordinator: %v", err)
	}
	for _, bad := range []string{`{"role":"admin"}`, `{"role":"agent","name":"../x"}`, `{"role":"agent","ttl":"0s"}`, `{"role":"agent","ttl":"25h"}`, `{"role":"agent","ttl":"-1s"}`, `{}`} {
		wantProblem(t, k.call(post, "/v1/join-tokens", k.tokens[api.RoleAdmin], bad), fault.InvalidRequest)
	}
	for _, listed := range []reply{k.call(get, "/v1/join-tokens", k.tokens[api.RoleOperator], ""), k.call(get, "/v1/events", k.tokens[api.RoleReader], "")} {
		if secret := strings.Split(first.Secret, ".")[2]; strings.Contains(string(listed.body), secret) {
			t.Errorf("the secret is in %s", listed.body)
		}
	}
	wantProblem(t, k.call(del, "/v1/join-tokens/jt-aaaaaaaaaa", k.tokens[api.RoleAdmin], ""), fault.NotFound)
}
