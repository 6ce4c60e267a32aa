package gossip

import (
	"sync"
	"time"
)

// Kind is what happened to a member.
type Kind string

// The kinds of changes.
const (
	Joined    Kind = "joined"    // new, or again after it had left
	Updated   Kind = "updated"   // its tags or its address
	Failed    Kind = "failed"    // suspected: see StatusFailed
	Returned  Kind = "returned"  // alive after it had failed
	Flapping  Kind = "flapping"  // Returned without a new start, for at least FlapLimit times within FlapWindow
	Left      Kind = "left"      // on purpose
	Forgotten Kind = "forgotten" // gone or failed for so long that the pool dropped its name
)

// Change is one thing that happened to one member, which is given as it is afterwards.
type Change struct {
	Kind   Kind
	Member Member
}

// A member that fails and comes back this often within this time, the same start of it, is flapping.
const (
	FlapLimit  = 3
	FlapWindow = 5 * time.Minute
)

// tracker turns what is seen of members into changes. It is not safe for concurrent use; its owner locks.
type tracker struct {
	self    string
	members map[string]*tracked
}

// tracked is one member with its latest returns.
type tracked struct {
	member  Member
	returns []time.Time // within FlapWindow, oldest first; at most FlapLimit+some are of interest
}

func newTracker(self string) *tracker { return &tracker{self: self, members: map[string]*tracked{}} }

// maxReturns bounds what is remembered of a member that returns all the time.
const maxReturns = 64

// see takes in a member as it is now, and gives the change, if it is one.
func (t *tracker) see(m Member, now time.Time) (Change, bool) {
	name := m.id()
	m.Self = name == t.self
	had, known := t.members[name]
	if !known {
		if m.Status != StatusAlive {
			// It went before this node came: what happened to it is history, and Members tells it.
			m.Since = now
			t.members[name] = &tracked{member: m}
			return Change{}, false
		}
		m.Since = now
		t.members[name] = &tracked{member: m}
		return Change{Joined, m}, true
	}
	before := had.member
	m.Since = before.Since
	kind := Updated
	if m.Status != before.Status {
		m.Since = now
		kind = had.turn(before, m, now)
	}
	m.Flaps = had.flaps(now)
	had.member = m
	if kind == Updated && same(before, m) {
		return Change{}, false
	}
	return Change{kind, m}, true
}

// turn names the change from one status to another, and counts returns. A member that was started anew did not
// flap: it was killed or upgraded, and whoever keeps it running paces that.
func (t *tracked) turn(before, now Member, at time.Time) Kind {
	switch {
	case now.Status == StatusFailed:
		return Failed
	case now.Status == StatusLeft:
		return Left
	case before.Status == StatusLeft:
		return Joined
	case before.Run != now.Run:
		return Returned
	}
	if len(t.returns) == maxReturns {
		t.returns = t.returns[1:]
	}
	t.returns = append(t.returns, at)
	if t.flaps(at) >= FlapLimit {
		return Flapping
	}
	return Returned
}

// flaps counts the returns of late.
func (t *tracked) flaps(now time.Time) int {
	for len(t.returns) > 0 && now.Sub(t.returns[0]) >= FlapWindow {
		t.returns = t.returns[1:]
	}
	return len(t.returns)
}

// forget drops a member.
func (t *tracker) forget(name string) (Change, bool) {
	had, known := t.members[name]
	if !known {
		return Change{}, false
	}
	delete(t.members, name)
	return Change{Forgotten, had.member}, true
}

// all gives the members with their flaps as of now, in no order.
func (t *tracker) all(now time.Time) []Member {
	out := make([]Member, 0, len(t.members))
	for _, had := range t.members {
		m := had.member.clone()
		m.Flaps = had.flaps(now)
		out = append(out, m)
	}
	return out
}

// same reports whether nothing that is published differs.
func same(a, b Member) bool {
	if a.Address != b.Address || a.Host != b.Host || a.Version != b.Version || a.Run != b.Run ||
		a.DigestError != b.DigestError || len(a.Keys) != len(b.Keys) || len(a.Tags) != len(b.Tags) {
		return false
	}
	for i := range a.Keys {
		if a.Keys[i] != b.Keys[i] {
			return false
		}
	}
	for key, value := range a.Tags {
		if other, ok := b.Tags[key]; !ok || other != value {
			return false
		}
	}
	x, errX := a.Digest.Encode()
	y, errY := b.Digest.Encode()
	return x == y && (errX == nil) == (errY == nil)
}

// feed hands changes to a reader who may be slow. It holds at most one change of each member: the latest
// state wins, and what the reader missed in between is summed up in its kind.
type feed struct {
	out chan Change

	mu      sync.Mutex
	pending map[string]entry // guarded by mu
	order   []string         // guarded by mu: names in pending, the one waiting longest first
	serial  uint64           // guarded by mu
	wake    chan struct{}    // holds one value when there is something new
}

type entry struct {
	change Change // with all that the reader missed
	since  Kind   // what of that came after the change was last offered to the reader
	serial uint64
}

func newFeed() *feed {
	return &feed{out: make(chan Change), pending: map[string]entry{}, wake: make(chan struct{}, 1)}
}

// put adds a change. It never blocks.
func (f *feed) put(c Change) {
	name := c.Member.id()
	f.mu.Lock()
	f.serial++
	had, waiting := f.pending[name]
	if !waiting {
		f.order = append(f.order, name)
	}
	since := c.Kind.after(had.since)
	c.Kind = c.Kind.after(had.change.Kind)
	f.pending[name] = entry{c, since, f.serial}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// after sums up two kinds, the earlier one of which was missed: that a member joined is still news, that it changed
// besides is not.
func (k Kind) after(missed Kind) Kind {
	if k == Updated && missed != "" {
		return missed
	}
	return k
}

// run hands out changes until stop is closed, and then closes the channel.
func (f *feed) run(stop <-chan struct{}) {
	defer close(f.out)
	for {
		head, ok := f.head()
		if !ok {
			select {
			case <-f.wake:
			case <-stop:
				return
			}
			continue
		}
		select {
		case f.out <- head.change:
			f.done(head)
		case <-f.wake: // the head may have been overtaken by its own successor
		case <-stop:
			return
		}
	}
}

// head is the change that has waited longest, to be offered to the reader.
func (f *feed) head() (entry, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.order) == 0 {
		return entry{}, false
	}
	e := f.pending[f.order[0]]
	e.since = ""
	f.pending[f.order[0]] = e
	return e, true
}

// done takes a delivered change out, unless a newer one of its member came while it was handed over: then
// that one still has to be told, without what the reader knows now.
func (f *feed) done(delivered entry) {
	name := delivered.change.Member.id()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.order = f.order[1:]
	e := f.pending[name]
	if e.serial == delivered.serial {
		delete(f.pending, name)
		return
	}
	e.change.Kind = e.since
	f.pending[name] = e
	f.order = append(f.order, name)
}
