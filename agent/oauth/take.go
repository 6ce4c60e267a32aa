package oauth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Consented is what a person has agreed to: the client may act for him within the scope.
type Consented struct {
	Client    ClientID
	User      id.User
	Redirect  string   // as the client sent it
	Scope     []string // none: all that the client can be given
	Challenge string   // of PKCE with S256; empty: none
}

// IssueCode makes an authorization code. It is good once, for the client, with the redirect and the verifier.
func (s *Store) IssueCode(ctx context.Context, a Consented) (logging.Secret, error) {
	var value logging.Secret
	err := s.change(ctx, false, func(x *tx) error {
		c := x.clients[a.Client]
		if c == nil {
			return refuse("invalid_client", "there is no such client")
		}
		scope, refused := c.narrow(a.Scope)
		switch {
		case refused != nil:
			return refused
		case a.User == "":
			return refuse("access_denied", "nobody is logged in")
		case !c.redirects(a.Redirect):
			return refuse("invalid_request", "the redirect is not one of the client's")
		case a.Challenge == "" && c.Public:
			return refuse("invalid_request", "a public client must use PKCE: send code_challenge with code_challenge_method=S256")
		case int(x.stats.Live[Code]) >= x.opts.limits.Codes:
			return full("the organization has as many codes as are allowed")
		}
		if h := x.users[a.User]; h != nil && h.grants >= x.opts.limits.PerUser {
			return full("you have %d logins, as many as are allowed: end one or wait", h.grants)
		}
		g := x.do(record{op: putGrant, grant: x.lastGrant + 1, client: c.Client, user: a.User, scope: scope, ends: x.at + x.opts.lifetimes.Absolute.Milliseconds()})
		var d digest
		value, d = newValue(Code)
		x.do(record{
			op: putToken, known: g, kind: Code, digest: d, scope: scope, expires: x.at + x.opts.lifetimes.Code.Milliseconds(),
			code: codeTies{redirect: a.Redirect, challenge: a.Challenge},
		})
		return nil
	})
	if err != nil {
		return logging.Secret{}, err
	}
	return value, nil
}

// Issued are new tokens.
type Issued struct {
	Access  logging.Secret
	Refresh logging.Secret // none for a client that acts for itself
	Info    Info           // of the access token
	family  *grant
}

// Redemption is what a client shows to exchange a code.
type Redemption struct {
	Client   ClientID
	Code     string
	Redirect string
	Verifier string
}

// Redeem exchanges a code for tokens. The first attempt of the client decides: when anything is wrong with
// it, or when the code comes a second time, everything that came of the code ends.
func (s *Store) Redeem(ctx context.Context, r Redemption) (Issued, error) {
	return s.take(ctx, func(x *tx, out *Issued) error {
		d, ok := parseValue(r.Code, Code)
		t := x.find(d, x.at)
		if !ok || t == nil || t.kind != Code || t.grant.client.ID != r.Client {
			return refuse("invalid_grant", "the code is not known, has expired or belongs to another client")
		}
		switch g := t.grant; {
		case t.used:
			x.do(record{op: dropGrant, known: g})
			return reused("the code was used before: all tokens that came of it have ended")
		case t.code.redirect != r.Redirect:
			x.do(record{op: dropGrant, known: g})
			return refuse("invalid_grant", "the redirect_uri is not the one that the code was asked for with; the code has ended")
		case !verifies(t.code.challenge, r.Verifier):
			x.do(record{op: dropGrant, known: g})
			return refuse("invalid_grant", "the code_verifier does not fit the challenge; the code has ended")
		default:
			if refused := x.room(g, 2); refused != nil {
				return refused
			}
			x.do(record{op: useCode, digest: d})
			x.do(record{op: rotate, known: g, generation: 1, rotated: x.at})
			x.issue(out, g, g.scope.Value())
			return nil
		}
	})
}

// RefreshRequest is what a client shows to exchange a refresh token.
type RefreshRequest struct {
	Client ClientID
	Token  string
	Scope  []string // of the access token; none: all of the family
}

// Refresh exchanges a refresh token for a new one and an access token. A token is exchanged once. Within the
// grace the same client may do it again, because answers get lost and programs ask twice: it gets a sibling
// of the new token, and the first sibling that is exchanged ends the others. After that a token that was
// exchanged is in somebody else's hands, and the family dies.
func (s *Store) Refresh(ctx context.Context, r RefreshRequest) (Issued, error) {
	return s.take(ctx, func(x *tx, out *Issued) error {
		d, ok := parseValue(r.Token, Refresh)
		t := x.find(d, x.at)
		if !ok || t == nil || t.kind != Refresh || t.grant.client.ID != r.Client {
			return refuse("invalid_grant", "the refresh token is not known, has expired or belongs to another client")
		}
		g := t.grant
		scope, refused := narrow(strings.Fields(g.scope.Value()), r.Scope)
		if refused != nil {
			return refused
		}
		again := t.generation+1 == g.generation && max(x.at-g.rotated, g.rotated-x.at) < x.opts.lifetimes.Grace.Milliseconds()
		if t.generation != g.generation && !again {
			x.do(record{op: dropGrant, known: g})
			return reused("the refresh token was exchanged before: all tokens of this login have ended")
		}
		if refused := x.room(g, 2); refused != nil {
			return refused
		}
		if again {
			if g.siblings >= maxSiblings {
				return full("the refresh token was exchanged %d times within its grace: use what was given", g.siblings)
			}
			g.siblings++
		} else {
			x.do(record{op: rotate, known: g, generation: g.generation + 1, rotated: x.at})
		}
		x.issue(out, g, scope)
		return nil
	})
}

// Service gives a client a token for itself.
func (s *Store) Service(ctx context.Context, client ClientID, scope []string) (Issued, error) {
	return s.take(ctx, func(x *tx, out *Issued) error {
		c := x.clients[client]
		if c == nil || !c.Service {
			return refuse("unauthorized_client", "this client cannot ask for tokens for itself")
		}
		granted, refused := c.narrow(scope)
		if refused != nil {
			return refused
		}
		if c.services >= x.opts.limits.PerService {
			return full("the client has %d tokens, as many as are allowed: use the one you have until it expires", c.services)
		}
		if refused := x.room(nil, 1); refused != nil {
			return refused
		}
		ends := x.at + x.opts.lifetimes.Access.Milliseconds()
		g := x.do(record{op: putGrant, grant: x.lastGrant + 1, client: c.Client, scope: granted, ends: ends})
		x.issue(out, g, granted)
		return nil
	})
}

// End ends a family whose tokens were just issued.
func (s *Store) End(ctx context.Context, out Issued) error {
	return s.change(ctx, true, func(x *tx) error {
		if out.family != nil && !out.family.gone {
			x.do(record{op: dropGrant, known: out.family})
		}
		return nil
	})
}

// take is the one way in which codes, refresh tokens and credentials become tokens.
func (s *Store) take(ctx context.Context, decide func(x *tx, out *Issued) error) (Issued, error) {
	var out Issued
	if err := s.change(ctx, false, func(x *tx) error { return decide(x, &out) }); err != nil {
		return Issued{}, err
	}
	return out, nil
}

// issue makes an access token and, for a person, the refresh token of the grant's generation.
func (x *tx) issue(out *Issued, g *grant, scope string) {
	give := func(k Kind, lifetime int64, scope string) (logging.Secret, int64) {
		value, d := newValue(k)
		r := record{op: putToken, known: g, kind: k, digest: d, scope: scope, expires: min(x.at+lifetime, g.ends)}
		if k == Refresh {
			r.generation = g.generation
		}
		x.do(r)
		return value, r.expires
	}
	out.family = g
	var expires int64
	out.Access, expires = give(Access, x.opts.lifetimes.Access.Milliseconds(), scope)
	out.Info = Info{Kind: Access, Client: g.client.ID, User: g.userOf(), Scope: strings.Fields(scope), Expires: moment(expires)}
	if g.user != nil {
		out.Refresh, _ = give(Refresh, x.opts.lifetimes.Refresh.Milliseconds(), g.scope.Value())
	}
}

// room refuses when so many more tokens would be too many.
func (x *tx) room(g *grant, more int) *Refusal {
	limits := x.opts.limits
	if have := int(x.stats.Live[Access] + x.stats.Live[Refresh]); have+more > limits.Tokens {
		return full("the organization has %d tokens, as many as are allowed: end some or wait until they expire", have)
	}
	if g != nil && int(g.count)+more > limits.PerFamily {
		return full("%d tokens came of this login, as many as are allowed: ask for a new one only when the old one expires", g.count)
	}
	if g != nil && g.user.tokens+more > limits.PerPerson {
		return full("you have %d tokens, as many as one person may have: end some or wait until they expire", g.user.tokens)
	}
	return nil
}

func reused(format string, args ...any) *Refusal {
	r := refuse("invalid_grant", format, args...)
	r.Reused = true
	return r
}

// redirects reports whether people may be sent there for the client.
func (c *Client) redirects(sent string) bool {
	return slices.ContainsFunc(c.Redirects, func(registered string) bool { return matches(registered, sent) })
}

func (c *Client) narrow(asked []string) (string, *Refusal) { return narrow(c.Scope, asked) }

// narrow gives what was asked for, in a stored form, if it is no more than what may be given.
func narrow(allowed, asked []string) (string, *Refusal) {
	if len(asked) == 0 {
		return strings.Join(allowed, " "), nil
	}
	sorted := slices.Clone(asked)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	for _, scope := range sorted {
		if !slices.Contains(allowed, scope) {
			return "", refuse("invalid_scope", "more was asked for than the client can be given")
		}
	}
	return strings.Join(sorted, " "), nil
}

// verifies is RFC 7636, section 4.6, for S256. A verifier without a challenge is refused: somebody has taken
// the challenge out of the request on its way (RFC 9700, section 4.8.2).
func verifies(challenge, verifier string) bool {
	if challenge == "" {
		return verifier == ""
	}
	sum := sha256.Sum256([]byte(verifier))
	return subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(challenge)) == 1
}
