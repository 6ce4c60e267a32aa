package permission

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	ourOrg   id.Organization = "11111111-1111-4111-8111-111111111111"
	otherOrg id.Organization = "22222222-2222-4222-8222-222222222222"
)

func ourMembers() Membership {
	return Membership{
		Members:  map[id.User]RoleName{"ola": Owner, "adi": Admin, "mia": Member, "max": Member},
		Projects: []id.Project{"site", "shop"},
	}
}

func session(user id.User) Subject { return Subject{User: user, Limit: []Pattern{Everything()}} }

func here() Resource                 { return Resource{Organization: ourOrg} }
func in(project id.Project) Resource { return Resource{ourOrg, project} }
func custom(t testing.TB, name, level string, patterns ...string) Role {
	t.Helper()
	r, err := NewRole(name, level, patterns)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ours has a role of each level and people who hold them.
func ours(t testing.TB) *Policy {
	t.Helper()
	p, err := New(ourOrg, ourMembers())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Role{
		custom(t, "auditor", "organization", "*:read"),
		custom(t, "painter", "project", "room:write", "room:read"),
	} {
		if p, err = p.PutRole(session("ola"), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []struct {
		user  id.User
		grant Grant
	}{{"mia", Grant{ProjectAdmin, "site"}}, {"max", Grant{"auditor", ""}}, {"max", Grant{"painter", "shop"}}} {
		if p, err = p.Grant(session("ola"), g.user, g.grant); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestCheck(t *testing.T) {
	p := ours(t)
	for _, c := range []struct {
		why     string
		subject Subject
		wanted  string
		at      Resource
		allowed bool
	}{
		{"an owner may do anything", session("ola"), "owner:anything", here(), true},
		{"in any project", session("ola"), "container:create", in("shop"), true},
		{"an admin works in every project", session("adi"), "container:create", in("site"), true},
		{"what is reserved to owners is not an admin's", session("adi"), "owner:anything", here(), false},
		{"nor is a change of the organization", session("adi"), "organization:update", here(), false},
		{"a plain member sees who is there", session("mia"), "member:read", here(), true},
		{"and changes nothing", session("mia"), "member:write", here(), false},
		{"a project's admin works in his project", session("mia"), "container:create", in("site"), true},
		{"not in another one", session("mia"), "container:create", in("shop"), false},
		{"not in the organization", session("mia"), "container:create", here(), false},
		{"a role of the organization holds in projects", session("max"), "container:read", in("site"), true},
		{"a wildcard of areas is one of areas only", session("max"), "container:create", in("site"), false},
		{"a custom role of a project", session("max"), "room:write", in("shop"), true},
		{"there only", session("max"), "room:write", in("site"), false},
		{"a stranger", session("eve"), "member:read", here(), false},
		{"nobody", session(""), "member:read", here(), false},
		{"another organization", session("ola"), "member:read", Resource{Organization: otherOrg}, false},
		{"no organization", session("ola"), "member:read", Resource{}, false},
		{"a project that does not exist, even for an owner", session("ola"), "room:read", in("moon"), false},
		{"a credential without a limit is good for nothing", Subject{User: "ola"}, "member:read", here(), false},
		{"a narrow credential", Subject{User: "ola", Limit: patterns(t, "room:read")}, "room:read", in("site"), true},
		{"is good for no more", Subject{User: "ola", Limit: patterns(t, "room:read")}, "room:write", in("site"), false},
		{"and gives nothing that its owner has not", Subject{User: "mia", Limit: patterns(t, "*:*")}, "room:read", in("shop"), false},
	} {
		wanted := MustParse(c.wanted)
		if got := p.Check(c.subject, wanted, c.at); got.Allowed != c.allowed || got.Reason == "" {
			t.Errorf("%s: %s %s in %s: %+v", c.why, c.subject.User, c.wanted, c.at, got)
		}
	}
	if p.Check(session("ola"), Permission{}, here()).Allowed {
		t.Error("asking for nothing is allowed")
	}
	if (&Policy{}).Check(session("ola"), MustParse("room:read"), Resource{}).Allowed {
		t.Error("the zero policy allows something")
	}
}

// What somebody hands on he has to hold at that very place himself, whatever his credential is good for.
func TestHolds(t *testing.T) {
	p := ours(t)
	for _, c := range []struct {
		why     string
		subject Subject
		pattern string
		at      Resource
		holds   bool
	}{
		{"an owner holds everything", session("ola"), "*:*", here(), true},
		{"an admin does not", session("adi"), "*:*", here(), false},
		{"a project's admin in his project", session("mia"), "container:*", in("site"), true},
		{"not in another", session("mia"), "container:*", in("shop"), false},
		{"nor in the organization", session("mia"), "container:*", here(), false},
		{"a narrow credential", Subject{User: "ola", Limit: patterns(t, "room:*")}, "container:read", in("site"), false},
		{"a stranger", session("eve"), "room:read", in("site"), false},
		{"another organization", session("ola"), "room:read", Resource{Organization: otherOrg}, false},
		{"a project of another organization", session("ola"), "room:read", Resource{otherOrg, "site"}, false},
		{"no organization", session("ola"), "room:read", Resource{}, false},
		{"a project that does not exist", session("ola"), "room:read", in("moon"), false},
	} {
		if got := p.Holds(c.subject, patterns(t, c.pattern)[0], c.at); got != c.holds {
			t.Errorf("%s: %t", c.why, got)
		}
	}
	if (&Policy{}).Holds(session("ola"), Everything(), Resource{}) {
		t.Error("under the zero policy somebody holds something")
	}
}

// P6: project roles ignored at the door: plain members locked out. P5: and a role in one project opens no other.
func TestP6_AProjectsRoleCounts(t *testing.T) {
	p := ours(t)
	may := func(user id.User, wanted string, at Resource) bool {
		return p.Check(session(user), MustParse(wanted), at).Allowed
	}
	if !may("mia", "room:write", in("site")) || !may("max", "room:write", in("shop")) {
		t.Error("a plain member with a role in a project is locked out of it")
	}
	if may("mia", "room:write", in("shop")) || may("max", "room:write", in("site")) || may("mia", "room:write", here()) {
		t.Error("a role in one project opens another")
	}
}

func patterns(t testing.TB, texts ...string) (all []Pattern) {
	t.Helper()
	for _, s := range texts {
		p, err := ParsePattern(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// P7: an admin can make himself owner; the last owner can be removed. And nobody hands on what he does not hold.
func TestP7_EditsAreRefused(t *testing.T) {
	p := ours(t)
	grant := func(actor, user id.User, g Grant) func() (*Policy, error) {
		return func() (*Policy, error) { return p.Grant(session(actor), user, g) }
	}
	put := func(actor id.User, r Role) func() (*Policy, error) {
		return func() (*Policy, error) { return p.PutRole(session(actor), r) }
	}
	for name, c := range map[string]struct {
		edit func() (*Policy, error)
		code fault.Code
	}{
		"an admin makes himself owner":                {grant("adi", "adi", Grant{Role: Owner}), fault.Forbidden},
		"an admin removes the last owner":             {func() (*Policy, error) { return p.Revoke(session("adi"), "ola", Grant{Role: Owner}) }, fault.Forbidden},
		"the last owner goes himself":                 {func() (*Policy, error) { return p.Revoke(session("ola"), "ola", Grant{Role: Owner}) }, fault.Forbidden},
		"an owner makes an owner here":                {grant("ola", "mia", Grant{Role: Owner}), fault.Forbidden},
		"a member grants":                             {grant("max", "max", Grant{ProjectAdmin, "shop"}), fault.Forbidden},
		"a project's admin grants in another":         {grant("mia", "mia", Grant{ProjectAdmin, "shop"}), fault.Forbidden},
		"a project's admin grants in all":             {grant("mia", "mia", Grant{Role: "auditor"}), fault.Forbidden},
		"a grant to a stranger":                       {grant("ola", "eve", Grant{ProjectMember, "site"}), fault.Conflict},
		"a grant of an unknown role":                  {grant("ola", "mia", Grant{"nothing", "site"}), fault.NotFound},
		"a grant in an unknown project":               {grant("ola", "mia", Grant{ProjectMember, "moon"}), fault.Forbidden},
		"a project's role in the organization":        {grant("ola", "mia", Grant{Role: ProjectMember}), fault.InvalidRequest},
		"the organization's role in a project":        {grant("ola", "mia", Grant{"auditor", "site"}), fault.InvalidRequest},
		"an admin makes a role with more than his":    {put("adi", custom(t, "boss", "organization", "*:*")), fault.Forbidden},
		"an admin makes a role that reads everything": {put("adi", custom(t, "reader", "organization", "*:read")), fault.Forbidden},
		"an admin narrows a role that exceeds his":    {put("adi", custom(t, "auditor", "organization", "room:read")), fault.Forbidden},
		"a project's admin makes a role":              {put("mia", custom(t, "x", "project", "room:read")), fault.Forbidden},
		"a role changes its level":                    {put("ola", custom(t, "painter", "organization", "room:read")), fault.Conflict},
		"a role in use is deleted":                    {func() (*Policy, error) { return p.DeleteRole(session("ola"), "painter") }, fault.Conflict},
		"a system role is deleted":                    {func() (*Policy, error) { return p.DeleteRole(session("ola"), Owner) }, fault.Forbidden},
		"a role that is not there is deleted":         {func() (*Policy, error) { return p.DeleteRole(session("ola"), "nothing") }, fault.NotFound},
		"a grant that is not there is revoked": {func() (*Policy, error) {
			return p.Revoke(session("ola"), "mia", Grant{ProjectMember, "site"})
		}, fault.NotFound},
		"an admin takes what exceeds his": {func() (*Policy, error) {
			return p.Revoke(session("adi"), "max", Grant{Role: "auditor"})
		}, fault.Forbidden},
		"a token that is not good for roles": {func() (*Policy, error) {
			return p.PutRole(Subject{"ola", patterns(t, "room:*")}, custom(t, "x", "project", "room:read"))
		}, fault.Forbidden},
		"a token grants more than it is good for": {func() (*Policy, error) {
			return p.Grant(Subject{"ola", patterns(t, "grant:*")}, "mia", Grant{"painter", "shop"})
		}, fault.Forbidden},
	} {
		before := string(p.Section())
		if next, err := c.edit(); !fault.Is(err, c.code) || next != nil {
			t.Errorf("%s: %v", name, err)
		}
		if string(p.Section()) != before {
			t.Errorf("%s: the refused edit changed the policy", name)
		}
	}
}

// P8: removal or demotion of a member never reaches what runs.
func TestP8_MembershipTakesGrantsAlong(t *testing.T) {
	p := ours(t)
	m := ourMembers()
	delete(m.Members, "mia")
	m.Projects = []id.Project{"site"}
	without, err := p.WithMembership(m)
	if err != nil {
		t.Fatal(err)
	}
	if without.Version() <= p.Version() {
		t.Error("the version did not rise")
	}
	if without.Check(session("mia"), MustParse("room:read"), in("site")).Allowed {
		t.Error("a removed member may read")
	}
	back, err := without.WithMembership(ourMembers())
	if err != nil {
		t.Fatal(err)
	}
	if back.Check(session("mia"), MustParse("room:read"), in("site")).Allowed {
		t.Error("a member who came back holds what was granted before")
	}
	if back.Check(session("max"), MustParse("room:write"), in("shop")).Allowed {
		t.Error("a project that came back has the grants of the one that was removed")
	}
	if !back.Check(session("max"), MustParse("room:read"), in("shop")).Allowed {
		t.Error("a grant in the organization was lost")
	}
	if !p.Check(session("mia"), MustParse("room:read"), in("site")).Allowed {
		t.Error("the edit changed the policy it was made from")
	}
	m.Members["mia"] = "emperor"
	if _, err := p.WithMembership(m); err == nil {
		t.Error("a role that no member can have is taken over")
	}
}

func TestGrantAndRevoke(t *testing.T) {
	p := ours(t)
	again, err := p.Grant(session("adi"), "mia", Grant{ProjectAdmin, "site"})
	if err != nil || again.Version() != p.Version() {
		t.Errorf("granting what is held: version %d → %d, %v", p.Version(), again.Version(), err)
	}
	next, err := p.Revoke(session("adi"), "mia", Grant{ProjectAdmin, "site"})
	if err != nil {
		t.Fatal(err)
	}
	if next.Check(session("mia"), MustParse("room:read"), in("site")).Allowed {
		t.Error("a revoked grant still allows")
	}
	if next, err = next.Revoke(session("ola"), "max", Grant{"painter", "shop"}); err != nil {
		t.Fatal(err)
	}
	if next, err = next.DeleteRole(session("ola"), "painter"); err != nil || len(next.Roles()) != 1 {
		t.Errorf("deleting an unused role: %v", err)
	}
}

func TestBounds(t *testing.T) {
	p, err := New(ourOrg, ourMembers())
	if err != nil {
		t.Fatal(err)
	}
	for i := range MaxRoles {
		if p, err = p.PutRole(session("ola"), custom(t, fmt.Sprintf("r%d", i), "project", "room:read")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = p.PutRole(session("ola"), custom(t, "more", "project", "room:read")); !fault.Is(err, fault.TooLarge) {
		t.Errorf("one role more than allowed: %v", err)
	}
	if _, err = p.PutRole(session("ola"), custom(t, "r7", "project", "room:write")); err != nil {
		t.Errorf("changing a role when there are as many as allowed: %v", err)
	}
	m := ourMembers()
	for i := range maxGrantsPerUser {
		m.Projects = append(m.Projects, id.Project(fmt.Sprintf("p%d", i)))
	}
	if p, err = p.WithMembership(m); err != nil {
		t.Fatal(err)
	}
	for i := range maxGrantsPerUser {
		if p, err = p.Grant(session("ola"), "mia", Grant{"r0", id.Project(fmt.Sprintf("p%d", i))}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = p.Grant(session("ola"), "mia", Grant{"r0", "site"}); !fault.Is(err, fault.TooLarge) {
		t.Errorf("one grant more than allowed: %v", err)
	}
}

func TestSection(t *testing.T) {
	p := ours(t)
	stored := p.Section()
	q, err := Restore(ourOrg, ourMembers(), stored)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(q.Grants("max"), p.Grants("max")) || len(q.Roles()) != 2 || q.Version() <= p.Version() {
		t.Errorf("restored %s from %s", q.Section(), stored)
	}
	m := ourMembers()
	delete(m.Members, "max")
	if q, err = Restore(ourOrg, m, stored); err != nil || len(q.Grants("max")) != 0 {
		t.Errorf("a section with the grants of somebody who left: %v, %v", q.Grants("max"), err)
	}
	for name, wrong := range map[string]string{
		"nothing":          ``,
		"another format":   `{"format":2,"version":1,"roles":[],"grants":[]}`,
		"unknown field":    `{"format":1,"version":1,"roles":[],"grants":[],"more":1}`,
		"more after it":    `{"format":1,"version":1,"roles":[],"grants":[]} {}`,
		"system role":      `{"format":1,"version":1,"roles":[{"name":"owner","level":"organization","permissions":["a:b"]}],"grants":[]}`,
		"role twice":       `{"format":1,"version":1,"roles":[{"name":"r","level":"project","permissions":["a:b"]},{"name":"r","level":"project","permissions":["*:*"]}],"grants":[]}`,
		"granted owner":    `{"format":1,"version":1,"roles":[],"grants":[{"user_id":"mia","role":"owner"}]}`,
		"unknown role":     `{"format":1,"version":1,"roles":[],"grants":[{"user_id":"mia","role":"r"}]}`,
		"wrong level":      `{"format":1,"version":1,"roles":[],"grants":[{"user_id":"mia","role":"project:admin"}]}`,
		"wrong user":       `{"format":1,"version":1,"roles":[],"grants":[{"user_id":"../x","role":"project:admin","project_id":"site"}]}`,
		"grant twice":      `{"format":1,"version":1,"roles":[],"grants":[{"user_id":"mia","role":"project:admin","project_id":"site"},{"user_id":"mia","role":"project:admin","project_id":"site"}]}`,
		"wrong permission": `{"format":1,"version":1,"roles":[{"name":"r","level":"project","permissions":["a"]}],"grants":[]}`,
	} {
		if _, err := Restore(ourOrg, ourMembers(), []byte(wrong)); err == nil || !strings.Contains(err.Error(), string(ourOrg)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// P7: whatever is tried, an edit gives nobody anything that the one who made it does not hold at that place.
func TestP7_NobodyGrantsMoreThanHeHolds(t *testing.T) {
	probes := []Permission{}
	for _, s := range []string{"room:read", "room:write", "container:create", "grant:write", "role:write", "owner:x", "invented:tomorrow"} {
		probes = append(probes, MustParse(s))
	}
	texts := []string{"*:*", "*:read", "room:*", "room:read", "room:write", "container:*", "grant:*", "grant:write", "role:*", "owner:*"}
	users := slices.Sorted(maps.Keys(ourMembers().Members))
	places := []Resource{here(), in("site"), in("shop")}
	rapid.Check(t, func(t *rapid.T) {
		p, err := New(ourOrg, ourMembers())
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 25).Draw(t, "edits") {
			actor := session(rapid.SampledFrom(users).Draw(t, "actor"))
			next, err := edit(t, p, actor, users, texts)
			if err != nil {
				continue
			}
			for _, user := range users {
				for _, probe := range probes {
					for _, at := range places {
						if next.Check(session(user), probe, at).Allowed && !p.Check(session(user), probe, at).Allowed &&
							!p.Check(actor, probe, at).Allowed {
							t.Fatalf("%s gave %s %s in %s without holding it", actor.User, user, probe, at)
						}
					}
				}
			}
			p = next
		}
	})
}

func edit(t *rapid.T, p *Policy, actor Subject, users []id.User, texts []string) (*Policy, error) {
	names := []string{"a", "b", "c"}
	g := Grant{
		Role:    rapid.SampledFrom([]RoleName{"a", "b", "c", ProjectAdmin, ProjectMember, Owner, Admin}).Draw(t, "role"),
		Project: rapid.SampledFrom([]id.Project{"", "site", "shop"}).Draw(t, "project"),
	}
	user := rapid.SampledFrom(users).Draw(t, "user")
	switch rapid.IntRange(0, 4).Draw(t, "what") {
	case 0, 1:
		r, err := NewRole(rapid.SampledFrom(names).Draw(t, "name"), rapid.SampledFrom([]string{"organization", "project"}).Draw(t, "level"),
			rapid.SliceOfN(rapid.SampledFrom(texts), 1, 3).Draw(t, "permissions"))
		if err != nil {
			t.Fatal(err)
		}
		return p.PutRole(actor, r)
	case 2:
		return p.Revoke(actor, user, g)
	default:
		return p.Grant(actor, user, g)
	}
}

// What is stored and handed out must mean the same to whoever reads it, so there is one form and nothing beside it.
func TestWhatIsNoPermissionIsRefused(t *testing.T) {
	long := strings.Repeat("a", maxPart)
	for _, s := range []string{
		"", ":", "a", "a:", ":a", "a:b:c", "A:b", "a:B", "1a:b", "a:1", "-a:b", "_a:b", "{a:b", "a:b{", "a:b/", "a:b.c", "a b:c", "a:b\n",
		long + "a:b", "a:" + long + "a", "a*:b", "a:*b", "ä:b", "a:b:", "*", "**:b",
	} {
		if p, err := Parse(s); err == nil {
			t.Errorf("%q is a permission: %v", s, p)
		}
		if p, err := ParsePattern(s); err == nil {
			t.Errorf("%q is a pattern: %v", s, p)
		}
	}
	for _, s := range []string{"a:b", long + ":" + long, "a-1_z:z9"} {
		if _, err := Parse(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"*:b", "a:*", "*:*"} {
		if _, err := Parse(s); err == nil {
			t.Errorf("%q is a permission and no pattern", s)
		}
		if _, err := ParsePattern(s); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "Role", "1", "a b", "../a", strings.Repeat("a", 65), strings.Repeat("a", 40) + "B" + strings.Repeat("a", 8), strings.Repeat("a", 40) + "/"} {
		if _, err := NewRole(name, "project", []string{"a:b"}); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("a role is called %q: %v", name, err)
		}
	}
	if _, err := NewRole(strings.Repeat("a", 64), "project", []string{"a:b"}); err != nil {
		t.Error(err)
	}
	for what, r := range map[string]struct {
		level string
		given []string
	}{
		"no level": {"", []string{"a:b"}}, "another level": {"host", []string{"a:b"}}, "nothing": {"project", nil},
		"more than one role has": {"project", slices.Repeat([]string{"a:b"}, maxPatterns+1)}, "no permission": {"project", []string{"a"}},
	} {
		if _, err := NewRole("r", r.level, r.given); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("a role with %s: %v", what, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"room:read", "*:*", "a:", ":", "a:b:c", "A:b", "a:b\n", strings.Repeat("a", 33) + ":b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := Parse(s); err == nil {
			if p.String() != s || strings.ContainsAny(s, "* \n/") {
				t.Errorf("%q was read as %s", s, p)
			}
			if _, err := ParsePattern(s); err != nil {
				t.Errorf("%q is a permission and no pattern", s)
			}
		}
		if p, err := ParsePattern(s); err == nil && p.String() != s {
			t.Errorf("%q was read as %s", s, p)
		}
	})
}

func FuzzRestore(f *testing.F) {
	f.Add(ours(f).Section())
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, stored []byte) {
		p, err := Restore(ourOrg, ourMembers(), stored)
		if err != nil {
			return
		}
		q, err := Restore(ourOrg, ourMembers(), p.Section())
		if err != nil {
			t.Fatalf("its own section is refused: %v", err)
		}
		for user := range p.Members() {
			if !slices.Equal(p.Grants(user), q.Grants(user)) {
				t.Errorf("the grants of %s change when stored: %v, %v", user, p.Grants(user), q.Grants(user))
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	p := ours(b)
	subject, wanted, at := session("max"), MustParse("room:write"), in("shop")
	b.ReportAllocs()
	for b.Loop() {
		if !p.Check(subject, wanted, at).Allowed {
			b.Fatal("refused")
		}
	}
}
