package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// access says who may call a route. The zero value lets nobody in.
type access uint16

const (
	admin access = 1 << iota
	operator
	platform
	reader
	agent  // of a host, with its certificate
	public // anyone on the listener's network, without a token
	joiner // a program with a join token
	// Platform users. Which organization a call is about is in its body or behind an id, so the handler
	// looks (mayAct): a row that lets them in has a handler that asks.
	aMember  // of the organization, in any role
	aManager // owner or admin of the organization
)

// The sets of the routes table. An admin may do everything but speak for a host: an observation has one
// writer, the host's own agent.
const (
	forAnyone     = public
	forReaders    = admin | operator | platform | reader
	forPlatform   = admin | operator | platform
	forMembers    = forPlatform | aMember
	forManagers   = forPlatform | aManager
	forWatchers   = forReaders | aMember
	forOperators  = admin | operator
	forAdmins     = admin
	forHostsAgent = agent
	forJoiners    = joiner
)

// roleOf maps a role of a token to its bit. A role that is not here opens nothing.
func roleOf(role string) access {
	switch role {
	case api.RoleAdmin:
		return admin
	case api.RoleOperator:
		return operator
	case api.RolePlatform:
		return platform
	case api.RoleReader:
		return reader
	}
	return 0
}

// names lists the roles of a set, for the OpenAPI document.
func (a access) names() []string {
	out := []string{}
	for _, r := range []string{api.RoleAdmin, api.RoleOperator, api.RolePlatform, api.RoleReader} {
		if a&roleOf(r) != 0 {
			out = append(out, r)
		}
	}
	if a&aMember != 0 {
		out = append(out, "member of the organization")
	}
	if a&aManager != 0 {
		out = append(out, "owner or admin of the organization")
	}
	if a&agent != 0 {
		out = append(out, string(pki.RoleAgent))
	}
	if a&joiner != 0 {
		out = append(out, "join token")
	}
	return out
}

// caller is who sent a request.
type caller struct {
	token   *state.Token     // of a person or the platform; or nil
	user    *usertoken.User  // of the platform; or nil
	join    *state.JoinToken // of a program that joins; or nil
	agent   *identity        // of a host's agent; or nil
	address string
	route   *route
	readKey string // names the reading that a GET asks for
}

// actor names the caller in events.
func (c *caller) actor() string {
	switch {
	case c == nil:
	case c.token != nil:
		return string(c.token.ID)
	case c.user != nil:
		return c.user.String()
	case c.join != nil:
		return string(c.join.ID)
	case c.agent != nil:
		return string(c.agent.who.Role()) + "/" + c.agent.who.Name()
	}
	return "anonymous"
}

type callerKey struct{}

// callerOf is the caller that the gate let in. Every handler runs behind the gate.
func callerOf(ctx context.Context) *caller { return ctx.Value(callerKey{}).(*caller) }

// meta is the origin of a command that a request proposes.
func (s *Server) meta(ctx context.Context) command.Meta {
	c := callerOf(ctx)
	return command.Meta{At: s.opts.Now(), Actor: c.actor(), Source: c.address}
}

// admit lets a caller through to a route or says why not. The caller is returned with a refusal as far
// as it is known.
func (s *Server) admit(row *route, r *http.Request) (*caller, *fault.Error) {
	c := &caller{address: addressOf(r), route: row}
	if row.method == get {
		c.readKey = readKey(r.URL)
	}
	if row.access&public != 0 {
		return c, s.limits.anonymous(c.address)
	}
	var f *fault.Error
	switch {
	case row.access&joiner != 0:
		f = s.admitJoiner(c, r)
	case row.access&agent != 0:
		f = s.admitAgent(c, r)
	default:
		f = s.admitBearer(c, r)
	}
	if f != nil && f.Code == fault.Unauthenticated {
		if limited := s.limits.failed(c.address); limited != nil {
			return c, limited
		}
	}
	return c, f
}

// errCredential is the answer to every credential that opens nothing, so that nothing can be learned from it.
func errCredential() *fault.Error {
	return fault.New(fault.Unauthenticated, "the token is not valid or has expired; ask an admin for a new one (`demiurge token create`), or log in again")
}

// admitBearer lets the holder of an API token or the user of the platform through.
func (s *Server) admitBearer(c *caller, r *http.Request) *fault.Error {
	secret, f := bearerOf(r, errCredential(), usertoken.MaxToken)
	if f != nil {
		return f
	}
	if usertoken.Looks(secret) {
		return s.admitUser(c, secret)
	}
	return s.admitToken(c, secret)
}

// admitToken lets the holder of an API token through.
func (s *Server) admitToken(c *caller, secret string) *fault.Error {
	token, f := s.authenticate(secret)
	if f != nil {
		return f
	}
	c.token = token
	if f := s.limits.token(string(token.ID)); f != nil {
		return f
	}
	if access := c.route.access; access&roleOf(token.Role) == 0 {
		return fault.New(fault.Forbidden, "a token of role %q may not do this; it takes one of: %s", token.Role, strings.Join(access.names(), ", "))
	}
	return nil
}

// authenticate finds the API token of a secret.
func (s *Server) authenticate(secret string) (*state.Token, *fault.Error) {
	refused := errCredential()
	sum := sha256.Sum256([]byte(secret))
	hash := hex.EncodeToString(sum[:])
	token := s.opts.Store.View().TokenByHash(hash)
	if token == nil && !s.opts.Cluster.IsLeader() {
		return nil, noLeader(nil) // the token may be in what is not applied here yet
	}
	if token == nil || subtle.ConstantTimeCompare([]byte(token.Hash), []byte(hash)) != 1 {
		return nil, refused
	}
	if s.over(token.ExpiresAt) {
		return nil, refused
	}
	return token, nil
}

// over reports whether a moment has come; the zero one never does.
func (s *Server) over(end time.Time) bool { return !end.IsZero() && !s.opts.Now().Before(end) }

// ends is when the caller's token expires; zero: never, or it has none.
func (c *caller) ends() time.Time {
	switch {
	case c.token != nil:
		return c.token.ExpiresAt
	case c.user != nil:
		return c.user.Expires
	}
	return time.Time{}
}

// entitled reports whether the caller's token counts still, and has ws tell when it was revoked. Whether a user is a member
// still is for the handler to see.
func (s *Server) entitled(ws state.WatchSet, c *caller) bool {
	if s.over(c.ends()) {
		return false
	}
	return c.token == nil || s.opts.Store.View().Token(ws, c.token.ID) != nil
}

// whileEntitled is a context for an answer that is held open: it ends when the caller's token expires or is revoked.
func (s *Server) whileEntitled(ctx context.Context) (context.Context, context.CancelFunc) {
	c := callerOf(ctx)
	return s.while(ctx, c.ends(), func(ws state.WatchSet) bool { return s.entitled(ws, c) })
}

// until is a context that ends at a moment; the zero one never comes.
func (s *Server) until(ctx context.Context, end time.Time) (context.Context, context.CancelFunc) {
	if end.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, end.Sub(s.opts.Now()))
}

// while is a context that ends at a moment, or when something that the state has is no longer so. The returned function
// gives it up.
func (s *Server) while(ctx context.Context, until time.Time, so func(state.WatchSet) bool) (context.Context, context.CancelFunc) {
	ctx, cancel := s.until(ctx, until)
	go func() { // ends with ctx
		for ctx.Err() == nil {
			ws := state.WatchSet{}
			ws.Add(s.opts.Store.Restored())
			if !so(ws) {
				cancel()
				return
			}
			_ = ws.WatchCtx(ctx) // its error is ctx's, which the loop looks at
		}
	}()
	return ctx, cancel
}

// bearerOf is what the caller sent to prove who it is, of bounded size; refused is the answer to what cannot
// be one.
func bearerOf(r *http.Request, refused *fault.Error, limit int) (string, *fault.Error) {
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 {
		return "", fault.New(fault.Unauthenticated, "this call needs a token: send the header \"Authorization: Bearer <token>\"")
	}
	scheme, secret, ok := strings.Cut(headers[0], " ")
	if len(headers) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || secret == "" || len(secret) > limit {
		return "", refused
	}
	return secret, nil
}
