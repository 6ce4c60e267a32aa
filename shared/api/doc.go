// Package api holds the JSON bodies that programs exchange, one file per resource. These types are the
// wire only: the Raft log (coordinator/command) and the records of the store (coordinator/state) have
// types of their own, and conversions stand at the edges.
//
// JSON is snake_case, times are RFC 3339 in UTC, durations are strings such as "30s", measured times are
// numbers of milliseconds.
package api

import (
	"fmt"
	"time"
)

// Duration is a time.Duration whose JSON form is a string such as "1m30s".
type Duration time.Duration

// String prints the duration as Go does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts what time.ParseDuration accepts.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("cannot use %.80q as a duration: want a number with a unit, such as \"30s\"", b)
	}
	*d = Duration(v)
	return nil
}

// List is the answer of every list call.
type List[T any] struct {
	Items  []T    `json:"items"`
	Cursor string `json:"cursor,omitempty" doc:"Pass as ?cursor= for the next page; absent on the last"`
}
