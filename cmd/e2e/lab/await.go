package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Await asks again and again until a condition holds. It gives up, with what the condition said last, after the patience
// and when ctx ends.
func Await(ctx context.Context, patience time.Duration, what string, holds func() error) error {
	for end := time.Now().Add(patience); ; {
		err := holds()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited in vain for %s: %w", what, err)
		}
		if !sleep.For(ctx, 50*time.Millisecond) {
			return fmt.Errorf("interrupted while waiting for %s: %w", what, err)
		}
	}
}
