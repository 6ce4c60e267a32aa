package tenantapi

import (
	"crypto/sha256"
	"net/http"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Bounds of what logged-in people can make a host keep.
const (
	maxSessions        = 20_000 // of one organization
	maxSessionsPerUser = 50
	maxAgreements      = 200 // of one session
)

// sessionKey is the SHA-256 of a session's value. The value is only in its browser.
type sessionKey [sha256.Size]byte

// session is one browser of one member at one organization.
type session struct {
	key     sessionKey
	user    id.User
	began   time.Time
	expires time.Time

	// Under the mu of sessions.
	agreed map[agreement]bool          // asked once for all the session
	answer map[agreement]oauth.Verdict // answered and not yet used
}

// agreement is the SHA-256 of what a person was asked.
type agreement [sha256.Size]byte

// sessions are those of one tenant, in memory: whoever was logged in when an agent ended logs in again, which a
// browser does by itself while its session with the platform lasts.
type sessions struct {
	now  func() time.Time
	life time.Duration

	mu     sync.Mutex
	all    map[sessionKey]*session
	byUser map[id.User][]*session // oldest first
	swept  time.Time              // when those that have expired were looked for last
}

// sweepEvery is how long a session stays in memory after its time, at most, while others begin. It is good for
// nothing in that time.
const sweepEvery = time.Minute

func newSessions(life time.Duration, now func() time.Time) *sessions {
	return &sessions{now: now, life: life, all: map[sessionKey]*session{}, byUser: map[id.User][]*session{}}
}

// begin makes a session and returns its value; false when the organization has too many.
func (s *sessions) begin(user id.User) (string, bool) {
	value := id.Secret()
	now := s.now()
	made := &session{
		key: sha256.Sum256([]byte(value)), user: user, began: now, expires: now.Add(s.life),
		agreed: map[agreement]bool{}, answer: map[agreement]oauth.Verdict{},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= maxSessions || now.Sub(s.swept) >= sweepEvery {
		s.swept = now
		s.sweep(now)
	}
	for len(s.byUser[user]) >= maxSessionsPerUser {
		s.drop(s.byUser[user][0])
	}
	if len(s.all) >= maxSessions {
		return "", false
	}
	s.all[made.key] = made
	s.byUser[user] = append(s.byUser[user], made)
	return value, true
}

// sweep removes what has expired. mu is held.
func (s *sessions) sweep(now time.Time) {
	for _, one := range s.all {
		if !now.Before(one.expires) {
			s.drop(one)
		}
	}
}

// drop ends a session. mu is held.
func (s *sessions) drop(one *session) {
	delete(s.all, one.key)
	kept := s.byUser[one.user][:0]
	for _, other := range s.byUser[one.user] {
		if other != one {
			kept = append(kept, other)
		}
	}
	if len(kept) == 0 {
		delete(s.byUser, one.user)
		return
	}
	s.byUser[one.user] = kept
}

// find gives the session of a value.
func (s *sessions) find(value string) (*session, bool) {
	if value == "" {
		return nil, false
	}
	key := sessionKey(sha256.Sum256([]byte(value)))
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.all[key]
	if one == nil {
		return nil, false
	}
	if !s.now().Before(one.expires) {
		s.drop(one)
		return nil, false
	}
	return one, true
}

// end is a person's logout.
func (s *sessions) end(one *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[one.key] == one {
		s.drop(one)
	}
}

// keep ends the sessions of whoever is no member: if he comes back, he logs in again.
func (s *sessions) keep(isMember func(id.User) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for user, all := range s.byUser {
		if isMember(user) {
			continue
		}
		for _, one := range all {
			delete(s.all, one.key)
		}
		delete(s.byUser, user)
	}
}

// count is how many there are, for metrics.
func (s *sessions) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// decide notes what a person answered; it holds for one use, or for the whole session.
func (s *sessions) decide(one *session, about agreement, v oauth.Verdict, lasting bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(one.answer) >= maxAgreements {
		clear(one.answer)
	}
	if len(one.agreed) >= maxAgreements {
		clear(one.agreed)
	}
	one.answer[about] = v
	if v == oauth.Agreed && lasting {
		one.agreed[about] = true
	}
}

// verdict is what a person has answered before; Asked: nothing.
func (s *sessions) verdict(one *session, about agreement) oauth.Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := one.answer[about]; ok {
		delete(one.answer, about)
		return v
	}
	if one.agreed[about] {
		return oauth.Agreed
	}
	return oauth.Asked
}

// cookie names begin with __Host-, so that no name below the organization's can set them.
func (s *Server) cookieName(what string) string {
	if s.opts.Public.Scheme == "https" {
		return "__Host-demiurge-" + what
	}
	return "demiurge-" + what // browsers refuse the prefix without TLS
}

// setCookie gives the browser a value for this host name alone; an empty one takes it away.
func (s *Server) setCookie(w http.ResponseWriter, what, value string, life time.Duration) {
	c := &http.Cookie{
		Name: s.cookieName(what), Value: value, Path: "/", HttpOnly: true, Secure: s.opts.Public.Scheme == "https",
		SameSite: http.SameSiteLaxMode, MaxAge: int(life / time.Second),
	}
	if value == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// sessionOf is the session that a request brings, of a person who is a member now.
func (s *Server) sessionOf(t *tenant.Tenant, in *site, r *http.Request) (*session, bool) {
	cookies := r.CookiesNamed(s.cookieName("session"))
	if len(cookies) != 1 {
		return nil, false
	}
	one, ok := in.sessions.find(cookies[0].Value)
	if !ok {
		return nil, false
	}
	if _, member := t.Member(one.user); !member {
		return nil, false
	}
	return one, true
}

// sameOrigin reports whether a request that may change something was made by a page of this very name: the
// names below it belong to others, and a browser takes them for the same site.
func sameOrigin(r *http.Request) bool {
	if r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == "" {
		return false // no browser that knows __Host- leaves both out
	}
	return http.NewCrossOriginProtection().Check(r) == nil
}
