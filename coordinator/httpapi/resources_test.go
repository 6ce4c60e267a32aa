package httpapi

import (
	"context"
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

func TestOrganizations(t *testing.T) {
	k := newKit(t)
	k.withGateways(1)
	ctx, platform := context.Background(), k.client(api.RolePlatform)
	org := string(id.NewOrganization())
	status := 0
	in := api.PutOrganization{
		Name:     "Example",
		Members:  []api.Member{{UserID: "zoe", Username: "Zoe", Role: "member"}, {UserID: "ada", Role: "owner"}},
		Projects: []api.Project{{ProjectID: "p2", Name: "Two"}, {ProjectID: "p1"}},
	}
	made, err := platform.PutOrganization(ctx, strings.ToUpper(org), in, client.StatusTo(&status))
	if err != nil || status != http.StatusCreated {
		t.Fatalf("%d %v", status, err)
	}
	if made.OrganizationID != org || made.Name != "Example" || made.Hostname != "org-"+org+".example.test" || made.Index == 0 || made.CreatedAt.IsZero() ||
		len(made.Members) != 2 || made.Members[0].UserID != "ada" || len(made.Projects) != 2 || made.Projects[0].ProjectID != "p1" {
		t.Errorf("made %+v", made)
	}
	if _, err := platform.PutOrganization(ctx, org, in, client.StatusTo(&status)); err != nil || status != http.StatusOK {
		t.Errorf("second put: %d %v", status, err)
	}
	o, err := platform.PutMember(ctx, org, "bob@example.org", api.PutMember{Username: "Bob", Role: "admin"})
	if err != nil || !slices.ContainsFunc(o.Members, func(m api.Member) bool { return m.UserID == "bob@example.org" && m.Role == "admin" }) {
		t.Errorf("put member: %+v, %v", o.Members, err)
	}
	if o, err = platform.DeleteMember(ctx, org, "zoe"); err != nil || len(o.Members) != 2 {
		t.Errorf("delete member: %+v, %v", o.Members, err)
	}
	if _, err = platform.DeleteMember(ctx, org, "ada"); !fault.Is(err, fault.Conflict) {
		t.Errorf("delete of the last owner: %v", err)
	}
	if o, err = platform.PutProject(ctx, org, "p3", api.PutProject{Name: "Three"}); err != nil || len(o.Projects) != 3 {
		t.Errorf("put project: %+v, %v", o.Projects, err)
	}
	if o, err = platform.DeleteProject(ctx, org, "p3"); err != nil || len(o.Projects) != 2 {
		t.Errorf("delete project: %+v, %v", o.Projects, err)
	}
	a, _, err := platform.Start(ctx, api.StartAllocation{OrganizationID: org})
	if err != nil {
		t.Fatal(err)
	}
	if o, err = platform.Organization(ctx, org); err != nil || o.AllocationID != a.AllocationID {
		t.Errorf("live allocation of %+v, %v", o, err)
	}
	if err := platform.DeleteOrganization(ctx, org); !fault.Is(err, fault.OrganizationActive) {
		t.Errorf("delete while allocated: %v", err)
	}
	if _, err := platform.Release(ctx, a.AllocationID, 0); err != nil {
		t.Fatal(err)
	}
	if err := platform.DeleteOrganization(ctx, org); err != nil {
		t.Errorf("delete: %v", err)
	}
	for what, err := range map[string]error{
		"get":         second(platform.Organization(ctx, org)),
		"delete":      platform.DeleteOrganization(ctx, org),
		"put member":  second(platform.PutMember(ctx, org, "u", api.PutMember{Role: "member"})),
		"put project": second(platform.PutProject(ctx, org, "p", api.PutProject{})),
		"allocation":  second(platform.OrganizationAllocation(ctx, org)),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s of what is not there: %v", what, err)
		}
	}
	if list, err := platform.ListOrganizations(ctx); err != nil || len(list) != 0 {
		t.Errorf("list %+v, %v", list, err)
	}
	twice := api.PutOrganization{Name: "x", Members: []api.Member{{UserID: "u", Role: "owner"}, {UserID: "u", Role: "member"}}}
	if _, err := platform.PutOrganization(ctx, org, twice); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a member twice: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestPools(t *testing.T) {
	k := newKit(t)
	ctx, operator := context.Background(), k.client(api.RoleOperator)
	status := 0
	p, err := operator.PutPool(ctx, "large", api.PutPool{}, client.StatusTo(&status))
	if err != nil || status != http.StatusCreated {
		t.Fatalf("%d %v", status, err)
	}
	if p.MinReady != 2 || p.Step != 3 || p.Max != 50 || p.MaxInFlight != 10 || p.Isolation != "serve" || p.ActivationTimeout != api.Duration(10*time.Second) || p.Breaker != "closed" {
		t.Errorf("defaults %+v", p)
	}
	limits, timeout, release, four := api.Limits{MemoryBytes: 1 << 20, BodyBytes: 7}, api.Duration(3*time.Second), "v1.2.3", 4
	if p, err = operator.PutPool(ctx, "large", api.PutPool{Limits: &limits, ActivationTimeout: &timeout, Release: &release, MinReady: &four}, client.StatusTo(&status)); err != nil || status != http.StatusOK {
		t.Fatalf("%d %v", status, err)
	}
	if p.MinReady != 4 || p.Max != 50 || p.Limits != limits || p.ActivationTimeout != timeout || p.Release != release {
		t.Errorf("changed %+v", p)
	}
	few := api.Limits{MemoryBytes: 5}
	if _, err := operator.PutPool(ctx, "large", api.PutPool{Limits: &few}); !fault.Is(err, fault.InvalidRequest) || !strings.Contains(err.Error(), "1048576") {
		t.Errorf("five bytes of memory: %v", err)
	}
	none := api.Limits{}
	if p, err := operator.PutPool(ctx, "large", api.PutPool{Limits: &none}); err != nil || p.Limits != none {
		t.Errorf("no limits any more: %+v, %v", p.Limits, err)
	}
	k.withGateways(3)
	if p, err = operator.Pool(ctx, "default"); err != nil || p.Counts.Ready != 3 || p.Counts.Total != 3 {
		t.Errorf("counts %+v, %v", p.Counts, err)
	}
	if list, err := operator.ListPools(ctx); err != nil || len(list) != 2 || list[0].Name != "default" {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := operator.DeletePool(ctx, "large"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := operator.Pool(ctx, "large"); !fault.Is(err, fault.NotFound) {
		t.Errorf("get after delete: %v", err)
	}
	if err := operator.DeletePool(ctx, "large"); !fault.Is(err, fault.NotFound) {
		t.Errorf("delete of what is not there: %v", err)
	}
	if _, _, err := operator.Start(ctx, start(k.organization())); err != nil {
		t.Fatal(err)
	}
	if err := operator.DeletePool(ctx, "default"); fault.From(err).Status() != http.StatusConflict {
		t.Errorf("delete of a pool in use: %v", err)
	}
}

func TestGatewaysAndHosts(t *testing.T) {
	k := newKit(t)
	gateways := k.withGateways(3)
	ctx, operator := context.Background(), k.client(api.RoleOperator)
	a, _, err := operator.Start(ctx, start(k.organization()))
	if err != nil {
		t.Fatal(err)
	}
	list, err := operator.ListGateways(ctx, client.GatewayFilter{State: api.GatewayReady})
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if list, err := operator.ListGateways(ctx, client.GatewayFilter{OrganizationID: a.OrganizationID}); err != nil || len(list) != 1 ||
		list[0].GatewayID != a.GatewayID || list[0].Epoch != a.Epoch || list[0].AllocationID != a.AllocationID || list[0].State != api.GatewayAllocated {
		t.Errorf("gateway of the organization %+v, %v", list, err)
	}
	free := list[0].GatewayID
	g, err := operator.QuarantineGateway(ctx, free)
	if err != nil || g.State != api.GatewayQuarantined {
		t.Errorf("quarantine %+v, %v", g, err)
	}
	if g, err = operator.RecycleGateway(ctx, free); err != nil || g.State != api.GatewayRecycling || g.Incarnation != 2 {
		t.Errorf("recycle %+v, %v", g, err)
	}
	if _, err := operator.RecycleGateway(ctx, a.GatewayID); !fault.Is(err, fault.OrganizationActive) {
		t.Errorf("recycle of one in use: %v", err)
	}
	if g, err = operator.Gateway(ctx, string(gateways[0])); err != nil || g.HostID != "h1" || g.Pool != "default" || g.BootID == "" {
		t.Errorf("gateway %+v, %v", g, err)
	}
	h, err := operator.CordonHost(ctx, "h1")
	if err != nil || h.Schedulable || h.Capacity != 3 || h.Gateways != 3 || h.Allocated != 1 || h.Address != "192.0.2.1" || h.State != api.HostAlive {
		t.Errorf("cordoned %+v, %v", h, err)
	}
	if h.Nginx.Routes != 7 || h.LastSeen == nil {
		t.Errorf("what the agent said last is missing: %+v", h)
	}
	if h, err = operator.UncordonHost(ctx, "h1"); err != nil || !h.Schedulable {
		t.Errorf("uncordoned %+v, %v", h, err)
	}
	if hosts, err := operator.ListHosts(ctx); err != nil || len(hosts) != 1 {
		t.Errorf("hosts %+v, %v", hosts, err)
	}
	if err := operator.DeleteHost(ctx, "h1"); !fault.Is(err, fault.OrganizationActive) {
		t.Errorf("delete of a host in use: %v", err)
	}
	for what, err := range map[string]error{
		"gateway":    second(operator.Gateway(ctx, "gw-abcdefghij")),
		"recycle":    second(operator.RecycleGateway(ctx, "gw-abcdefghij")),
		"quarantine": second(operator.QuarantineGateway(ctx, "gw-abcdefghij")),
		"host":       second(operator.Host(ctx, "h9")),
		"cordon":     second(operator.CordonHost(ctx, "h9")),
		"delete":     operator.DeleteHost(ctx, "h9"),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s of what is not there: %v", what, err)
		}
	}
	k.apply(command.ObserveHost{Meta: k.meta(), Host: "h2", Instance: "i", Full: true, Report: &command.HostReport{NginxState: api.NginxServing}})
	if err := operator.DeleteHost(ctx, "h2"); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func TestTokens(t *testing.T) {
	k := newKit(t)
	ctx, admin := context.Background(), k.client(api.RoleAdmin)
	ttl := api.Duration(time.Hour)
	status := 0
	made, err := admin.CreateToken(ctx, api.CreateToken{Role: api.RoleReader, Name: "a dashboard", TTL: &ttl}, client.IdempotencyKey("one"), client.StatusTo(&status))
	if err != nil || status != http.StatusCreated || len(made.Secret) != 64 || made.ExpiresAt == nil || made.Name != "a dashboard" {
		t.Fatalf("%d %+v, %v", status, made, err)
	}
	again, err := admin.CreateToken(ctx, api.CreateToken{Role: api.RoleReader, Name: "a dashboard", TTL: &ttl}, client.IdempotencyKey("one"), client.StatusTo(&status))
	if err != nil || status != http.StatusOK || again.TokenID != made.TokenID || again.Secret != "" {
		t.Errorf("the same key: %d %+v, %v", status, again, err)
	}
	got := k.call(get, "/v1/tokens", k.tokens[api.RoleAdmin], "")
	if got.status != 200 || !strings.Contains(string(got.body), made.TokenID) || strings.Contains(string(got.body), made.Secret) || strings.Contains(string(got.body), "hash") {
		t.Errorf("list %d %s", got.status, got.body)
	}
	if list, err := admin.ListTokens(ctx); err != nil || len(list) != 5 {
		t.Errorf("%d tokens, %v", len(list), err)
	}
	if err := admin.DeleteToken(ctx, made.TokenID); err != nil {
		t.Error(err)
	}
	if err := admin.DeleteToken(ctx, made.TokenID); !fault.Is(err, fault.NotFound) {
		t.Errorf("second delete: %v", err)
	}
}
