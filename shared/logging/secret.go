package logging

import (
	"encoding/json"
	"fmt"
	"io"
)

// redacted stands where a secret would be printed.
const redacted = "[redacted]"

// Secret is a string that never prints itself: not by any verb of fmt, not as JSON, YAML or text, not in
// a log line. Only Reveal gives it out. It holds a pointer because fmt reads unexported fields of the
// structs around it without asking any method: there it finds an address and no text.
type Secret struct{ value *string }

// NewSecret wraps a string. The empty string gives the zero Secret.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{&s}
}

// Reveal returns the string itself, for the one place that needs it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.value == nil }

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, so that no verb and no flag reaches the value.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements encoding.TextMarshaler, which YAML encoders and hclog ask.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler.
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// UnmarshalText implements encoding.TextUnmarshaler, so that a configuration can hold secrets. JSON
// decoders use it as well.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = NewSecret(string(b))
	return nil
}
