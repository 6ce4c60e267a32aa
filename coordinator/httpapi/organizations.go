package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// changed is the answer of a call that made or changed something.
type changed[T any] struct {
	Status int
	Index  uint64 `header:"X-Demiurge-Index"`
	Body   T
}

type listOrganizationsInput struct {
	Reading
	Paging
}

func (s *Server) listOrganizations(ctx context.Context, in *listOrganizationsInput) (*answer[api.List[api.Organization]], error) {
	var c checks
	p := paging(&c, in.Paging, id.ParseOrganization)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.List[api.Organization], error) {
		return page(p, watching(ws, v.OrganizationsAfter), func(o *state.Organization) id.Organization { return o.ID }, every, s.converter(v, ws).organization), nil
	})
}

type organizationInput struct {
	Reading
	ID string `path:"id" doc:"Organization (UUID)"`
}

func (s *Server) getOrganization(ctx context.Context, in *organizationInput) (*answer[api.Organization], error) {
	var c checks
	org := parse(&c, "path.id", in.ID, id.ParseOrganization)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.Organization, error) {
		rec := v.Organization(ws, org)
		if rec == nil {
			return api.Organization{}, noOrganization(org)
		}
		return s.converter(v, ws).organization(rec), nil
	})
}

func noOrganization(org id.Organization) *fault.Error {
	return fault.New(fault.NotFound, "organization %s is not known; make it with PUT /v1/organizations/%s", org, org)
}

func (s *Server) organizationAllocation(ctx context.Context, in *organizationInput) (*answer[api.Allocation], error) {
	var c checks
	org := parse(&c, "path.id", in.ID, id.ParseOrganization)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.Allocation, error) {
		rec := v.LiveAllocation(ws, org)
		// To who is no member it looks as if there were none.
		if rec == nil || s.mayAct(ctx, v, ws, org) != nil {
			return api.Allocation{}, noAllocation(org)
		}
		return s.converter(v, ws).allocation(rec), nil
	})
}

type putOrganizationInput struct {
	ID   string `path:"id" doc:"Organization (UUID)"`
	Body api.PutOrganization
}

func (s *Server) putOrganization(ctx context.Context, in *putOrganizationInput) (*changed[api.Organization], error) {
	var c checks
	cmd := command.PutOrganization{
		Meta:         s.meta(ctx),
		Organization: parse(&c, "path.id", in.ID, id.ParseOrganization),
		Name:         parse(&c, "body.name", in.Body.Name, text),
		KeepOwner:    true,
	}
	for i, m := range in.Body.Members {
		at := fmt.Sprintf("body.members[%d]", i)
		cmd.Members = append(cmd.Members, member(&c, at+".user_id", at, m.UserID, api.PutMember{Username: m.Username, Role: m.Role}))
	}
	for i, p := range in.Body.Projects {
		at := fmt.Sprintf("body.projects[%d]", i)
		cmd.Projects = append(cmd.Projects, command.Project{
			ID: parse(&c, at+".project_id", p.ProjectID, id.ParseProject), Name: parse(&c, at+".name", p.Name, text),
		})
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	existed := s.opts.Store.View().Organization(nil, cmd.Organization) != nil
	out, err := s.changeOrganization(ctx, cmd, cmd.Organization)
	if err == nil && !existed {
		out.Status = http.StatusCreated
	}
	return out, err
}

// member reads a member; its id and the rest may stand in different parts of a request.
func member(c *checks, idAt, restAt, user string, rest api.PutMember) command.Member {
	return command.Member{
		User:     parse(c, idAt, user, id.ParseUser),
		Username: parse(c, restAt+".username", rest.Username, text), Role: rest.Role,
	}
}

// changeOrganization proposes a change and answers with what the organization is then.
func (s *Server) changeOrganization(ctx context.Context, cmd command.Command, org id.Organization) (*changed[api.Organization], error) {
	if _, err := s.propose(ctx, cmd); err != nil {
		return nil, err
	}
	v := s.opts.Store.View()
	rec := v.Organization(nil, org)
	if rec == nil {
		return nil, noOrganization(org)
	}
	return &changed[api.Organization]{Status: http.StatusOK, Index: v.Index(), Body: s.converter(v, nil).organization(rec)}, nil
}

type organizationPathInput struct {
	ID string `path:"id" doc:"Organization (UUID)"`
}

func (s *Server) deleteOrganization(ctx context.Context, in *organizationPathInput) (*struct{}, error) {
	var c checks
	org := parse(&c, "path.id", in.ID, id.ParseOrganization)
	if err := c.err(); err != nil {
		return nil, err
	}
	_, err := s.propose(ctx, command.DeleteOrganization{Meta: s.meta(ctx), Organization: org})
	return nil, err
}

type putMemberInput struct {
	ID     string `path:"id" doc:"Organization (UUID)"`
	UserID string `path:"user_id"`
	Body   api.PutMember
}

func (s *Server) putMember(ctx context.Context, in *putMemberInput) (*changed[api.Organization], error) {
	var c checks
	org := parse(&c, "path.id", in.ID, id.ParseOrganization)
	m := member(&c, "path.user_id", "body", in.UserID, in.Body)
	if err := c.err(); err != nil {
		return nil, err
	}
	return s.changeOrganization(ctx, command.EditOrganization{Meta: s.meta(ctx), Organization: org, PutMember: &m}, org)
}

type memberInput struct {
	ID     string `path:"id" doc:"Organization (UUID)"`
	UserID string `path:"user_id"`
}

func (s *Server) deleteMember(ctx context.Context, in *memberInput) (*changed[api.Organization], error) {
	var c checks
	org := parse(&c, "path.id", in.ID, id.ParseOrganization)
	user := parse(&c, "path.user_id", in.UserID, id.ParseUser)
	if err := c.err(); err != nil {
		return nil, err
	}
	return s.changeOrganization(ctx, command.EditOrganization{Meta: s.meta(ctx), Organization: org, DeleteMember: user}, org)
}

type putProjectInput struct {
	ID        string `path:"id" doc:"Organization (UUID)"`
	ProjectID string `path:"project_id"`
	Body      api.PutProject
}

func (s *Server) putProject(ctx context.Context, in *putProjectInput) (*changed[api.Organization], error) {
	var c checks
	org := parse(&c, "path.id", in.ID, id.ParseOrganization)
	p := command.Project{
		ID:   parse(&c, "path.project_id", in.ProjectID, id.ParseProject),
		Name: parse(&c, "body.name", in.Body.Name, text),
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	return s.changeOrganization(ctx, command.EditOrganization{Meta: s.meta(ctx), Organization: org, PutProject: &p}, org)
}

type projectInput struct {
	ID        string `path:"id" doc:"Organization (UUID)"`
	ProjectID string `path:"project_id"`
}

func (s *Server) deleteProject(ctx context.Context, in *projectInput) (*changed[api.Organization], error) {
	var c checks
	org := parse(&c, "path.id", in.ID, id.ParseOrganization)
	project := parse(&c, "path.project_id", in.ProjectID, id.ParseProject)
	if err := c.err(); err != nil {
		return nil, err
	}
	return s.changeOrganization(ctx, command.EditOrganization{Meta: s.meta(ctx), Organization: org, DeleteProject: project}, org)
}
