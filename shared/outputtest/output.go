// Package outputtest keeps what a program prints, for tests that read it while the program runs.
package outputtest

import (
	"bytes"
	"sync"
)

// Output keeps what was written to it. It is ready for use as it is, by several writers and readers at a time.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write appends; it never fails.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// String is all that was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
