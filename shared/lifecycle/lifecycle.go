// Package lifecycle owns what a program starts. Everything started is pushed on one Stack on the next
// line and stopped in reverse order, once, within a deadline.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Stack is a named, last-in-first-out list of stops. The zero value is ready to use.
type Stack struct {
	mu      sync.Mutex
	stops   []stop
	stopped bool
}

type stop struct {
	name string
	fn   func(context.Context) error
}

// Push adds a stop. After Stop has begun the function is called at once, so that nothing is left over.
func (s *Stack) Push(name string, fn func(context.Context) error) {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		_ = fn(context.Background())
		return
	}
	s.stops = append(s.stops, stop{name, fn})
	s.mu.Unlock()
}

// PushClose adds a stop without context.
func (s *Stack) PushClose(name string, fn func() error) {
	s.Push(name, func(context.Context) error { return fn() })
}

// Go runs fn in a goroutine of its own. Stop cancels its context and waits for it to return.
func (s *Stack) Go(name string, fn func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // waited for by the stop pushed below
		defer close(done)
		fn(ctx)
	}()
	s.Push(name, func(stopCtx context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-stopCtx.Done():
			return errors.New("did not stop in time")
		}
	})
}

// Stop stops everything in reverse order and returns what went wrong, named. It runs once; a second
// call returns nil. A stop that fails does not keep the others from running.
func (s *Stack) Stop(ctx context.Context) error {
	s.mu.Lock()
	stops := s.stops
	s.stops, s.stopped = nil, true
	s.mu.Unlock()
	var errs []error
	for i := len(stops) - 1; i >= 0; i-- {
		if err := stops[i].fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("cannot stop %s: %w", stops[i].name, err))
		}
	}
	return errors.Join(errs...)
}
