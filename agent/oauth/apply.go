package oauth

import (
	"math"
	"time"
	"unique"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// apply makes the change of a record. What it names and is not there is no error: while a journal is read,
// a record may be older than the base it is read on. It returns the grant that the record made or was about.
// mu is held.
func (s *Store) apply(r *record) *grant {
	g := r.known
	if g == nil && r.grant != 0 {
		g = s.restoring[r.grant]
	}
	switch r.op {
	case putClient:
		s.putClient(r)
	case dropClient:
		if c := s.clients[r.client.ID]; c != nil {
			delete(s.clients, r.client.ID)
			s.abandon(&c.holder)
		}
	case dropUser:
		if h := s.users[r.user]; h != nil {
			delete(s.users, r.user)
			s.abandon(h)
		}
	case putGrant:
		g = s.putGrant(g, r)
	case dropGrant:
		if g != nil {
			s.kill(g)
		}
	case putToken:
		if g != nil {
			s.putToken(g, r)
		}
	case useCode:
		if t := s.tokens.get(r.digest); t != nil {
			t.used = true
		}
	case dropToken:
		if t := s.tokens.get(r.digest); t != nil {
			s.removeToken(t, &s.stats.Removed)
		}
	case rotate:
		if g != nil {
			g.generation, g.rotated, g.siblings = r.generation, r.rotated, 0
		}
	case putRequest:
		s.requests[r.digest] = request{body: r.secret, client: r.client.ID, at: r.expires}
	case putMaster:
		s.master = r.digest
	}
	return g
}

func (s *Store) putClient(r *record) {
	c := s.clients[r.client.ID]
	if c == nil {
		c = &client{}
		s.clients[r.client.ID] = c
	}
	c.Client, c.secret = r.client.clone(), r.secret
}

// putGrant makes a grant. While a journal is read, g may be there already.
func (s *Store) putGrant(g *grant, r *record) *grant {
	s.lastGrant = max(s.lastGrant, r.grant)
	if g == nil {
		c := s.clients[r.client.ID]
		if c == nil {
			return nil
		}
		g = &grant{number: r.grant, client: c}
		g.link(byClient, &c.holder)
		if r.user != "" {
			if g.user = s.users[r.user]; g.user == nil {
				g.user = &holder{user: r.user}
				s.users[r.user] = g.user
			}
			g.link(byUser, g.user)
		}
		if s.restoring != nil {
			s.restoring[r.grant] = g
		}
	}
	g.scope, g.ends = unique.Make(r.scope), r.ends
	g.generation, g.rotated, g.siblings = r.generation, r.rotated, 0
	return g
}

func (g *grant) link(by int, h *holder) {
	g.links[by] = link{next: h.first}
	if h.first != nil {
		h.first.links[by].previous = g
	}
	h.first = g
	h.grants++
}

func (g *grant) unlink(by int, h *holder) {
	l := g.links[by]
	if l.previous != nil {
		l.previous.links[by].next = l.next
	} else {
		h.first = l.next
	}
	if l.next != nil {
		l.next.links[by].previous = l.previous
	}
	g.links[by] = link{}
	h.grants--
}

func (s *Store) putToken(g *grant, r *record) {
	if old := s.tokens.get(r.digest); old != nil { // it is read a second time
		if old.grant == g {
			old.used = r.used
			return
		}
		s.removeToken(old, &s.stats.Removed) // with a grant that has died meanwhile
	}
	if g.gone || s.restoring != nil && r.expires <= s.now() {
		return
	}
	t := &token{digest: r.digest, grant: g, kind: r.kind, expires: r.expires, generation: r.generation, used: r.used, scope: g.scope}
	if r.scope != g.scope.Value() {
		t.scope = unique.Make(r.scope)
	}
	if r.kind == Code {
		t.code = &codeTies{redirect: r.code.redirect, challenge: r.code.challenge}
	}
	if t.next = g.tokens; t.next != nil {
		t.next.previous = t
	}
	g.tokens = t
	g.count++
	if g.user == nil {
		g.client.services++
	} else {
		g.user.tokens++
	}
	s.tokens.put(t)
	s.due.push(t)
	s.stats.Live[t.kind]++
	if t.expires < s.announced {
		s.announce(t.expires)
	}
}

// removeToken forgets a token, and its grant with the last one. counter says why.
func (s *Store) removeToken(t *token, counter *Counts) {
	g := t.grant
	s.tokens.remove(t)
	s.due.remove(t)
	if t.previous != nil {
		t.previous.next = t.next
	} else {
		g.tokens = t.next
	}
	if t.next != nil {
		t.next.previous = t.previous
	}
	g.count--
	if g.user == nil {
		g.client.services--
	} else {
		g.user.tokens--
	}
	s.stats.Live[t.kind]--
	counter[t.kind]++
	if g.count == 0 && !g.gone && s.restoring == nil {
		s.detach(g)
	}
}

// kill ends a family at once. Its tokens are removed by the sweeper.
func (s *Store) kill(g *grant) {
	if !g.gone {
		s.detach(g)
		s.doomed = append(s.doomed, g)
		s.announce(0)
	}
}

// detach ends a grant and takes it from its holders.
func (s *Store) detach(g *grant) {
	g.gone = true
	g.unlink(byClient, &g.client.holder)
	if h := g.user; h != nil {
		g.unlink(byUser, h)
		if h.grants == 0 && !h.gone {
			delete(s.users, h.user)
		}
	}
	if s.restoring != nil {
		delete(s.restoring, g.number)
	}
}

// abandon ends everything of a holder at once. Its families are removed by the sweeper.
func (s *Store) abandon(h *holder) {
	h.gone = true
	if s.restoring != nil { // a record that follows may name the person anew
		for h.first != nil {
			s.kill(h.first)
		}
		return
	}
	s.abandoned = append(s.abandoned, h)
	s.announce(0)
}

// announce tells the sweeper that something falls due earlier than it knows.
func (s *Store) announce(at int64) {
	s.announced = min(s.announced, at)
	if s.restoring == nil {
		s.opts.wake()
	}
}

// sweepHold is how long sweep keeps the store locked, by the clock of this machine: whoever asks meanwhile waits,
// and a machine that is busy makes every piece of work longer.
const sweepHold = 100 * time.Microsecond

// sweep removes at most so many tokens of those that are dead or have expired, fewer when that takes long, and
// reports whether more are left.
func (s *Store) sweep(most int) (more bool) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	before, began := s.stats.Live, time.Now()
	for n := range most {
		if !s.sweepOne(now) || n%8 == 7 && time.Since(began) > sweepHold {
			break
		}
	}
	if before != s.stats.Live {
		s.version++
	}
	s.plan()
	return s.announced <= now
}

// sweepOne does one small piece of clean-up.
func (s *Store) sweepOne(now int64) bool {
	if n := len(s.doomed); n > 0 {
		if g := s.doomed[n-1]; g.tokens != nil {
			s.removeToken(g.tokens, &s.stats.Removed)
		} else {
			s.doomed = shrunk(s.doomed)
		}
		return true
	}
	if n := len(s.abandoned); n > 0 {
		if h := s.abandoned[n-1]; h.first != nil {
			s.kill(h.first)
		} else {
			s.abandoned = shrunk(s.abandoned)
		}
		return true
	}
	if at, any := s.due.next(); any && at <= now {
		s.removeToken(s.due.node(0).token, &s.stats.Expired)
		return true
	}
	return false
}

// shrunk is a list without its last, which it does not keep alive.
func shrunk[T any](list []*T) []*T {
	last := len(list) - 1
	list[last] = nil
	if last == 0 {
		return nil
	}
	return list[:last]
}

// nextSweep is when sweep has something to do, in Unix milliseconds.
func (s *Store) nextSweep() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.announced
}

// settle ends the reading of a journal or section: what no token is left of goes.
func (s *Store) settle() {
	for _, g := range s.restoring {
		if g.count == 0 && !g.gone {
			s.detach(g)
		}
	}
	s.restoring = nil
	s.dropRequests(2 * s.opts.limits.Clients)
	for s.sweepOne(s.now()) {
	}
	s.stats.Expired, s.stats.Removed = Counts{}, Counts{}
	s.plan()
}

// plan says when the sweeper has to come next.
func (s *Store) plan() {
	at, any := s.due.next()
	if !any {
		at = math.MaxInt64
	}
	if len(s.doomed)+len(s.abandoned) > 0 {
		at = 0
	}
	s.announced = at
}

// userOf is the person of a grant, or nobody.
func (g *grant) userOf() id.User {
	if g.user == nil {
		return ""
	}
	return g.user.user
}
