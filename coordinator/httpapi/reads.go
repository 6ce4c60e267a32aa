package httpapi

import (
	"context"
	"net/url"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// waitLimit is the longest time that a blocking read is held.
const waitLimit = 5 * time.Minute

// Reading is what every reading call accepts.
type Reading struct {
	Index       uint64 `query:"index" doc:"Blocking read: answer when something newer than this index exists, or after wait. The index of an answer is in X-Demiurge-Index"`
	Wait        string `query:"wait" doc:"Longest time to wait for something newer than index, at most 5m; default 0s" example:"30s"`
	Consistency string `query:"consistency" enum:"default,consistent,stale" doc:"default: the leader answers; consistent: and asks a majority first whether it still leads; stale: any coordinator answers from what it has"`
}

// answer is a body with the index it was made from.
type answer[T any] struct {
	Index uint64 `header:"X-Demiurge-Index" doc:"Index that the answer was made from"`
	Body  T
}

// query is one reading of the store: it registers what it looked at with ws.
type query[T any] func(v state.View, ws state.WatchSet) (T, error)

// read answers a reading call: at once, or when something newer than the asked index is there.
func read[T any](ctx context.Context, s *Server, p Reading, q query[T]) (*answer[T], error) {
	var c checks
	wait := duration(&c, "query.wait", p.Wait, waitLimit)
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := s.fresh(ctx, p.Consistency); err != nil {
		return nil, err
	}
	ctx, release := s.held(ctx)
	defer release()
	who := callerOf(ctx)
	if wait > 0 {
		var cancel, expelled context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
		ctx, expelled = s.until(ctx, who.ends()) // what is held ends with the token
		defer expelled()
	}
	restored := s.opts.Store.Restored()
	for {
		view, index, before := s.reads.begin(who.readKey, s.opts.Store)
		ws := state.WatchSet{}
		ws.Add(restored)
		body, err := q(view, ws)
		s.reads.end(who.readKey, view.Index(), ws)
		if wait > 0 && !s.entitled(ws, who) {
			return nil, errCredential()
		}
		// After a restore everything may be different, whatever the index.
		if wait == 0 || p.Index == 0 || index > p.Index || ctx.Err() != nil || fired(state.WatchSet{restored: {}}) {
			if err != nil {
				return nil, err
			}
			return &answer[T]{Index: index, Body: body}, nil
		}
		for ch := range before { // one may be about to fire for what the view already has
			ws.Add(ch)
		}
		_ = ws.WatchCtx(ctx) // its error is ctx's, which the next turn looks at
	}
}

// fresh makes sure that the store here is as new as the caller wants.
func (s *Server) fresh(ctx context.Context, consistency string) error {
	if consistency == "stale" {
		return nil
	}
	if err := s.atLeader(); err != nil {
		return err
	}
	if consistency != "consistent" {
		return nil
	}
	if err := s.opts.Cluster.VerifyLeader(ctx); err != nil {
		return noLeader(err)
	}
	if err := s.opts.Cluster.Barrier(ctx); err != nil {
		return noLeader(err)
	}
	return nil
}

// atLeader refuses what only the leader can do: a request that was passed on to a coordinator which no
// longer leads, or one that arrived while leadership ended here.
func (s *Server) atLeader() error {
	if s.opts.Cluster.IsLeader() {
		return nil
	}
	return noLeader(nil)
}

// noLeader is the refusal while nobody leads.
func noLeader(cause error) *fault.Error {
	f := fault.Wrap(fault.NoLeader, cause, "there is no leader at the moment; try again shortly")
	f.RetryAfter = time.Second
	return f
}

// readsKept is how many readings one generation of memory holds.
const readsKept = 4096

// reads remembers, per reading (path and filters), at which index its result last changed. With it a
// blocking read is not woken by changes of other things, and a removal, which leaves no record behind,
// is noticed like any change. A reading that was forgotten counts as just changed: that may answer a
// blocking read early and never late.
type reads struct {
	mu sync.Mutex
	// young and old are two generations, guarded by mu: when young is full it becomes old, and the old
	// one is forgotten.
	young, old map[string]*reading
}

// reading is the memory of one reading.
type reading struct {
	index uint64         // the result has not changed after this index, as long as ws has not fired
	seen  uint64         // index of the view that ws belongs to
	ws    state.WatchSet // of the newest reading
}

func newReads() *reads { return &reads{young: map[string]*reading{}} }

// begin takes a view and tells at which index the reading's result last changed in it, and the channels
// of the reading before. The view is taken under the lock, so that a remembered index is never newer
// than the view it is reported with.
func (r *reads) begin(key string, store *state.Store) (view state.View, index uint64, before state.WatchSet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	view = store.View()
	m := r.lookup(key)
	switch {
	case m == nil:
		m = &reading{index: view.Index()}
		r.keep(key, m)
	case m.ws == nil || fired(m.ws):
		m.index, m.ws, m.seen = view.Index(), nil, 0
	}
	return view, m.index, m.ws
}

// end remembers what a reading looked at.
func (r *reads) end(key string, seen uint64, ws state.WatchSet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.lookup(key)
	if m == nil || m.ws != nil && seen < m.seen {
		return
	}
	kept := make(state.WatchSet, len(ws)) // the caller goes on adding to its own
	for ch := range ws {
		kept.Add(ch)
	}
	m.seen, m.ws = seen, kept
}

// lookup finds a memory and moves it to the young generation.
func (r *reads) lookup(key string) *reading {
	if m := r.young[key]; m != nil {
		return m
	}
	m := r.old[key]
	if m != nil {
		delete(r.old, key)
		r.keep(key, m)
	}
	return m
}

func (r *reads) keep(key string, m *reading) {
	if len(r.young) >= readsKept {
		r.old, r.young = r.young, map[string]*reading{}
	}
	r.young[key] = m
}

// fired reports whether something in a watch set has changed.
func fired(ws state.WatchSet) bool {
	for ch := range ws {
		select {
		case <-ch:
			return true
		default:
		}
	}
	return false
}

// readKey names a reading: the path and the parameters that choose its result.
func readKey(u *url.URL) string {
	q := u.Query()
	for _, p := range []string{"index", "wait", "consistency"} {
		q.Del(p)
	}
	return u.Path + "?" + q.Encode()
}
