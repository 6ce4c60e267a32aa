package tenantapi

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/demiurge-platform/demiurge/agent/container"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// canList is what every member may: to ask for a list, of which he sees what he may see.
var canList = permission.MustParse("project:list")

// containerRoutes are the rows of user containers; none on a host that has no containers.
func (s *Server) containerRoutes() []Route {
	if s.opts.Containers == nil {
		return nil
	}
	const one = "/containers/{container}"
	service := []Field{{Name: "service", About: "Another service than the first"}}
	return []Route{
		{
			Method: http.MethodGet, Path: "/containers", Caller: Member, Action: canList, Serve: s.listContainers,
			Doc: Doc{Summary: "The containers that the caller may read", Query: []Field{{Name: "project_id", About: "Those of one project only"}}, Gives: api.Containers{}},
		},
		{
			Method: http.MethodPost, Path: "/containers", Caller: Member, Action: container.CanCreate, Locate: s.newContainer, Keyed: true, Serve: s.createContainer,
			Doc: Doc{Summary: "Create a container; its hosting token and secrets are in this answer and its repeats only", Takes: api.CreateContainer{}, Gives: api.CreatedContainer{}, Status: http.StatusCreated, Leads: true},
		},
		{
			Method: http.MethodGet, Path: one, Caller: Member, Action: container.CanRead, Locate: s.findContainer, Serve: s.showContainer,
			Doc: Doc{Summary: "One container", Gives: api.Container{}},
		},
		{
			Method: http.MethodDelete, Path: one, Caller: Member, Action: container.CanDelete, Locate: s.findContainer, Serve: s.deleteContainer,
			Doc: Doc{Summary: "Delete a container with its OAuth clients and all that they gave out", Status: http.StatusNoContent},
		},
		{
			Method: http.MethodPost, Path: one + "/token", Caller: Member, Action: container.CanToken, Locate: s.findContainer, Hosted: true, Serve: s.issueContainerToken,
			Doc: Doc{Summary: "Another hosting token; the container itself renews its own with it", Takes: api.IssueContainerToken{}, Optional: true, Gives: api.ContainerToken{}, Shows: []string{"hosting"}, Also: notNow},
		},
		{
			Method: http.MethodPost, Path: one + "/announce", Caller: Proven, Serve: s.announceContainer,
			Doc: Doc{
				Summary: "Say where the container is, as its heartbeat, with its hosting token", Takes: api.AnnounceContainer{}, Gives: api.AnnouncedContainer{},
				Shows: []string{"hosting"}, Also: append([]Answer{{Status: http.StatusUnauthorized, Codes: []fault.Code{fault.Unauthenticated}}}, notNow...),
			},
		},
		{
			Method: http.MethodGet, Path: one + "/access", Caller: Member, Action: container.CanAccess, Locate: s.findContainer, Serve: s.containerAccess,
			Doc: Doc{
				Summary: "Whether the caller may reach the container, and where it is, for guards", Query: service, Gives: api.ContainerAccess{},
				Also: []Answer{{Status: http.StatusServiceUnavailable, Codes: []fault.Code{fault.HostLost}}},
			},
		},
		{
			Method: http.MethodGet, Path: one + "/enter", Caller: Proven, Serve: s.enterContainer,
			Doc: Doc{
				Summary: "Where a browser gets a ticket for the name of the container, after the login", Status: http.StatusSeeOther, Leads: true,
				Query: append([]Field{{Name: "state", About: "As the container's name gave it", Required: true}}, service...), Shows: []string{"session"},
				Also: append([]Answer{{Status: http.StatusTooManyRequests, Codes: []fault.Code{fault.RateLimited}}}, noLogin...),
			},
		},
	}
}

// located is the container that a path names, as Locate found it.
type located struct {
	registry *container.Registry
	view     container.View
}

// findContainer finds the project of the container that the path names.
func (s *Server) findContainer(c *Call) (id.Project, error) {
	r, of, err := s.named(c)
	if err != nil {
		return "", err
	}
	v, err := r.Get(of)
	if err != nil {
		return "", err
	}
	c.Found = located{r, v}
	return v.Project, nil
}

// named reads the container's id in the path.
func (s *Server) named(c *Call) (*container.Registry, container.ID, error) {
	of, err := container.ParseID(c.Param("container"))
	if err != nil {
		return nil, "", fault.New(fault.NotFound, "there is no container %.40q", c.Param("container"))
	}
	r, err := s.containersOf(c.R.Context(), c.Tenant)
	return r, of, err
}

// newContainer finds the project that a new container shall belong to, in the body.
func (s *Server) newContainer(c *Call) (id.Project, error) {
	var body api.CreateContainer
	if err := c.Decode(&body); err != nil {
		return "", err
	}
	project, err := id.ParseProject(body.ProjectID)
	if err != nil {
		wrong := fault.New(fault.InvalidRequest, "%v", err)
		wrong.Locations = []fault.Location{{Location: "body.project_id", Message: err.Error()}}
		return "", wrong
	}
	spec := container.Spec{Project: project, Name: body.Name}
	for _, one := range body.Services {
		spec.Services = append(spec.Services, container.Service{
			Name: container.ServiceName(one.Name), Paths: one.RedirectPaths, Scope: one.Scope, Public: one.Public,
		})
	}
	c.Found = wanted{spec, body}
	return project, nil
}

// wanted is the container that a body asks for.
type wanted struct {
	spec container.Spec
	body api.CreateContainer
}

func (s *Server) createContainer(c *Call) error {
	r, err := s.containersOf(c.R.Context(), c.Tenant)
	if err != nil {
		return err
	}
	asked := c.Found.(wanted)
	spec := asked.spec
	spec.Project = c.Resource.Project // what was checked
	if err := mayHandOn(c, spec); err != nil {
		return err
	}
	if spec.Request, err = c.keyed(asked.body); err != nil {
		return err
	}
	made, err := r.Create(c.R.Context(), c.Subject.User, spec)
	if err != nil {
		return storage(err)
	}
	answer := api.CreatedContainer{
		Container: s.shown(c, made.Container), HostingToken: made.Hosting.Token.Reveal(), ExpiresAt: made.Hosting.Expires, Secrets: map[string]string{},
	}
	for client, secret := range made.Secrets {
		answer.Secrets[client] = secret.Reveal()
	}
	c.W.Header().Set("Location", "/containers/"+string(made.Container.ID))
	return c.Answer(http.StatusCreated, answer)
}

// mayHandOn checks the scopes of the clients of a new container: none is for more than its creator holds there.
func mayHandOn(c *Call, spec container.Spec) error {
	policy, err := c.Tenant.Policy()
	if err != nil {
		return err
	}
	for _, one := range spec.Services {
		for _, scope := range one.Scope {
			if p, err := permission.ParsePattern(scope); err == nil && !policy.Holds(c.Subject, p, c.Resource) {
				return fault.New(fault.Forbidden, "cannot give service %.40s a client for %s: user %s does not hold that in %s", one.Name, scope, c.Subject.User, c.Resource)
			}
		}
	}
	return nil
}

// listContainers gives those that the caller may read.
func (s *Server) listContainers(c *Call) error {
	r, err := s.containersOf(c.R.Context(), c.Tenant)
	if err != nil {
		return err
	}
	policy, err := c.Tenant.Policy()
	if err != nil {
		return err
	}
	only := c.R.URL.Query().Get("project_id")
	views := r.List(func(p id.Project) bool {
		at := permission.Resource{Organization: c.Tenant.Organization(), Project: p}
		return (only == "" || only == string(p)) && policy.Check(c.Subject, container.CanRead, at).Allowed
	})
	items := make([]api.Container, 0, len(views))
	for _, v := range views {
		items = append(items, s.shown(c, v))
	}
	return c.Answer(http.StatusOK, api.Containers{Items: items})
}

func (s *Server) showContainer(c *Call) error {
	return c.Answer(http.StatusOK, s.shown(c, c.Found.(located).view))
}

func (s *Server) deleteContainer(c *Call) error {
	found := c.Found.(located)
	if err := found.registry.Delete(c.R.Context(), found.view.ID); err != nil {
		return storage(err)
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// issueContainerToken gives a hosting token to a member who may, or for one that is good.
func (s *Server) issueContainerToken(c *Call) error {
	var hosting container.Hosting
	if c.Hosting != "" {
		r, of, err := s.named(c)
		if err != nil {
			return err
		}
		if hosting, err = r.Renew(of, c.Hosting); err != nil {
			return storage(err)
		}
	} else {
		var body api.IssueContainerToken
		if c.R.ContentLength != 0 {
			if err := c.Decode(&body); err != nil {
				return err
			}
		}
		found := c.Found.(located)
		var err error
		if hosting, err = found.registry.Issue(found.view.ID, body.Alone); err != nil {
			return storage(err)
		}
	}
	return c.Answer(http.StatusOK, api.ContainerToken{HostingToken: hosting.Token.Reveal(), ExpiresAt: hosting.Expires})
}

// announceContainer takes a container's word for where it is.
func (s *Server) announceContainer(c *Call) error {
	token, ok := hostingToken(c.R)
	if !ok {
		return fault.New(fault.Unauthenticated, "show the container's hosting token, as in Authorization: Bearer <token>")
	}
	r, of, err := s.named(c)
	if err != nil {
		return err
	}
	var body api.AnnounceContainer
	if err := c.Decode(&body); err != nil {
		return err
	}
	source, err := netip.ParseAddr(callerOf(c.R))
	if err != nil {
		return fault.Wrap(fault.Internal, err, "nginx does not say where the announcement comes from")
	}
	a := container.Announcement{Source: source, Ports: make(map[container.ServiceName]uint16, len(body.Services))}
	if body.Address != "" {
		if a.Address, err = netip.ParseAddr(body.Address); err != nil {
			return fault.New(fault.InvalidRequest, "cannot use %.60q as the address of a container: give an IP address without a port", body.Address)
		}
	}
	for _, one := range body.Services {
		if _, twice := a.Ports[container.ServiceName(one.Name)]; twice {
			return fault.New(fault.InvalidRequest, "service %.40q stands there twice", one.Name)
		}
		a.Ports[container.ServiceName(one.Name)] = one.Port
	}
	heard, err := r.Announce(of, token, a)
	if err != nil {
		return storage(err)
	}
	return c.Answer(http.StatusOK, api.AnnouncedContainer{Heartbeat: api.Duration(heard.Heartbeat), Patience: api.Duration(heard.Patience)})
}

// containerAccess tells a guard whether the caller may reach a container.
func (s *Server) containerAccess(c *Call) error {
	found := c.Found.(located)
	name, _ := c.Tenant.Member(c.Subject.User)
	d := found.registry.Access(found.view.ID, container.Caller{Subject: c.Subject, Username: name},
		container.Asked{Service: container.ServiceName(c.R.URL.Query().Get("service")), Method: http.MethodGet})
	if err := d.Err(); err != nil {
		return err
	}
	return c.Answer(http.StatusOK, api.ContainerAccess{
		ContainerID: string(found.view.ID), ProjectID: string(d.Project), Service: string(d.Service), Upstream: d.Upstream.String(),
		UserID: string(d.User), Username: d.Username,
	})
}

// enterContainer gives a person's browser a ticket for the name of a container, after he has logged in.
func (s *Server) enterContainer(c *Call) error {
	in, err := s.site(c)
	if err != nil {
		return err
	}
	one, ok := s.sessionOf(c.Tenant, in, c.R)
	if !ok {
		s.sendToLogin(c.W, c.Tenant, c.R.URL.RequestURI())
		return nil
	}
	r, of, err := s.named(c)
	if err != nil {
		return err
	}
	query := c.R.URL.Query()
	e := container.Entry{Container: of, Service: container.ServiceName(query.Get("service")), State: query.Get("state"), Session: sessionName(one)}
	ticket, err := r.Ticket(permission.Subject{User: one.user, Limit: everything}, e)
	if err != nil {
		return err
	}
	c.W.Header().Set("Location", r.EnterAddress(e, ticket)) // http.Redirect writes a page with it
	c.W.WriteHeader(http.StatusSeeOther)
	return nil
}

// hostingToken is the one hosting token that a request shows.
func hostingToken(r *http.Request) (string, bool) {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return "", false
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	token = strings.TrimLeft(token, " ")
	return token, strings.EqualFold(scheme, "Bearer") && container.LooksHosting(token)
}

// shown is a container as its members see it.
func (s *Server) shown(c *Call, v container.View) api.Container {
	host := func(name container.ServiceName) string { return container.Hostname(c.Tenant.Hostname(), v.ID, name) }
	out := api.Container{
		ContainerID: string(v.ID), ProjectID: string(v.Project), Name: v.Name, State: v.State.String(), Hostname: host(""),
		CreatedBy: string(v.Creator), CreatedAt: v.Created, SeenAt: v.Seen.UTC(), Services: []api.ContainerService{},
	}
	serving := map[container.ServiceName]bool{}
	for _, name := range v.Serving {
		serving[name] = true
	}
	for _, one := range v.Services {
		out.Services = append(out.Services, api.ContainerService{
			Name: string(one.Name), Hostname: host(one.Name), ClientID: one.Client, RedirectPaths: one.Paths, Scope: one.Scope, Public: one.Public,
			Serving: serving[one.Name],
		})
	}
	return out
}
