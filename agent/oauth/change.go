package oauth

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Refusal is an answer of RFC 6749, section 5.2: what was asked for is not given. It never holds what the
// caller sent.
type Refusal struct {
	Status      int
	Code        string // of the RFCs: "invalid_grant"
	Description string
	RetryAfter  time.Duration
	Reused      bool // a code or refresh token came a second time, and its family has died
}

// Error implements error.
func (r *Refusal) Error() string { return r.Code + ": " + r.Description }

func refuse(code, format string, args ...any) *Refusal {
	return &Refusal{Status: http.StatusBadRequest, Code: code, Description: fmt.Sprintf(format, args...)}
}

// full says that a limit is reached.
func full(format string, args ...any) *Refusal {
	return &Refusal{Status: http.StatusTooManyRequests, Code: "temporarily_unavailable", Description: fmt.Sprintf(format, args...), RetryAfter: time.Minute}
}

// tx is one decision: what it does is applied at once, and journaled as one record that is read whole or not
// at all. The store's mu is held.
type tx struct {
	*Store
	at   int64
	form []byte
}

func (x *tx) do(r record) *grant {
	if r.known != nil {
		r.grant = r.known.number
	}
	x.form = r.append(x.form)
	return x.apply(&r)
}

// change makes a decision and returns when everything that it was based on, its own records included, is on
// disk. So no answer says what a crash would take back.
//
// While the disk refuses writes nothing is given out. What only ends things (ending) happens in memory
// nevertheless, and the error says that it is not yet durable; the journal holds it when the disk is back.
func (s *Store) change(ctx context.Context, ending bool, decide func(x *tx) error) error {
	s.mu.Lock()
	if err := s.journal.trouble(); err != nil && !ending {
		s.mu.Unlock()
		return err
	}
	x := tx{Store: s, at: s.now()}
	refused := decide(&x)
	if len(x.form) > 0 {
		s.version++
	}
	written := s.journal.append(x.form)
	s.mu.Unlock()
	err := s.journal.wait(ctx, written)
	if s.journal.wantsBase() {
		s.opts.compact()
	}
	if err != nil {
		return err
	}
	return refused
}

// AddClient keeps a client that NewClient has checked. The secret is empty for a public one; it is not kept
// and cannot be read again.
func (s *Store) AddClient(ctx context.Context, c Client) (logging.Secret, error) {
	var secret logging.Secret
	err := s.change(ctx, false, func(x *tx) error {
		var err error
		secret, err = x.addClient(c, id.Secret())
		return err
	})
	if err != nil {
		return logging.Secret{}, err
	}
	return secret, nil
}

// addClient keeps a client whose secret is made of a seed.
func (x *tx) addClient(c Client, seed string) (logging.Secret, error) {
	if len(x.clients) >= x.opts.limits.Clients {
		return logging.Secret{}, fault.New(fault.RateLimited, "organization %s has %d OAuth clients, the most that are allowed: delete one first", x.opts.organization, len(x.clients))
	}
	if x.clients[c.ID] != nil {
		return logging.Secret{}, fault.New(fault.Conflict, "client %s exists", c.ID)
	}
	r := record{op: putClient, client: c}
	var secret logging.Secret
	if !c.Public {
		text := secretOf(seed)
		secret, r.secret = logging.NewSecret(text), sha256.Sum256([]byte(text))
	}
	x.do(r)
	return secret, nil
}

// DeleteClient ends a client and all its codes and tokens.
func (s *Store) DeleteClient(ctx context.Context, c ClientID) error {
	return s.change(ctx, true, func(x *tx) error {
		if x.clients[c] == nil {
			return fault.New(fault.NotFound, "organization %s has no OAuth client %s", x.opts.organization, c)
		}
		x.do(record{op: dropClient, client: Client{ID: c}})
		return nil
	})
}

// Client returns a client.
func (s *Store) Client(c ClientID) (Client, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.clients[c]; found != nil && !s.closed {
		return found.clone(), true
	}
	return Client{}, false
}

// Clients lists all clients by id.
func (s *Store) Clients() []Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Client, 0, len(s.clients))
	for _, c := range s.clients {
		out = append(out, c.clone())
	}
	slices.SortFunc(out, func(a, b Client) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// Authenticate reports whether the secret is the client's. It is false for a public client, which has none.
func (s *Store) Authenticate(c ClientID, secret string) bool {
	s.mu.Lock()
	found := s.clients[c]
	var want digest
	if found != nil && !s.closed {
		want = found.secret
	}
	s.mu.Unlock()
	return isSecret(want, secret)
}

// RemoveMember ends all codes and tokens of a person who has left the organization.
func (s *Store) RemoveMember(ctx context.Context, user id.User) error {
	return s.change(ctx, true, func(x *tx) error {
		if x.users[user] != nil {
			x.do(record{op: dropUser, user: user})
		}
		return nil
	})
}

// KeepMembers is RemoveMember for everybody whom the organization does not have any more.
func (s *Store) KeepMembers(ctx context.Context, isMember func(id.User) bool) error {
	s.mu.Lock()
	users := slices.Collect(maps.Keys(s.users))
	s.mu.Unlock()
	for _, user := range users {
		if !isMember(user) {
			if err := s.RemoveMember(ctx, user); err != nil {
				return err
			}
		}
	}
	return nil
}

// Revoke ends a token of the client (RFC 7009): a refresh token with its whole family, an access token
// alone. One that is not known is no error, because it is as dead as the caller wants it.
func (s *Store) Revoke(ctx context.Context, c ClientID, value string) error {
	return s.change(ctx, true, func(x *tx) error {
		d, ok := parseValue(value, Access, Refresh)
		if !ok {
			return nil
		}
		t := x.find(d, x.at)
		switch {
		case t == nil:
		case t.grant.client.ID != c:
			return refuse("unauthorized_client", "the token belongs to another client")
		case t.kind == Refresh:
			x.do(record{op: dropGrant, known: t.grant})
		default:
			x.do(record{op: dropToken, digest: d})
		}
		return nil
	})
}

// Info is what a token stands for.
type Info struct {
	Kind    Kind
	Client  ClientID
	User    id.User // empty: the client acts for itself
	Scope   []string
	Expires time.Time
}

// Check tells what an access token stands for. Anything else, a refresh token too, is good for nothing here.
func (s *Store) Check(value string) (Info, bool) { return s.lookUp(value, Access) }

// Introspect tells what an access or refresh token stands for. A refresh token that was exchanged does not
// stand for anything.
func (s *Store) Introspect(value string) (Info, bool) { return s.lookUp(value, Access, Refresh) }

func (s *Store) lookUp(value string, kinds ...Kind) (Info, bool) {
	d, ok := parseValue(value, kinds...)
	if !ok {
		return Info{}, false
	}
	now := s.now()
	s.mu.Lock()
	t := s.find(d, now)
	if t == nil || !slices.Contains(kinds, t.kind) || t.kind == Refresh && t.generation != t.grant.generation {
		s.mu.Unlock()
		return Info{}, false
	}
	info := Info{Kind: t.kind, Client: t.grant.client.ID, User: t.grant.userOf(), Expires: moment(t.expires)}
	scope := t.scope
	s.mu.Unlock()
	info.Scope = strings.Fields(scope.Value())
	return info, true
}
