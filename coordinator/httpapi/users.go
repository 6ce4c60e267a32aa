package httpapi

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// Roles of members that may end what their organization runs.
const (
	owner         = "owner"
	administrator = "admin"
)

// fromUser reports whether a request brings the token of a platform user, a good one or not.
func fromUser(r *http.Request) bool {
	secret, f := bearerOf(r, errCredential(), usertoken.MaxToken)
	return f == nil && usertoken.Looks(secret)
}

// admitUser lets a platform user through to the few calls that are for members of an organization. Of which
// organization is found by the handler.
func (s *Server) admitUser(c *caller, token string) *fault.Error {
	if s.opts.Users == nil {
		return errCredential()
	}
	user, err := s.opts.Users.Verify(token)
	if err != nil {
		s.log.Debug("the token of a user is refused", "address", c.address, "error", err)
		return errCredential()
	}
	c.user = &user
	if f := s.limits.user(c.actor()); f != nil {
		return f
	}
	if access := c.route.access; access&(aMember|aManager) == 0 {
		return fault.New(fault.Forbidden, "a platform user may not do this; it takes a token of one of: %s", strings.Join(access.names(), ", "))
	}
	if !s.opts.Cluster.IsLeader() {
		return noLeader(nil) // who is a member now is not known here
	}
	// The memory of a reading is of all that was looked at for it, and that is another thing for each user.
	if c.readKey != "" {
		c.readKey += "#" + c.actor()
	}
	return nil
}

// mayAct refuses a platform user who is no member of an organization, or in a role that is too low for the
// route. For everybody else the gate has decided. An organization that does not exist has no members, so
// the answer does not tell whether it does.
func (s *Server) mayAct(ctx context.Context, v state.View, ws state.WatchSet, org id.Organization) error {
	c := callerOf(ctx)
	if c.user == nil {
		return nil
	}
	role, ok := memberRole(v, ws, org, c.user.ID)
	if !ok {
		return fault.New(fault.Forbidden, "you are no member of organization %s", org)
	}
	if c.route.access&aMember != 0 || c.route.access&aManager != 0 && (role == owner || role == administrator) {
		return nil
	}
	return fault.New(fault.Forbidden, "a member of organization %s in the role %q may not do this; it takes an owner or an admin", org, role)
}

// mayRelease is mayAct for an allocation. To who is no member it looks as if there were none.
func (s *Server) mayRelease(ctx context.Context, a id.Allocation) error {
	c := callerOf(ctx)
	if c.user == nil {
		return nil
	}
	if err := s.atLeader(); err != nil {
		return err
	}
	v := s.opts.Store.View()
	rec := v.Allocation(nil, a)
	if rec != nil {
		if _, ok := memberRole(v, nil, rec.Organization, c.user.ID); ok {
			return s.mayAct(ctx, v, nil, rec.Organization)
		}
	}
	return fault.New(fault.NotFound, "allocation %s is not known; it may have been collected after it ended", a)
}

// memberRole is the role of a user in an organization; false when there is none.
func memberRole(v state.View, ws state.WatchSet, org id.Organization, user id.User) (string, bool) {
	o := v.Organization(ws, org)
	if o == nil {
		return "", false
	}
	// Members are sorted by user.
	n, ok := slices.BinarySearchFunc(o.Members, user, func(m command.Member, u id.User) int { return strings.Compare(string(m.User), string(u)) })
	if !ok {
		return "", false
	}
	return o.Members[n].Role, true
}
