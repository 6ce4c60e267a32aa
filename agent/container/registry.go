package container

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Client is what the OAuth client of a service shall be.
type Client struct {
	ID        string
	Name      string
	Public    bool
	Service   bool // it may ask for tokens for itself
	Redirects []string
	Scope     []string
	Seed      logging.Secret // what its secret is made of; zero: chance
}

// Clients keeps the OAuth clients of one organization.
type Clients interface {
	// Prepare checks a client and gives it an id. Nothing is kept.
	Prepare(c Client) (clientID string, err error)
	// Add keeps a client under its id and returns its secret, which is empty for a public one. Every call
	// with an id is followed by a Delete of it when the caller does not know how it ended.
	Add(ctx context.Context, c Client) (logging.Secret, error)
	// Secret is the secret of a client that was added with a seed, if the client is there and has that secret.
	Secret(clientID string, seed logging.Secret) (logging.Secret, bool)
	// Delete ends a client with all that it was given. Without an error that is so for good, also when there
	// was none.
	Delete(ctx context.Context, clientID string) error
}

// People is what one organization knows of those who come to its containers.
type People interface {
	// Policy is the present policy.
	Policy() *permission.Policy
	// Username is what a member is called, for the eyes of people; it may be empty.
	Username(user id.User) string
	// Bearer tells for whom an OAuth access token of this organization is and what it is good for.
	Bearer(token string) (Bearer, bool)
	// Session reports whether a login that Ticket was called with has not ended.
	Session(user id.User, session string) bool
}

// Bearer is whom an access token stands for.
type Bearer struct {
	Subject permission.Subject
	Client  string    // that it was given to
	Until   time.Time // a token of the platform, which nobody takes back, is good until then; zero: ask again
}

// Registry is what one organization has. It is safe for use by several goroutines.
type Registry struct {
	organization id.Organization
	hostname     string
	opts         *Options
	logger       hclog.Logger
	clients      Clients
	people       People
	host         *Organizations
	fs           fsx.FS
	tickets      *tickets

	// writing is held while a change is made durable, so changes are one after the other; taken before mu.
	writing sync.Mutex
	journal *journal // under writing

	// mu guards what follows. Nobody holds it across a write to disk.
	mu         sync.RWMutex
	containers map[ID]*entry
	signing    []byte                  // of hosting tokens; in the section too, so that they are good on the next host
	cookies    []byte                  // of sessions at containers; only here
	master     []byte                  // of what is made of an Idempotency-Key; only here; empty: there was none yet
	gone       map[string]*requestMark // of containers that have gone, by key; only here
	version    uint64                  // rises with every change of what a section holds
	closed     bool                    // the organization is not served here any more: nothing is good
}

// entry is a container and what of it lives as long as the agent.
type entry struct {
	*record
	turn     chan struct{} // held by who makes or ends it
	deadline time.Time     // when it counts as down unless it announces itself
	seen     time.Time     // its last heartbeat
	awaited  bool          // it stands in the list of deadlines
}

func newEntry(r *record) *entry { return &entry{record: r, turn: make(chan struct{}, 1)} }

func (e *entry) beating(now time.Time) bool { return now.Before(e.deadline) }

const (
	signingKey   = "key/signing"
	cookieKey    = "key/cookies"
	masterKey    = "key/requests"
	goneKey      = "gone/"
	containerKey = "container/"
)

// Organization is whose registry this is.
func (r *Registry) Organization() id.Organization { return r.organization }

// Version rises with every change of what Section writes.
func (r *Registry) Version() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.version
}

// change replaces the record of a container by what edit makes of a copy of it. It returns when that is on
// disk; nobody sees it before. An edit that returns an error changes nothing. What only ends things (ending)
// takes effect in memory even when the disk refuses; the error says that it is not durable.
func (r *Registry) change(c ID, ending bool, edit func(next *record) error) (*record, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	e, err := r.find(c)
	if err != nil {
		return nil, err
	}
	next := e.clone()
	if next.Request.over(r.opts.Now()) {
		next.Request = nil
	}
	if err := edit(next); err != nil {
		return nil, err
	}
	err = r.journal.put(containerKey+string(c), next, ending)
	if err != nil && !ending {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.record = next
	r.version++
	return next, err
}

// find returns what is kept of a container while the organization is served here. The record in it may be
// read under mu or writing.
func (r *Registry) find(c ID) (*entry, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.containers[c]; e != nil && !r.closed {
		return e, nil
	}
	return nil, notFound(c)
}

func notFound(c ID) error {
	return fault.New(fault.NotFound, "there is no container %s", fault.Shorten(string(c)))
}

// insert keeps a new record. It is errTaken when something of the same key is there.
func (r *Registry) insert(rec *record, q keyed.Request) (*entry, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.RLock()
	n, closed := len(r.containers), r.closed
	same, gone := r.known(q, rec.Created)
	r.mu.RUnlock()
	switch {
	case same != nil || gone != nil:
		return nil, errTaken
	case closed:
		return nil, fault.New(fault.NotFound, "organization %s is not served here any more", r.organization)
	case n >= r.opts.Limits.Containers:
		return nil, fault.New(fault.RateLimited, "organization %s has %d containers, the most that are allowed: delete one first", r.organization, n)
	}
	if q.Given() {
		if err := r.ensureMaster(); err != nil {
			return nil, err
		}
	}
	if err := r.journal.put(containerKey+string(rec.ID), rec, false); err != nil {
		return nil, err
	}
	e := newEntry(rec)
	e.turn <- struct{}{} // it begins its life with who makes it
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[rec.ID] = e
	r.version++
	return e, nil
}

// forget removes a container of which nothing is left.
func (r *Registry) forget(c ID) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	e, err := r.find(c)
	if err != nil {
		return err
	}
	if err := r.bury(e.record); err != nil {
		return err
	}
	if err := r.journal.put(containerKey+string(c), nil, false); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, c)
	r.version++
	return nil
}

// Get returns a container.
func (r *Registry) Get(c ID) (View, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.containers[c]; e != nil && !r.closed {
		return e.view(r.opts.Now()), nil
	}
	return View{}, notFound(c)
}

// List returns all containers that the caller wants to see, by id.
func (r *Registry) List(want func(id.Project) bool) []View {
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := r.opts.Now()
	out := []View{}
	for _, e := range r.containers {
		if !r.closed && want(e.Project) {
			out = append(out, e.view(now))
		}
	}
	slices.SortFunc(out, func(a, b View) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

func (e *entry) view(now time.Time) View {
	v := View{
		ID: e.ID, Project: e.Project, Name: e.Name, Creator: e.Creator, Created: e.Created,
		State: e.state(e.beating(now)), Services: e.spec().Services, Seen: e.seen,
	}
	if v.State == Up {
		v.Serving = e.Place.names()
	}
	return v
}

// Stats are the figures of a registry, or of all registries of a host.
type Stats struct {
	States  [Deleting + 1]int
	Created uint64 // ever
	Deleted uint64 // ever, also those that were not made whole
	Downs   uint64 // heartbeats that ever stayed away too long
	Access  [Refused + 1]uint64
	Open    int    // requests that are on their way, WebSockets above all
	Ended   uint64 // requests that ever were ended because they would have been refused
}

// read takes the entries of a journal or section.
func (r *Registry) read(key string, value json.RawMessage) error {
	switch key {
	case signingKey:
		return json.Unmarshal(value, &r.signing)
	case cookieKey:
		return json.Unmarshal(value, &r.cookies)
	case masterKey:
		return json.Unmarshal(value, &r.master)
	}
	if name, ok := strings.CutPrefix(key, goneKey); ok {
		mark := new(requestMark)
		if err := json.Unmarshal(value, mark); err != nil || mark.Key != name || !mark.wellFormed() {
			return fmt.Errorf("the entry %q is no key", fault.Shorten(key))
		}
		r.gone[name] = mark
		return nil
	}
	name, ok := strings.CutPrefix(key, containerKey)
	if !ok {
		return fmt.Errorf("the entry %q is not known: run a version that knows it", fault.Shorten(key))
	}
	var rec record
	if err := json.Unmarshal(value, &rec); err != nil {
		return fmt.Errorf("the entry of container %s cannot be read: %w", fault.Shorten(name), err)
	}
	if err := rec.verify(name); err != nil {
		return err
	}
	r.containers[rec.ID] = newEntry(&rec)
	return nil
}

// verify checks what was read of a container, so that nothing reaches a host name, an address or a list that
// did not pass when it was made.
func (r *record) verify(key string) error {
	c, err := ParseID(key)
	if err != nil || c != r.ID {
		return fmt.Errorf("the entry %q is of container %q", fault.Shorten(key), fault.Shorten(string(r.ID)))
	}
	spec := r.spec()
	if err := spec.check(); err != nil {
		return err
	}
	if _, err := id.ParseUser(string(r.Creator)); err != nil {
		return err
	}
	if r.Request != nil && !r.Request.wellFormed() {
		return fmt.Errorf("container %s has a key that is none", r.ID)
	}
	if len(r.Tokens) > maxTokens {
		return fmt.Errorf("container %s has %d tokens; %d are the most", r.ID, len(r.Tokens), maxTokens)
	}
	if len(r.Change.Steps) != len(r.Services) {
		return fmt.Errorf("container %s has %d services and %d steps", r.ID, len(r.Services), len(r.Change.Steps))
	}
	for i, s := range r.Change.Steps {
		if s.Name != stepOf(r.Services[i].Name) || r.Services[i].Client == "" {
			return fmt.Errorf("container %s has a step %q that is not of its service %s", r.ID, fault.Shorten(s.Name), r.Services[i].Name)
		}
	}
	if r.Place != nil {
		for name, port := range r.Place.Ports {
			if _, ok := r.service(name); !ok || name == "" || port == 0 {
				return fmt.Errorf("container %s serves %q, which it does not declare", r.ID, fault.Shorten(string(name)))
			}
		}
		if !r.Place.Address.IsValid() {
			return fmt.Errorf("container %s has no address", r.ID)
		}
	}
	return nil
}

// settle ends the reading: what was half made or half ended is ended, and who was up, where containers may be, has to
// announce itself once more within the patience.
func (r *Registry) settle() {
	now := r.opts.Now()
	r.tidy(now)
	for _, e := range r.containers {
		if !e.good() && !e.Change.Back {
			next := e.clone()
			next.Change.TakeBack() // whoever asked for it was not answered
			e.record = next
		}
		if e.Place != nil && r.opts.reachable(e.Place.Address) == nil { // the networks may be others than when it said so
			e.deadline = now.Add(r.opts.Patience)
			r.host.await(r, e)
		}
	}
}

// unfinished lists the containers that are to be ended.
func (r *Registry) unfinished() []ID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []ID
	for c, e := range r.containers {
		if e.Change.Back && !r.closed {
			out = append(out, c)
		}
	}
	return out
}

// taker is the container, other than one, that is up at an address and port, and whether it has proven that.
func (r *Registry) taker(at netip.AddrPort, but ID, now time.Time) (c ID, proven, found bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed {
		return "", false, false
	}
	for c, e := range r.containers {
		if c != but && e.good() && e.beating(now) && slices.Contains(e.Place.spots(), at) {
			return c, e.Place.Proven, true
		}
	}
	return "", false, false
}

// close ends the registry: nothing in it is good and nothing can be changed from then on. Section still
// writes it.
func (r *Registry) close() error {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	signal(r.host.passage.wake) // nothing of it may stay open
	if err := r.journal.close(); err != nil {
		return fmt.Errorf("cannot close the journal of containers: %w", err)
	}
	return nil
}
