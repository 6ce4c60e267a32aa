package container

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"encoding/json"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// A person logs in on the organization's name, and that cookie is for that name alone. To come to a container
// he is sent from the container's name to the organization's (Door), there he gets a ticket (Ticket), which he
// brings back to the container's name and which becomes a cookie for that one name (redeem).
//
// The ticket stands in an address, as authorization codes do (RFC 6749, section 4.1.2): it is good once, for a
// minute, for one name of one container, and only in the browser that has the cookie which it was asked for
// with, so nobody can make another person's browser log in as himself.

// Entry is what somebody wants to enter.
type Entry struct {
	Container ID
	Service   ServiceName
	State     string // digest of the secret in the cookie of the browser that asked
	Session   string // names the login and is good for nothing by itself
}

const (
	ticketLife = time.Minute
	stateSize  = 64
)

// Ticket lets a person who may into a container, through the browser whose state it is.
func (r *Registry) Ticket(who permission.Subject, e Entry) (logging.Secret, error) {
	t := r.target(e.Container)
	if t == nil || !t.good() {
		return logging.Secret{}, notFound(e.Container)
	}
	if _, ok := t.service(e.Service); !ok {
		return logging.Secret{}, fault.New(fault.NotFound, "container %s has no service %s", e.Container, e.Service)
	}
	if len(e.State) != stateSize || strings.Trim(e.State, "0123456789abcdef") != "" {
		return logging.Secret{}, fault.New(fault.InvalidRequest, "the address is not complete: go to the container's own address to enter it")
	}
	p := r.people.Policy()
	if d := p.Check(who, CanAccess, permission.Resource{Organization: p.Organization(), Project: t.Project}); !d.Allowed {
		return logging.Secret{}, fault.New(fault.Forbidden, "cannot enter container %s: %s", e.Container, d.Reason)
	}
	secret := newTokenID()
	if !r.tickets.add(digestOf(secret), ticket{Entry: e, user: who.User, expires: r.opts.Now().Add(ticketLife)}, r.opts.Now()) {
		return logging.Secret{}, &fault.Error{Code: fault.RateLimited, RetryAfter: ticketLife, Message: "too many people are entering containers: try again in a minute"}
	}
	return logging.NewSecret(secret), nil
}

// EnterAddress is where a browser takes a ticket.
func (r *Registry) EnterAddress(e Entry, t logging.Secret) string {
	return r.opts.origin(Hostname(r.hostname, e.Container, e.Service)) + PathEnter + "?ticket=" + url.QueryEscape(t.Reveal())
}

type ticket struct {
	Entry
	user    id.User
	expires time.Time
}

// tickets are those of one organization. They all live equally long, so the oldest is the next to expire.
type tickets struct {
	most int

	mu    sync.Mutex // guards what follows
	live  map[string]ticket
	order []string
}

func newTickets(most int) *tickets { return &tickets{most: most, live: map[string]ticket{}} }

func (t *tickets) add(digest string, k ticket, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.order) > 0 {
		first, there := t.live[t.order[0]]
		if there && now.Before(first.expires) {
			break
		}
		delete(t.live, t.order[0])
		t.order = t.order[1:]
	}
	if len(t.order) >= t.most {
		return false
	}
	t.live[digest] = k
	t.order = append(t.order, digest)
	return true
}

// take gives a ticket, once.
func (t *tickets) take(digest string, now time.Time) (ticket, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, ok := t.live[digest]
	delete(t.live, digest)
	return k, ok && now.Before(k.expires)
}

// session is what a cookie at a container's name says. It is signed, for this one name.
type session struct {
	Container ID          `json:"c"`
	Service   ServiceName `json:"s,omitempty"`
	User      id.User     `json:"u"`
	Login     string      `json:"l"`
	Expires   int64       `json:"e"`
}

// sessionMark keeps what is signed as a session apart from all else that is signed.
const sessionMark = "demiurge container session\n"

// redeem makes a session of a ticket, for the name of a container and the browser with that state.
func (r *Registry) redeem(secret string, c ID, s ServiceName, state string) (cookie logging.Secret, ok bool) {
	now := r.opts.Now()
	k, ok := r.tickets.take(digestOf(secret), now)
	if !ok || k.Container != c || k.Service != s || !hmac.Equal([]byte(k.State), []byte(state)) || r.target(c) == nil {
		return logging.Secret{}, false
	}
	form, err := json.Marshal(session{Container: c, Service: s, User: k.user, Login: k.Session, Expires: now.Add(r.opts.SessionLife).Unix()})
	if err != nil {
		panic(err) // strings and numbers only
	}
	text := coding.EncodeToString(form)
	return logging.NewSecret(text + "." + sign(r.cookies, sessionMark+text)), true
}

// visitor is who has a session at the name of a container, and how to find him again later; nil: nobody has.
func (r *Registry) visitor(cookie string, c ID, s ServiceName) (who Caller, again func() (Caller, bool)) {
	text, signature, _ := strings.Cut(cookie, ".")
	if len(cookie) > maxToken || !hmac.Equal([]byte(signature), []byte(sign(r.cookies, sessionMark+text))) {
		return Caller{}, nil
	}
	form, err := coding.DecodeString(text)
	if err != nil {
		return Caller{}, nil
	}
	var v session
	d := json.NewDecoder(bytes.NewReader(form))
	d.DisallowUnknownFields()
	if d.Decode(&v) != nil || v.Container != c || v.Service != s {
		return Caller{}, nil
	}
	again = func() (Caller, bool) {
		if !r.opts.Now().Before(time.Unix(v.Expires, 0)) || !r.people.Session(v.User, v.Login) {
			return Caller{}, false
		}
		return Caller{
			Subject:  permission.Subject{User: v.User, Limit: []permission.Pattern{accessOnly}},
			Username: r.people.Username(v.User), Ambient: true,
		}, true
	}
	who, ok := again()
	if !ok {
		return Caller{}, nil
	}
	return who, again
}

// program is who shows an access token that is good, and how to find out later whether it still is.
func (r *Registry) program(token string, b Bearer) (who Caller, again func() (Caller, bool)) {
	caller := func(b Bearer) Caller {
		return Caller{Subject: b.Subject, Username: r.people.Username(b.Subject.User), Client: b.Client}
	}
	return caller(b), func() (Caller, bool) {
		if !b.Until.IsZero() {
			return caller(b), r.opts.Now().Before(b.Until)
		}
		now, ok := r.people.Bearer(token)
		return caller(now), ok
	}
}

// newNonce makes the secret that a browser keeps while its person is away to log in.
func newNonce() string { return strings.ToLower(rand.Text()) }
