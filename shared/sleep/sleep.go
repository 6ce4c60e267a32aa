// Package sleep waits in a way that can be ended: by a context, and by a channel beside it.
package sleep

import (
	"context"
	"time"
)

// For waits for d, or until ctx ends, and reports whether ctx is still alive.
func For(ctx context.Context, d time.Duration) bool { return Unless(ctx, d, nil) }

// Unless waits for d, until something is received from woken (nil: never) or until ctx ends, and reports whether ctx is
// still alive. It returns at once where d is not above zero.
func Unless(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-woken:
	case <-timer.C:
	}
	return ctx.Err() == nil // also where several were ready
}
