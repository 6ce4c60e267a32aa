package tenantapi

import (
	"net/http"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// clientRoutes are the rows of an organization's OAuth clients.
func (s *Server) clientRoutes() []Route {
	return []Route{
		{
			Method: http.MethodGet, Path: "/oauth/clients", Caller: Member, Action: readClients, Serve: s.clients,
			Doc: Doc{Summary: "The organization's OAuth clients", Gives: api.OAuthClients{}},
		},
		{
			Method: http.MethodPost, Path: "/oauth/clients", Caller: Member, Action: createClients, Keyed: true, Serve: s.createClient,
			Doc: Doc{Summary: "Register a client; its secret is in this answer and its repeats only", Takes: api.CreateOAuthClient{}, Gives: api.OAuthClient{}, Status: http.StatusCreated},
		},
		{
			Method: http.MethodGet, Path: "/oauth/clients/{client_id}", Caller: Member, Action: readClients, Serve: s.client,
			Doc: Doc{Summary: "One client", Gives: api.OAuthClient{}},
		},
		{
			Method: http.MethodDelete, Path: "/oauth/clients/{client_id}", Caller: Member, Action: deleteClients, Serve: s.deleteClient,
			Doc: Doc{Summary: "Delete a client with all its codes and tokens", Status: http.StatusNoContent},
		},
	}
}

func clientOf(c oauth.Client) api.OAuthClient {
	return api.OAuthClient{
		ClientID: string(c.ID), Name: c.Name, Public: c.Public, Service: c.Service,
		Redirects: append([]string{}, c.Redirects...), Scope: append([]string{}, c.Scope...),
	}
}

func (s *Server) clients(c *Call) error {
	store, err := c.Tenant.OAuth(c.R.Context())
	if err != nil {
		return err
	}
	out := api.OAuthClients{Items: []api.OAuthClient{}}
	for _, one := range store.Clients() {
		out.Items = append(out.Items, clientOf(one))
	}
	return c.Answer(http.StatusOK, out)
}

func (s *Server) client(c *Call) error {
	store, err := c.Tenant.OAuth(c.R.Context())
	if err != nil {
		return err
	}
	one, ok := store.Client(oauth.ClientID(c.Param("client_id")))
	if !ok {
		return fault.New(fault.NotFound, "there is no client %.40q", c.Param("client_id"))
	}
	return c.Answer(http.StatusOK, clientOf(one))
}

// createClient makes a client. A scope that is a permission may be no more than the caller himself holds: what
// a client is given for others is bounded by their own permissions, and this keeps the list honest.
func (s *Server) createClient(c *Call) error {
	var body api.CreateOAuthClient
	if err := c.Decode(&body); err != nil {
		return err
	}
	made, err := oauth.NewClient(c.Tenant.Hostname(), oauth.Client{
		Name: body.Name, Public: body.Public, Service: body.Service, Redirects: body.Redirects, Scope: body.Scope,
	})
	if err != nil {
		return err
	}
	policy, err := c.Tenant.Policy()
	if err != nil {
		return err
	}
	for _, scope := range made.Scope {
		if p, err := permission.ParsePattern(scope); err == nil && !policy.Holds(c.Subject, p, c.Resource) {
			return fault.New(fault.Forbidden, "cannot register a client for %s: user %s does not hold that in the whole organization", scope, c.Subject.User)
		}
	}
	store, err := c.Tenant.OAuth(c.R.Context())
	if err != nil {
		return err
	}
	request, err := c.keyed(body)
	if err != nil {
		return err
	}
	made, secret, err := store.AddClientFor(c.R.Context(), made, request)
	if err != nil {
		return err
	}
	out := clientOf(made)
	out.Secret = secret.Reveal()
	return c.Answer(http.StatusCreated, out)
}

func (s *Server) deleteClient(c *Call) error {
	store, err := c.Tenant.OAuth(c.R.Context())
	if err != nil {
		return err
	}
	if err := store.DeleteClient(c.R.Context(), oauth.ClientID(c.Param("client_id"))); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}
