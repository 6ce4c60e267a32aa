package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Lives of a join token.
const (
	joinTTL      = time.Hour
	joinTTLLimit = 24 * time.Hour
)

// joinTokenLimit is more than the size of any join token.
const joinTokenLimit = 4096

type createJoinTokenInput struct {
	Keyed
	Body api.CreateJoinToken
}

// createJoinToken makes a join token. A repeated key answers with the first one and without its text, which
// is not kept anywhere. What a coordinator gets when it joins is worth more than any token, so only an admin
// may bring one in.
func (s *Server) createJoinToken(ctx context.Context, in *createJoinTokenInput) (*changed[api.CreatedJoinToken], error) {
	var c checks
	role := parse(&c, "body.role", in.Body.Role, pki.ParseRole)
	name := optional(&c, "body.name", in.Body.Name, id.ParseHost)
	ttl := joinTTL
	if in.Body.TTL != nil {
		if ttl = bounded(&c, "body.ttl", in.Body.TTL, joinTTLLimit); *in.Body.TTL == 0 {
			c.add("body.ttl", errors.New("a join token must live longer than 0s; leave ttl out for one hour"))
		}
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	if who := callerOf(ctx); role == pki.RoleCoordinator && who.token.Role != api.RoleAdmin {
		return nil, fault.New(fault.Forbidden, "a token of role %q may not bring a coordinator in; it takes one of: %s", who.token.Role, api.RoleAdmin)
	}
	token := pki.NewJoinToken(s.opts.Trust.Pin())
	cmd := command.PutJoinToken{Meta: s.meta(ctx), Token: token.ID, Role: string(role), Name: string(name), Hash: string(token.Hash())}
	cmd.ExpiresAt = cmd.At.Add(ttl)
	var err error
	if cmd.Key, cmd.Digest, err = in.digests(ctx, in.Body); err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, cmd)
	if err != nil {
		return nil, err
	}
	made, status, secret := token.ID, http.StatusCreated, token.Reveal()
	if result.Existing {
		made, status, secret = id.JoinToken(result.Object), http.StatusOK, ""
	}
	v := s.opts.Store.View()
	rec := v.JoinToken(nil, made)
	if rec == nil {
		return nil, fault.New(fault.Superseded, "join token %s was taken back meanwhile", made)
	}
	return &changed[api.CreatedJoinToken]{Status: status, Index: v.Index(), Body: api.CreatedJoinToken{JoinToken: joinToken(rec), Secret: secret}}, nil
}

// joinToken converts a record.
func joinToken(k *state.JoinToken) api.JoinToken {
	return api.JoinToken{
		JoinTokenID: string(k.ID), Role: k.Role, Name: k.Name, CreatedAt: k.CreatedAt.UTC(), ExpiresAt: k.ExpiresAt.UTC(),
		UsedAt: instant(k.UsedAt), UsedBy: k.UsedBy, Index: k.ModifyIndex,
	}
}

type listJoinTokensInput struct {
	Reading
	Paging
}

func (s *Server) listJoinTokens(ctx context.Context, in *listJoinTokensInput) (*answer[api.List[api.JoinToken]], error) {
	var c checks
	p := paging(&c, in.Paging, id.ParseJoinToken)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.List[api.JoinToken], error) {
		return page(p, watching(ws, v.JoinTokensAfter), func(k *state.JoinToken) id.JoinToken { return k.ID }, every, joinToken), nil
	})
}

type joinTokenInput struct {
	ID string `path:"id" doc:"Public id of the join token" example:"jt-abcdefghij"`
}

func (s *Server) deleteJoinToken(ctx context.Context, in *joinTokenInput) (*struct{}, error) {
	var c checks
	t := parse(&c, "path.id", in.ID, id.ParseJoinToken)
	if err := c.err(); err != nil {
		return nil, err
	}
	_, err := s.propose(ctx, command.DeleteJoinToken{Meta: s.meta(ctx), Token: t})
	return nil, err
}

// admitJoiner lets the holder of a join token through to the one call that it is for. All refusals are the
// same, so that nothing can be learned from them. Whether it was used already is decided in the log.
func (s *Server) admitJoiner(c *caller, r *http.Request) *fault.Error {
	if f := s.limits.anonymous(c.address); f != nil {
		return f
	}
	refused := fault.New(fault.Unauthenticated, "this join token is unknown, was used or has expired; make a new one (`demiurge host join-token`)")
	text, f := bearerOf(r, refused, joinTokenLimit)
	if f != nil {
		return f
	}
	token, err := pki.ParseJoinToken(text)
	if err != nil {
		return refused
	}
	record := s.opts.Store.View().JoinToken(nil, token.ID)
	if record == nil && !s.opts.Cluster.IsLeader() {
		return noLeader(nil) // the token may be in what is not applied here yet
	}
	if record == nil || !pki.TokenHash(record.Hash).Matches(token) || !s.opts.Now().Before(record.ExpiresAt) {
		return refused
	}
	c.join = record
	return nil
}

// joinInput is of joining and of renewing.
type joinInput struct {
	Body api.JoinRequest
}

// noStore keeps what holds secrets out of every cache.
type noStore struct {
	CacheControl string `header:"Cache-Control"`
	Body         api.JoinAnswer
}

// join lets a program in.
func (s *Server) join(ctx context.Context, in *joinInput) (*noStore, error) {
	name, key, err := in.check()
	if err != nil {
		return nil, err
	}
	token := callerOf(ctx).join
	if in.Body.Role != token.Role {
		return nil, fault.New(fault.Forbidden, "this join token is for a program of role %q and not for one of role %q; it was not used up", token.Role, in.Body.Role)
	}
	if _, err := s.propose(ctx, command.Enroll{Meta: s.meta(ctx), Token: token.ID, Name: string(name), PublicKey: key}); err != nil {
		if limited := s.limits.failed(callerOf(ctx).address); fault.Is(err, fault.Unauthenticated) && limited != nil {
			err = limited
		}
		return nil, err
	}
	return s.certify(in.Body)
}

// renewCertificate gives an agent the next certificate of the host that it speaks for.
func (s *Server) renewCertificate(ctx context.Context, in *joinInput) (*noStore, error) {
	name, _, err := in.check()
	if err != nil {
		return nil, err
	}
	who := callerOf(ctx).agent
	if in.Body.Role != string(who.who.Role()) || string(name) != who.who.Name() {
		return nil, fault.New(fault.Forbidden, "the certificate of %s %q is renewed for itself only, and not for %s %q", who.who.Role(), who.who.Name(), in.Body.Role, name)
	}
	if err := s.atLeader(); err != nil {
		return nil, err
	}
	return s.certify(in.Body)
}

// check reads a request.
func (in *joinInput) check() (id.Host, string, error) {
	var c checks
	name := parse(&c, "body.name", in.Body.Name, id.ParseHost)
	key := parse(&c, "body.csr", in.Body.CSR, pki.RequestKey)
	return name, key, c.err()
}

// certify answers a request of a program that is enrolled. The certificate begins no earlier than the
// enrolment, whatever this coordinator's clock says: an earlier one would not count.
func (s *Server) certify(rq api.JoinRequest) (*noStore, error) {
	role, err := pki.ParseRole(rq.Role)
	if err != nil {
		return nil, err
	}
	e := s.opts.Store.View().Enrolment(nil, rq.Role, rq.Name)
	if e == nil {
		return nil, fault.New(fault.Unauthenticated, "%s %q was taken out meanwhile", rq.Role, rq.Name)
	}
	now := s.opts.Now()
	if now.Before(e.ValidFrom) {
		now = e.ValidFrom
	}
	certificate, ca, err := s.opts.Trust.Issue(rq.CSR, role, rq.Name, now)
	if err != nil {
		return nil, fmt.Errorf("cannot issue a certificate: %w", err)
	}
	return &noStore{CacheControl: "no-store", Body: api.JoinAnswer{Certificate: certificate, CA: ca, Cluster: s.opts.Trust.Cluster(role)}}, nil
}
