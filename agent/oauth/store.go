package oauth

import (
	"fmt"
	"math"
	"sync"
	"time"
	"unique"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Lifetimes are how long things are good for. They hold for what is made from then on.
type Lifetimes struct {
	Code     time.Duration
	Access   time.Duration
	Refresh  time.Duration // of one refresh token; each exchange gives a new one
	Absolute time.Duration // of a family: nobody stays longer than this without logging in again
	Grace    time.Duration // within which a refresh token may be exchanged once more by the same client
}

// DefaultLifetimes are those that are used when nothing is configured.
func DefaultLifetimes() Lifetimes {
	const day = 24 * time.Hour
	return Lifetimes{Code: time.Minute, Access: time.Hour, Refresh: 30 * day, Absolute: 90 * day, Grace: 10 * time.Second}
}

// Check finds lifetimes that do not fit together.
func (l Lifetimes) Check() error {
	switch {
	case l.Code < time.Second || l.Code > 10*time.Minute:
		return fmt.Errorf("cannot use %s as the lifetime of codes: choose 1s to 10m", l.Code)
	case l.Access < time.Second || l.Access > l.Refresh:
		return fmt.Errorf("cannot use %s as the lifetime of access tokens: choose 1s to that of refresh tokens, %s", l.Access, l.Refresh)
	case l.Refresh > l.Absolute:
		return fmt.Errorf("cannot use %s as the lifetime of refresh tokens: it is longer than a family may last, %s", l.Refresh, l.Absolute)
	case l.Grace < 0 || l.Grace > time.Minute:
		return fmt.Errorf("cannot use %s as the grace of refresh tokens: choose 0s to 1m", l.Grace)
	}
	return nil
}

// Limits are the most of everything that one organization may have.
type Limits struct {
	Clients    int
	Codes      int
	Tokens     int // access and refresh tokens, the exchanged ones that are remembered included
	PerUser    int // logins of one person
	PerPerson  int // tokens of all logins of one person
	PerService int // tokens of one client for itself
	PerFamily  int // tokens that come from one login
}

// DefaultLimits are those that are used when nothing is configured. A section holds some 500,000 tokens.
func DefaultLimits() Limits {
	return Limits{Clients: 1000, Codes: 10_000, Tokens: 200_000, PerUser: 1000, PerPerson: 20_000, PerService: 10_000, PerFamily: 10_000}
}

func (l Limits) check() error {
	for _, n := range []int{l.Clients, l.Codes, l.Tokens, l.PerUser, l.PerPerson, l.PerService, l.PerFamily} {
		if n < 1 || n > math.MaxInt32/4 {
			return fmt.Errorf("cannot use %d as a limit of OAuth objects: choose a positive number", n)
		}
	}
	return nil
}

// maxSiblings bounds how often one refresh token is exchanged within its grace.
const maxSiblings = 100

// storeOptions is what a store is made of.
type storeOptions struct {
	organization id.Organization
	hostname     string // that redirects must lead to
	dir          string // of the journal; it exists and nobody else uses it
	section      []byte // what to begin with when dir holds no journal
	fs           fsx.FS
	lifetimes    Lifetimes
	limits       Limits
	now          func() time.Time
	logger       hclog.Logger
	wake         func() // tells the sweeper that something falls due earlier than it knows
	compact      func() // tells that the journal has grown; neither may block
}

// Store is what one organization has: clients, grants, codes and tokens. It is safe for use by several
// goroutines. A method that changes something returns when the change is on disk.
type Store struct {
	opts    storeOptions
	journal *journal

	// walking is held while the whole store is written somewhere; taken before mu.
	walking sync.Mutex
	walks   uint32 // number of the walk; under walking

	// mu guards all below. Everything is decided and changed under one hold of it, so two requests can
	// never both find a code unused. Nobody holds it across a write to disk or for more than some hundred
	// tokens.
	mu        sync.Mutex
	clients   map[ClientID]*client
	requests  map[digest]request // by digest of the Idempotency-Key
	master    digest             // what secrets are made of with such keys; zero: there was none yet
	users     map[id.User]*holder
	tokens    index
	due       dueList
	doomed    []*grant          // dead families whose tokens are still to be removed
	abandoned []*holder         // dead holders whose families are still to be removed
	restoring map[uint64]*grant // grants by number while a journal or section is read, else nil
	lastGrant uint64
	version   uint64 // rises with every change of what a section holds
	closed    bool   // the organization is not served here any more: nothing is good
	announced int64  // when the sweeper comes at the latest
	stats     Stats
}

// holder is what grants belong to: each to a client, and to a person unless the client acts for itself.
type holder struct {
	user   id.User
	first  *grant
	grants int
	tokens int  // of a person, codes included, until they are removed
	gone   bool // the client was deleted or the member removed: nothing here is good any more
}

type client struct {
	Client
	holder
	secret   digest
	services int    // tokens for itself
	walked   uint32 // see grant.walked
}

// grant is what one login of a person with one client led to, a family: its code, then its tokens. With a
// client that acts for itself it is one token. It goes with its last token.
type grant struct {
	number     uint64
	client     *client
	user       *holder
	links      [2]link // among the grants of the client, and of the user
	tokens     *token
	scope      unique.Handle[string]
	ends       int64  // no token of the family lasts longer
	rotated    int64  // when the present generation began
	generation uint32 // of the refresh tokens that may be exchanged; those before it were
	count      int32
	siblings   int32  // refresh tokens given within the grace in this generation
	walked     uint32 // last walk that has written it
	gone       bool
}

type link struct{ next, previous *grant }

const (
	byClient = 0
	byUser   = 1
)

type token struct {
	digest         digest
	grant          *grant
	next, previous *token // of the grant
	code           *codeTies
	scope          unique.Handle[string]
	expires        int64
	generation     uint32 // of a refresh token
	at             int32  // in the list of what is due
	kind           Kind
	used           bool // a code that was exchanged; kept so that a second use is seen
}

// good reports whether nothing that the grant hangs on has ended.
func (g *grant) good() bool {
	return !g.gone && !g.client.gone && (g.user == nil || !g.user.gone)
}

// find returns the token with a digest if it is good now.
func (s *Store) find(d digest, now int64) *token {
	if t := s.tokens.get(d); t != nil && !s.closed && t.expires > now && t.grant.good() {
		return t
	}
	return nil
}

// Organization is whose store this is.
func (s *Store) Organization() id.Organization { return s.opts.organization }

// Version rises with every change of what Section writes.
func (s *Store) Version() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// Stats counts what the store holds and has got rid of.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Clients = len(s.clients)
	return out
}

// Stats are the figures of a store, or of all stores of a host.
type Stats struct {
	Clients int
	Live    Counts // held now: what is good, and what was exchanged and is remembered
	Expired Counts // ever removed because their time was over
	Removed Counts // ever removed before that: revoked, or with their family, client or member
}

// Counts are numbers by kind.
type Counts [Refresh + 1]uint64

// Of is the number of a kind.
func (c Counts) Of(k Kind) uint64 { return c[k] }

func (s *Stats) add(o Stats) {
	s.Clients += o.Clients
	for _, k := range Kinds() {
		s.Live[k] += o.Live[k]
		s.Expired[k] += o.Expired[k]
		s.Removed[k] += o.Removed[k]
	}
}

func (s *Store) now() int64 { return s.opts.now().UnixMilli() }

func moment(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
