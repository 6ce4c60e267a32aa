package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

type createTokenInput struct {
	Keyed
	Body api.CreateToken
}

// createToken makes a token. A repeated key answers with the first token and without its secret, which
// is not kept anywhere.
func (s *Server) createToken(ctx context.Context, in *createTokenInput) (*changed[api.CreatedToken], error) {
	var c checks
	cmd := command.PutToken{
		Meta: s.meta(ctx), Token: id.NewToken(), Role: in.Body.Role,
		Name: parse(&c, "body.name", in.Body.Name, text),
	}
	if in.Body.TTL != nil {
		ttl := bounded(&c, "body.ttl", in.Body.TTL, ttlLimit)
		if *in.Body.TTL == 0 {
			c.add("body.ttl", errors.New("a token must live longer than 0s; leave ttl out for one that does not expire"))
		}
		cmd.ExpiresAt = cmd.At.Add(ttl)
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	secret := id.Secret()
	sum := sha256.Sum256([]byte(secret))
	cmd.Hash = hex.EncodeToString(sum[:])
	var err error
	if cmd.Key, cmd.Digest, err = in.digests(ctx, in.Body); err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, cmd)
	if err != nil {
		return nil, err
	}
	made, status := cmd.Token, http.StatusCreated
	if result.Existing {
		made, status, secret = id.Token(result.Object), http.StatusOK, ""
	}
	v := s.opts.Store.View()
	rec := v.Token(nil, made)
	if rec == nil {
		return nil, fault.New(fault.Superseded, "token %s was revoked meanwhile", made)
	}
	return &changed[api.CreatedToken]{Status: status, Index: v.Index(), Body: api.CreatedToken{Token: token(rec), Secret: secret}}, nil
}

type listTokensInput struct {
	Reading
	Paging
}

func (s *Server) listTokens(ctx context.Context, in *listTokensInput) (*answer[api.List[api.Token]], error) {
	var c checks
	p := paging(&c, in.Paging, id.ParseToken)
	if err := c.err(); err != nil {
		return nil, err
	}
	return read(ctx, s, in.Reading, func(v state.View, ws state.WatchSet) (api.List[api.Token], error) {
		return page(p, watching(ws, v.TokensAfter), func(t *state.Token) id.Token { return t.ID }, every, token), nil
	})
}

type tokenInput struct {
	ID string `path:"id" doc:"Public id of the token" example:"tk-abcdefghij"`
}

func (s *Server) deleteToken(ctx context.Context, in *tokenInput) (*struct{}, error) {
	var c checks
	t := parse(&c, "path.id", in.ID, id.ParseToken)
	if err := c.err(); err != nil {
		return nil, err
	}
	_, err := s.propose(ctx, command.DeleteToken{Meta: s.meta(ctx), Token: t})
	return nil, err
}
