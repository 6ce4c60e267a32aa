package tenantapi

import (
	"net/http"
	"strings"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// subject is who makes a request, by what he showed.
type subject struct {
	permission.Subject
	person bool           // he himself, and not a client in his name
	client oauth.ClientID // that acts in his name
}

var everything = []permission.Pattern{permission.Everything()}

// admit finds out who makes a call and lets in whom the row's action is allowed.
func (s *Server) admit(c *Call, route *Route) error {
	if route.Hosted {
		if token, ok := hostingToken(c.R); ok {
			c.Hosting = token
			return nil
		}
	}
	resource, err := route.resource(c.Tenant.Organization(), c.params)
	if err != nil {
		return err
	}
	who, err := s.whoCalls(c)
	if err != nil {
		return err
	}
	if route.Locate != nil {
		if resource.Project, err = route.Locate(c); err != nil {
			return err
		}
	}
	policy, err := c.Tenant.Policy()
	if err != nil {
		return err
	}
	if d := policy.Check(who.Subject, route.Action, resource); !d.Allowed {
		return fault.New(fault.Forbidden, "cannot allow %s: %s", route.Action, d.Reason)
	}
	c.Subject, c.Resource = who.Subject, resource
	c.caller = string(who.User) + "\x00" + string(who.client)
	return nil
}

// whoCalls reads the one credential of a request: an access token, a platform user's token, or a session.
func (s *Server) whoCalls(c *Call) (subject, error) {
	in, err := s.site(c)
	if err != nil {
		return subject{}, err
	}
	if len(c.R.Header.Values("Authorization")) > 0 {
		return s.bearer(in, c.R)
	}
	one, ok := s.sessionOf(c.Tenant, in, c.R)
	if !ok {
		return subject{}, fault.New(fault.Unauthenticated, "show an access token of this organization, a token of the platform, or log in")
	}
	if c.R.Method != http.MethodGet && c.R.Method != http.MethodHead && !sameOrigin(c.R) {
		return subject{}, errCrossOrigin
	}
	return subject{Subject: permission.Subject{User: one.user, Limit: everything}, person: true}, nil
}

// bearer reads an Authorization header.
func (s *Server) bearer(in *site, r *http.Request) (subject, error) {
	headers := r.Header.Values("Authorization")
	scheme, token, _ := strings.Cut(headers[0], " ")
	token = strings.TrimLeft(token, " ")
	if len(headers) != 1 || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return subject{}, fault.New(fault.Unauthenticated, "show one token, as in Authorization: Bearer <token>")
	}
	if usertoken.Looks(token) {
		if s.opts.Users == nil {
			return subject{}, fault.New(fault.Unauthenticated, "this host believes no tokens of the platform")
		}
		user, err := s.opts.Users.Verify(token)
		if err != nil {
			return subject{}, fault.Wrap(fault.Unauthenticated, err, "the token of the platform is not good")
		}
		return subject{Subject: permission.Subject{User: user.ID, Limit: everything}, person: true}, nil
	}
	who, ok := in.oauth.Authenticate(token)
	if !ok || who.UserID == "" {
		return subject{}, fault.New(fault.Unauthenticated, "show an access token that is good and that a person has given")
	}
	return subject{Subject: permission.Subject{User: id.User(who.UserID), Limit: limitOf(who.Scope)}, client: oauth.ClientID(who.ClientID)}, nil
}

// limitOf is what an access token is good for.
func limitOf(scope []string) []permission.Pattern {
	limit := make([]permission.Pattern, 0, len(scope))
	for _, one := range scope {
		if p, err := permission.ParsePattern(one); err == nil { // other scopes mean something elsewhere
			limit = append(limit, p)
		}
	}
	return limit
}
