package nginx

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// keyedLocks is one lock per organization that exists while it is held or waited for.
type keyedLocks struct {
	mu   sync.Mutex // guards held; never held while waiting
	held map[id.Organization]chan struct{}
}

// lock waits for the organization's lock or the end of ctx.
func (k *keyedLocks) lock(ctx context.Context, org id.Organization) (unlock func(), err error) {
	for {
		k.mu.Lock()
		busy, taken := k.held[org]
		if !taken {
			mine := make(chan struct{})
			k.held[org] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, org)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// groupSync runs one fsync for everybody who asked before it began.
type groupSync struct {
	run func() error

	mu      sync.Mutex // guards next
	next    *batch     // collects those who arrive while a run is on its way
	running sync.Mutex // held during run
}

type batch struct {
	done chan struct{}
	err  error // written before done is closed
}

// wait returns when a run that began after the call has ended.
func (g *groupSync) wait() error {
	g.mu.Lock()
	b, leads := g.next, false
	if b == nil {
		b, leads = &batch{done: make(chan struct{})}, true
		g.next = b
	}
	g.mu.Unlock()
	if !leads {
		<-b.done
		return b.err
	}
	g.running.Lock()
	g.mu.Lock()
	g.next = nil // from here on others belong to the following run
	g.mu.Unlock()
	b.err = g.run()
	g.running.Unlock()
	close(b.done)
	return b.err
}

// isRefused tells that nobody accepts connections at all.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
