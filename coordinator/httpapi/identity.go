package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// headerIdentity carries who a caller's certificate is for, and its life, from the coordinator that made
// the handshake to the one that leads. It is believed where headerCaller is, and nowhere else.
const headerIdentity = "X-Demiurge-Identity"

// identity is the certificate of a caller as a handshake verified it.
type identity struct {
	who         pki.Identity
	from, until time.Time
}

type identityKey struct{}

// identityOf is who the caller's certificate is for; false when it came without one.
func identityOf(r *http.Request) (identity, bool) {
	if forwarded(r.Context()) { // the certificate of this connection is the other coordinator's
		i, ok := r.Context().Value(identityKey{}).(identity)
		return i, ok
	}
	who, ok := pki.PeerOf(r.TLS)
	if !ok {
		return identity{}, false
	}
	leaf := r.TLS.PeerCertificates[0]
	return identity{who, leaf.NotBefore, leaf.NotAfter}, true
}

// header prints an identity for the coordinator that leads.
func (i identity) header() string {
	return fmt.Sprintf("%s %d %d", i.who, i.from.Unix(), i.until.Unix())
}

// parseIdentity reads what header printed.
func parseIdentity(s string) (identity, error) {
	parts := strings.Split(s, " ")
	if len(parts) != 3 {
		return identity{}, fmt.Errorf("cannot read the identity of a caller: it has %d parts", len(parts))
	}
	who, err := pki.ParseIdentity(parts[0])
	if err != nil {
		return identity{}, err
	}
	var life [2]int64
	for n, part := range parts[1:] {
		if life[n], err = strconv.ParseInt(part, 10, 64); err != nil {
			return identity{}, fmt.Errorf("cannot read the life of a caller's certificate: %w", err)
		}
	}
	return identity{who, time.Unix(life[0], 0), time.Unix(life[1], 0)}, nil
}

// admitAgent lets a host's agent through: one whose certificate is of a host that is enrolled now. That its
// certificate is of this cluster was checked in the handshake. Whether it still counts is checked at every
// call, because connections are kept.
func (s *Server) admitAgent(c *caller, r *http.Request) *fault.Error {
	i, ok := identityOf(r)
	if !ok {
		return fault.New(fault.Unauthenticated, "this call is for the agent of a host and needs the host's certificate; join the host (`demiurge host join-token`, `demiurge-agent join`)")
	}
	c.agent = &i
	if f := s.limits.token(c.actor()); f != nil {
		return f
	}
	if i.who.Role() != pki.RoleAgent {
		return fault.New(fault.Forbidden, "the certificate of a %s may not do this: it is for the agent of a host", i.who.Role())
	}
	if !s.opts.Now().Before(i.until) {
		return fault.New(fault.Unauthenticated, "the certificate of host %q has expired; join it again (`demiurge host join-token`, `demiurge-agent join`)", i.who.Name())
	}
	if s.enrolled(nil, i) {
		return nil
	}
	if !s.opts.Cluster.IsLeader() {
		return noLeader(nil) // the enrolment may be in what is not applied here yet
	}
	return fault.New(fault.Unauthenticated, "the certificate of host %q counts no more: the host was deleted, or has joined again; join it again (`demiurge host join-token --host %[1]s`, `demiurge-agent join`)", i.who.Name())
}

// enrolled reports whether a certificate belongs to the enrolment that its program has now. One from before
// it belongs to a host that was deleted or replaced. Certificates count in seconds.
func (s *Server) enrolled(ws state.WatchSet, i identity) bool {
	e := s.opts.Store.View().Enrolment(ws, string(i.who.Role()), i.who.Name())
	return e != nil && !i.from.Before(e.ValidFrom.Add(-pki.Backdate).Truncate(time.Second))
}

// whileEnrolled is a context for an answer that is held open: it ends when the caller's certificate ends, or
// its enrolment. The returned function gives it up.
func (s *Server) whileEnrolled(ctx context.Context, i identity) (context.Context, context.CancelFunc) {
	return s.while(ctx, i.until, func(ws state.WatchSet) bool { return s.enrolled(ws, i) })
}
