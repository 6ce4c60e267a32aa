package dns

import (
	"errors"
	"fmt"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// Kind tells what can be done about a provider's failure.
type Kind string

// The kinds.
const (
	// Temporary: it could not be reached, was too slow or failed itself. The same call may succeed later.
	Temporary Kind = "temporary"
	// Refused: it will refuse the same call again until a person changes something.
	Refused Kind = "refused"
	// Lying: it said that it did what was asked, and what it then shows is something else.
	Lying Kind = "lying"
)

// Error is why a provider failed. It is the cause inside a fault with the code dns_failed.
type Error struct {
	Kind   Kind
	Status int // of the HTTP answer; 0 when there was none
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	switch {
	case e.Status != 0 && e.Err != nil:
		return fmt.Sprintf("%s (HTTP status %d): %v", e.Kind, e.Status, e.Err)
	case e.Status != 0:
		return fmt.Sprintf("%s (HTTP status %d)", e.Kind, e.Status)
	case e.Err != nil:
		return fmt.Sprintf("%s: %v", e.Kind, e.Err)
	}
	return string(e.Kind)
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// KindOf tells what kind of failure an error of a provider is; "" for all other errors.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

// failed makes the fault that a provider returns. The message ends with what to do.
func failed(cause *Error, format string, args ...any) error {
	return fault.Wrap(fault.DNSFailed, cause, format, args...)
}
