package tenantapi

import (
	"context"
	"encoding/hex"
	"errors"

	"github.com/demiurge-platform/demiurge/agent/container"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// Containers gives the user containers of an organization that is served here, and opens them for the first who
// asks. Requests to containers come without an epoch: their names lead to the host, not to a gateway.
func (s *Server) Containers(ctx context.Context, org id.Organization) (*container.Registry, error) {
	t, ok := s.opts.Tenants.Find(org)
	if !ok {
		return nil, fault.New(fault.NotFound, "organization %s is not served here", org)
	}
	return s.containersOf(ctx, t)
}

func (s *Server) containersOf(ctx context.Context, t *tenant.Tenant) (*container.Registry, error) {
	all := s.opts.Containers
	if r, open := all.At(t.Organization(), t.Epoch()); open {
		return r, nil
	}
	in, err := s.siteOf(ctx, t)
	if err != nil {
		return nil, err
	}
	store, err := t.OAuth(ctx)
	if err != nil {
		return nil, fault.Wrap(fault.StorageLow, err, "the organization's OAuth state cannot be read at the moment: try again")
	}
	r, err := all.Open(t.Organization(), t.Epoch(), nil, containerClients{t.Hostname(), store}, containerPeople{s, t, in})
	if err != nil {
		if fault.Is(err, fault.StaleEpoch) {
			return nil, err
		}
		return nil, fault.Wrap(fault.StorageLow, err, "the organization's containers cannot be read at the moment: try again")
	}
	// Whoever ended the organization meanwhile did not find them.
	if now, err := s.opts.Tenants.Get(t.Organization(), t.Epoch()); err != nil || now != t {
		return nil, errors.Join(fault.New(fault.StaleEpoch, "organization %s has moved: ask again", t.Organization()), all.Drop(t.Organization(), t.Epoch()))
	}
	return r, nil
}

// storage says what a caller is told when the disk does not take a change.
func storage(err error) error {
	if errors.Is(err, container.ErrStorage) || errors.Is(err, oauth.ErrStorage) {
		return fault.Wrap(fault.StorageLow, err, "this host's disk does not take changes at the moment: try again")
	}
	return err
}

// containerClients keeps the OAuth clients of containers among the organization's.
type containerClients struct {
	hostname string
	store    *oauth.Store
}

// Prepare implements container.Clients.
func (k containerClients) Prepare(c container.Client) (string, error) {
	made, err := oauth.NewClient(k.hostname, oauthClient(c))
	return string(made.ID), err
}

// Add implements container.Clients.
func (k containerClients) Add(ctx context.Context, c container.Client) (logging.Secret, error) {
	made, err := oauth.NewClient(k.hostname, oauthClient(c))
	if err != nil {
		return logging.Secret{}, err
	}
	made.ID = oauth.ClientID(c.ID)
	return k.store.AddClientWith(ctx, made, c.Seed)
}

// Secret implements container.Clients.
func (k containerClients) Secret(clientID string, seed logging.Secret) (logging.Secret, bool) {
	return k.store.SecretOf(oauth.ClientID(clientID), seed)
}

// Delete implements container.Clients. A client that is not there is gone for good: the store says so only when
// that is on disk.
func (k containerClients) Delete(ctx context.Context, clientID string) error {
	if err := k.store.DeleteClient(ctx, oauth.ClientID(clientID)); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

func oauthClient(c container.Client) oauth.Client {
	return oauth.Client{Name: c.Name, Public: c.Public, Service: c.Service, Redirects: c.Redirects, Scope: c.Scope}
}

// containerPeople is what an organization knows of those who come to its containers.
type containerPeople struct {
	s  *Server
	t  *tenant.Tenant
	in *site
}

// Policy implements container.People. An organization whose people are not known lets nobody in.
func (p containerPeople) Policy() *permission.Policy {
	policy, err := p.t.Policy()
	if err != nil {
		return &permission.Policy{}
	}
	return policy
}

// Username implements container.People.
func (p containerPeople) Username(user id.User) string {
	name, _ := p.t.Member(user)
	return name
}

// Bearer implements container.People.
func (p containerPeople) Bearer(token string) (container.Bearer, bool) {
	if usertoken.Looks(token) {
		if p.s.opts.Users == nil {
			return container.Bearer{}, false
		}
		user, err := p.s.opts.Users.Verify(token)
		return container.Bearer{Subject: permission.Subject{User: user.ID, Limit: everything}, Until: user.Expires}, err == nil
	}
	who, ok := p.in.oauth.Authenticate(token)
	if !ok {
		return container.Bearer{}, false
	}
	return container.Bearer{Subject: permission.Subject{User: id.User(who.UserID), Limit: limitOf(who.Scope)}, Client: string(who.ClientID)}, true
}

// Session implements container.People.
func (p containerPeople) Session(user id.User, name string) bool {
	raw, err := hex.DecodeString(name)
	if err != nil || len(raw) != len(sessionKey{}) {
		return false
	}
	all := p.in.sessions
	all.mu.Lock()
	defer all.mu.Unlock()
	one := all.all[sessionKey(raw)]
	return one != nil && one.user == user && all.now().Before(one.expires)
}

// sessionName names a session to those who may not use it.
func sessionName(one *session) string { return hex.EncodeToString(one.key[:]) }
