package dns

import (
	"context"
	"slices"
	"sync"
)

// maxTogether is how many callers' changes are sent as one.
const maxTogether = 100

// writes sends changes one request at a time, each with the changes of all who wait by then. At one
// request for each, PowerDNS does some hundred a second, most of it waiting for its disk; and of two at
// once, one fails where its database is SQLite.
type writes struct {
	send func(context.Context, []rrset) error
	turn chan struct{} // holds one while a request is under way

	mu      sync.Mutex
	waiting []*write // guarded by mu
}

// write is one caller's changes.
type write struct {
	changes []rrset
	gone    bool       // its caller's time is up, so it is not sent again; guarded by writes.mu
	done    chan error // has room for the outcome, so that nobody waits for a caller that went away
}

func newWrites(send func(context.Context, []rrset) error) *writes {
	return &writes{send: send, turn: make(chan struct{}, 1)}
}

// do returns when the changes were sent, by this caller or by another with its own, or when ctx ends: then
// they may still be under way.
func (w *writes) do(ctx context.Context, changes []rrset) error {
	own := &write{changes: changes, done: make(chan error, 1)}
	w.mu.Lock()
	w.waiting = append(w.waiting, own)
	w.mu.Unlock()
	for {
		select {
		case err := <-own.done:
			return err
		case <-ctx.Done():
			w.leave(own)
			return ctx.Err()
		case w.turn <- struct{}{}:
			if together := w.take(own, maxTogether); len(together) > 0 {
				w.sendAll(ctx, own, together)
			}
			<-w.turn // own.done has the outcome by now
		}
	}
}

// leave sees to it that nothing of a caller is sent from now on: what comes after may contradict it.
func (w *writes) leave(own *write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	own.gone = true
	w.waiting = slices.DeleteFunc(w.waiting, func(one *write) bool { return one == own })
}

// again lets changes wait once more, before those that came later.
func (w *writes) again(one *write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !one.gone {
		w.waiting = slices.Insert(w.waiting, 0, one)
	}
}

// take removes a caller's changes, and then others', up to a number, from those that wait. It takes nothing
// when that caller's do not wait any more.
func (w *writes) take(own *write, most int) []*write {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := slices.Index(w.waiting, own)
	if at < 0 {
		return nil
	}
	w.waiting = slices.Delete(w.waiting, at, at+1)
	n := min(most-1, len(w.waiting))
	together := append([]*write{own}, w.waiting[:n]...)
	w.waiting = slices.Delete(w.waiting, 0, n)
	return together
}

// sendAll sends changes together, and one by one when they are refused together: then one of them may be
// why. When the time of the caller that sends is up, the others' wait again.
func (w *writes) sendAll(ctx context.Context, own *write, together []*write) {
	var all []rrset
	for _, one := range together {
		all = append(all, one.changes...)
	}
	err := w.send(ctx, all)
	for _, one := range together {
		if len(together) > 1 && KindOf(err) == Refused && ctx.Err() == nil {
			one.done <- w.send(ctx, one.changes)
			continue
		}
		if err != nil && ctx.Err() != nil && one != own {
			w.again(one)
			continue
		}
		one.done <- err
	}
}
