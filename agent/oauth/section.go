package oauth

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// A section is the whole store without its codes: a section is older than the store, and in it a code that
// was used meanwhile would be unused. It has clients, what is kept of Idempotency-Keys, then grants, each before its
// tokens, in the form of the journal.
const sectionHeader = "demiurge oauth section 1\n"

// Section writes the store as the organization's section "oauth", and the version that it has at least. Equal
// stores give equal bytes.
func (s *Store) Section() (form []byte, version uint64) {
	version = s.Version()
	form = []byte(sectionHeader)
	_ = s.walk(false, func(piece []byte) error {
		form = records.Append(form, piece)
		return nil
	})
	return form, version
}

func (s *Store) walkAll(sink func(form []byte) error) error { return s.walk(true, sink) }

// pieceSize is about the size of what walk hands out at once.
const pieceSize = 128 << 10

// walk writes the store in pieces of whole records; with codes for a journal, else for a section. The store is locked for one shard of its tokens at a
// time, so changes that come meanwhile are in what is written, or not.
func (s *Store) walk(codes bool, sink func(form []byte) error) error {
	s.walking.Lock()
	defer s.walking.Unlock()
	s.walks++
	var form []byte
	flush := func(above int) error {
		if len(form) <= above {
			return nil
		}
		err := sink(form)
		form = form[:0]
		return err
	}
	all := s.clientRecords()
	all = append(all, s.requestRecords(codes)...)
	for i := range all {
		form = all[i].append(form)
		if err := flush(pieceSize); err != nil {
			return err
		}
	}
	for n := range s.tokens.shards {
		for _, r := range s.shardRecords(n, codes) {
			form = r.append(form)
			if err := flush(pieceSize); err != nil {
				return err
			}
		}
	}
	return flush(0)
}

func (s *Store) clientRecords() []record {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]record, 0, len(s.clients))
	for _, c := range s.clients {
		c.walked = s.walks
		out = append(out, record{op: putClient, client: c.clone(), secret: c.secret})
	}
	slices.SortFunc(out, func(a, b record) int { return strings.Compare(string(a.client.ID), string(b.client.ID)) })
	return out
}

// shardRecords copies one shard, each grant before the first of its tokens.
func (s *Store) shardRecords(n int, codes bool) []record {
	now := s.now()
	s.mu.Lock()
	tokens := make([]token, 0, len(s.tokens.shards[n].tokens))
	for _, t := range s.tokens.shards[n].tokens {
		if t.expires > now && t.grant.good() && (codes || t.kind != Code) {
			tokens = append(tokens, *t)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(tokens, func(a, b token) int { return bytes.Compare(a.digest[:], b.digest[:]) })
	out := make([]record, 0, len(tokens))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range tokens {
		t := &tokens[i]
		g := t.grant
		if c := g.client; c.walked != s.walks { // it was added after the clients were written
			c.walked = s.walks
			out = append(out, record{op: putClient, client: c.clone(), secret: c.secret})
		}
		if g.walked != s.walks {
			g.walked = s.walks
			out = append(out, record{
				op: putGrant, grant: g.number, client: Client{ID: g.client.ID}, user: g.userOf(), scope: g.scope.Value(),
				ends: g.ends, rotated: g.rotated, generation: g.generation,
			})
		}
		r := record{op: putToken, kind: t.kind, digest: t.digest, grant: g.number, expires: t.expires, generation: t.generation, scope: t.scope.Value(), used: t.used}
		if t.code != nil {
			r.code = *t.code
		}
		out = append(out, r)
	}
	return out
}

// read takes a section into an empty store. It accepts nothing but what Section writes: whatever is odd is an
// error, and the store is to be thrown away.
func (s *Store) read(section []byte) error {
	s.restoring = make(map[uint64]*grant)
	var wrong error
	whole, err := records.Scan(section, sectionHeader, largestFrame, func(payload []byte) bool {
		for len(payload) > 0 && wrong == nil {
			var r record
			if r, payload, wrong = decodeRecord(payload); wrong == nil {
				wrong = s.readRecord(&r)
			}
		}
		return wrong == nil
	})
	switch {
	case err != nil:
		return err
	case wrong != nil:
		return wrong
	case whole != len(section):
		return fmt.Errorf("byte %d of %d is damaged", whole, len(section))
	}
	s.settle()
	s.version = 0
	return nil
}

func (s *Store) readRecord(r *record) error {
	limits := s.opts.limits
	switch r.op {
	case putClient:
		if !validClientID(string(r.client.ID)) || r.client.Public != (r.secret == digest{}) || !slices.IsSorted(r.client.Scope) {
			return fmt.Errorf("client %q is malformed", fault.Shorten(string(r.client.ID)))
		}
		if err := r.client.check(); err != nil {
			return err
		}
		if s.clients[r.client.ID] != nil || len(s.clients) >= limits.Clients {
			return fmt.Errorf("client %s stands there twice, or is one too many", r.client.ID)
		}
	case putRequest:
		if _, twice := s.requests[r.digest]; twice || !validClientID(string(r.client.ID)) || len(s.requests) >= 2*limits.Clients {
			return fmt.Errorf("a key of client %q stands there twice, or is one too many", fault.Shorten(string(r.client.ID)))
		}
	case putGrant:
		return s.readGrant(r)
	case putToken:
		return s.readToken(r)
	default:
		return fmt.Errorf("a record of type %d does not belong into a section", r.op)
	}
	s.apply(r)
	return nil
}

func (s *Store) readGrant(r *record) error {
	c := s.clients[r.client.ID]
	switch {
	case c == nil:
		return fmt.Errorf("grant %d is of a client that is not there", r.grant)
	case s.restoring[r.grant] != nil:
		return fmt.Errorf("grant %d stands there twice", r.grant)
	case r.user == "" && !c.Service:
		return fmt.Errorf("grant %d is of nobody", r.grant)
	}
	if r.user != "" {
		if _, err := id.ParseUser(string(r.user)); err != nil {
			return err
		}
	}
	if scope, refused := c.narrow(strings.Fields(r.scope)); refused != nil || scope != r.scope {
		return fmt.Errorf("grant %d has a scope that its client cannot be given", r.grant)
	}
	s.apply(r)
	return nil
}

func (s *Store) readToken(r *record) error {
	g := s.restoring[r.grant]
	switch {
	case g == nil:
		return fmt.Errorf("a token is of grant %d, which is not there", r.grant)
	case r.kind == Code || r.used:
		return fmt.Errorf("grant %d has a code", r.grant)
	case s.tokens.get(r.digest) != nil:
		return fmt.Errorf("a token of grant %d stands there twice", r.grant)
	case r.expires > g.ends:
		return fmt.Errorf("a token of grant %d lasts longer than the grant", r.grant)
	case (r.kind == Refresh) != (r.generation > 0) || r.kind == Refresh && g.user == nil:
		return fmt.Errorf("a token of grant %d has a generation that its kind cannot have", r.grant)
	case s.stats.Live[Access]+s.stats.Live[Refresh] >= uint64(s.opts.limits.Tokens):
		return fmt.Errorf("there are more than %d tokens", s.opts.limits.Tokens)
	}
	if scope, refused := narrow(strings.Fields(g.scope.Value()), strings.Fields(r.scope)); refused != nil || scope != r.scope {
		return fmt.Errorf("a token of grant %d has a scope that its grant has not", r.grant)
	}
	if r.generation > g.generation {
		// The family was refreshed while the section was written. Its newest token is good, and no grace is left.
		s.apply(&record{op: rotate, known: g, generation: r.generation})
	}
	s.apply(r)
	return nil
}
