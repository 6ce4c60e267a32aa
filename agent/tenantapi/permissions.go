package tenantapi

import (
	"net/http"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// The actions of this package's own rows.
var (
	readOrganization = permission.MustParse("organization:read")
	readRoles        = permission.MustParse("role:read")
	writeRoles       = permission.MustParse("role:write")
	readGrants       = permission.MustParse("grant:read")
	writeGrants      = permission.MustParse("grant:write")
	readClients      = permission.MustParse("client:read")
	createClients    = permission.MustParse("client:create")
	deleteClients    = permission.MustParse("client:delete")
)

// permissionRoutes are the rows of roles and grants. Who may grant or change what is decided once more by the
// policy itself: nobody hands on more than he holds.
func (s *Server) permissionRoutes() []Route {
	const grant, projectGrant = "/permissions/users/{user_id}/grants/{role}", "/permissions/projects/{project_id}/users/{user_id}/grants/{role}"
	return []Route{
		{
			Method: http.MethodGet, Path: "/permissions", Caller: Member, Action: readOrganization, Serve: s.ownPermissions,
			Doc: Doc{Summary: "What the caller may do here", Gives: api.Permissions{}},
		},
		{
			Method: http.MethodGet, Path: "/permissions/check/{permission}", Caller: Member, Action: readOrganization, Serve: s.check,
			Doc: Doc{Summary: "Whether the caller may do something in the whole organization", Gives: api.Allowed{}},
		},
		{
			Method: http.MethodGet, Path: "/permissions/projects/{project_id}/check/{permission}", Caller: Member, Action: readOrganization, Serve: s.check,
			Doc: Doc{Summary: "Whether the caller may do something in a project", Gives: api.Allowed{}},
		},
		{
			Method: http.MethodGet, Path: "/permissions/users/{user_id}/grants", Caller: Member, Action: readGrants, Serve: s.grants,
			Doc: Doc{Summary: "What a member was granted beside the membership", Gives: api.RoleGrants{}},
		},
		{
			Method: http.MethodPut, Path: grant, Caller: Member, Action: writeGrants, Serve: s.grant,
			Doc: Doc{Summary: "Grant a role in the whole organization", Gives: api.RoleGrants{}, Also: noRoom},
		},
		{
			Method: http.MethodDelete, Path: grant, Caller: Member, Action: writeGrants, Serve: s.revoke,
			Doc: Doc{Summary: "Take a role of the organization from a member", Gives: api.RoleGrants{}, Also: notNow},
		},
		{
			Method: http.MethodPut, Path: projectGrant, Caller: Member, Action: writeGrants, Project: "project_id", Serve: s.grant,
			Doc: Doc{Summary: "Grant a role in a project", Gives: api.RoleGrants{}, Also: noRoom},
		},
		{
			Method: http.MethodDelete, Path: projectGrant, Caller: Member, Action: writeGrants, Project: "project_id", Serve: s.revoke,
			Doc: Doc{Summary: "Take a role of a project from a member", Gives: api.RoleGrants{}, Also: notNow},
		},
		{
			Method: http.MethodGet, Path: "/roles", Caller: Member, Action: readRoles, Serve: s.roles,
			Doc: Doc{Summary: "The roles of the organization", Gives: api.Roles{}},
		},
		{
			Method: http.MethodPut, Path: "/roles/{role}", Caller: Member, Action: writeRoles, Serve: s.putRole,
			Doc: Doc{Summary: "Make or change a role of the organization's own", Takes: api.PutRole{}, Gives: api.Role{}, Also: noRoom},
		},
		{
			Method: http.MethodDelete, Path: "/roles/{role}", Caller: Member, Action: writeRoles, Serve: s.deleteRole,
			Doc: Doc{Summary: "Forget a role that nobody holds", Status: http.StatusNoContent, Also: notNow},
		},
	}
}

func (s *Server) ownPermissions(c *Call) error {
	p, err := c.Tenant.Policy()
	if err != nil {
		return err
	}
	return c.Answer(http.StatusOK, api.Permissions{
		UserID: string(c.Subject.User), Role: string(p.Members()[c.Subject.User]), Grants: grantsOf(p, c.Subject.User), Version: p.Version(),
	})
}

func grantsOf(p *permission.Policy, user id.User) []api.RoleGrant {
	out := []api.RoleGrant{}
	for _, g := range p.Grants(user) {
		out = append(out, api.RoleGrant{Role: string(g.Role), ProjectID: string(g.Project)})
	}
	return out
}

// check tells a caller about himself, so what he asks about is not what the row's action is checked on.
func (s *Server) check(c *Call) error {
	wanted, err := permission.Parse(c.Param("permission"))
	if err != nil {
		return fault.New(fault.InvalidRequest, "%v", err)
	}
	about := c.Resource
	if raw := c.Param("project_id"); raw != "" {
		if about.Project, err = id.ParseProject(raw); err != nil {
			return fault.New(fault.InvalidRequest, "%v", err)
		}
	}
	p, err := c.Tenant.Policy()
	if err != nil {
		return err
	}
	d := p.Check(c.Subject, wanted, about)
	return c.Answer(http.StatusOK, api.Allowed(d))
}

func (s *Server) grants(c *Call) error {
	user, err := id.ParseUser(c.Param("user_id"))
	if err != nil {
		return fault.New(fault.InvalidRequest, "%v", err)
	}
	return s.answerGrants(c, user)
}

func (s *Server) answerGrants(c *Call, user id.User) error {
	p, err := c.Tenant.Policy()
	if err != nil {
		return err
	}
	if _, ok := p.Members()[user]; !ok {
		return fault.New(fault.NotFound, "user %s is not a member of organization %s", user, c.Tenant.Organization())
	}
	return c.Answer(http.StatusOK, api.RoleGrants{UserID: string(user), Items: grantsOf(p, user)})
}

func (s *Server) grant(c *Call) error  { return s.editGrants(c, (*permission.Policy).Grant) }
func (s *Server) revoke(c *Call) error { return s.editGrants(c, (*permission.Policy).Revoke) }

// editGrants changes a grant at the place that was checked.
func (s *Server) editGrants(c *Call, edit func(*permission.Policy, permission.Subject, id.User, permission.Grant) (*permission.Policy, error)) error {
	user, err := id.ParseUser(c.Param("user_id"))
	if err != nil {
		return fault.New(fault.InvalidRequest, "%v", err)
	}
	g := permission.Grant{Role: permission.RoleName(c.Param("role")), Project: c.Resource.Project}
	if err := c.Tenant.Edit(func(p *permission.Policy) (*permission.Policy, error) { return edit(p, c.Subject, user, g) }); err != nil {
		return err
	}
	return s.answerGrants(c, user)
}

func (s *Server) roles(c *Call) error {
	p, err := c.Tenant.Policy()
	if err != nil {
		return err
	}
	out := api.Roles{}
	for _, r := range permission.SystemRoles() {
		out.Items = append(out.Items, roleOf(r, true))
	}
	for _, r := range p.Roles() {
		out.Items = append(out.Items, roleOf(r, false))
	}
	return c.Answer(http.StatusOK, out)
}

func roleOf(r permission.Role, system bool) api.Role {
	out := api.Role{Name: string(r.Name), Level: r.Level.String(), System: system}
	for _, p := range r.Patterns {
		out.Permissions = append(out.Permissions, p.String())
	}
	return out
}

func (s *Server) putRole(c *Call) error {
	var body api.PutRole
	if err := c.Decode(&body); err != nil {
		return err
	}
	r, err := permission.NewRole(c.Param("role"), body.Level, body.Permissions)
	if err != nil {
		return err
	}
	if err := c.Tenant.Edit(func(p *permission.Policy) (*permission.Policy, error) { return p.PutRole(c.Subject, r) }); err != nil {
		return err
	}
	return c.Answer(http.StatusOK, roleOf(r, false))
}

func (s *Server) deleteRole(c *Call) error {
	name := permission.RoleName(c.Param("role"))
	if err := c.Tenant.Edit(func(p *permission.Policy) (*permission.Policy, error) { return p.DeleteRole(c.Subject, name) }); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}
