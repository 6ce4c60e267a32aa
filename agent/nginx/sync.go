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

// isRefused tells that nobody accepts connections at all.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
