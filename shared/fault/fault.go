// Package fault holds the errors that cross processes: a stable code that programs may branch on, and a
// message for people. The wrapped cause is for the log of the process where it happened and is never sent.
package fault

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Code is a stable error code of the HTTP API. Codes are only ever added.
type Code string

// The stable codes.
const (
	InvalidRequest     Code = "invalid_request"
	Unauthenticated    Code = "unauthenticated"
	Forbidden          Code = "forbidden"
	NotFound           Code = "not_found"
	Conflict           Code = "conflict"
	OrganizationActive Code = "organization_active"
	PoolExhausted      Code = "pool_exhausted"
	NoEligibleHost     Code = "no_eligible_host"
	ActivationTimeout  Code = "activation_timeout"
	RouteApplyFailed   Code = "route_apply_failed"
	VerifyFailed       Code = "verify_failed"
	DNSFailed          Code = "dns_failed"
	HostLost           Code = "host_lost"
	Superseded         Code = "superseded"
	StaleEpoch         Code = "stale_epoch"
	StaleVersion       Code = "stale_version"
	TooLarge           Code = "too_large"
	RateLimited        Code = "rate_limited"
	NoLeader           Code = "no_leader"
	StorageLow         Code = "storage_low"
	Internal           Code = "internal"
)

// statuses maps every code to its HTTP status (RFC 9110, section 15).
var statuses = map[Code]int{
	InvalidRequest:     http.StatusBadRequest,
	Unauthenticated:    http.StatusUnauthorized,
	Forbidden:          http.StatusForbidden,
	NotFound:           http.StatusNotFound,
	Conflict:           http.StatusConflict,
	OrganizationActive: http.StatusConflict,
	PoolExhausted:      http.StatusTooManyRequests,
	NoEligibleHost:     http.StatusServiceUnavailable,
	ActivationTimeout:  http.StatusGatewayTimeout,
	RouteApplyFailed:   http.StatusBadGateway,
	VerifyFailed:       http.StatusBadGateway,
	DNSFailed:          http.StatusBadGateway,
	HostLost:           http.StatusServiceUnavailable,
	Superseded:         http.StatusConflict,
	StaleEpoch:         http.StatusConflict,
	StaleVersion:       http.StatusConflict,
	TooLarge:           http.StatusRequestEntityTooLarge,
	RateLimited:        http.StatusTooManyRequests,
	NoLeader:           http.StatusServiceUnavailable,
	StorageLow:         http.StatusServiceUnavailable,
	Internal:           http.StatusInternalServerError,
}

// Codes lists every stable code with its HTTP status, for documents and tests.
func Codes() map[Code]int {
	out := make(map[Code]int, len(statuses))
	for c, s := range statuses {
		out[c] = s
	}
	return out
}

// Location points to one wrong part of the input: "body.organization_id", "query.wait".
type Location struct {
	Location string `json:"location"`
	Message  string `json:"message"`
}

// Error is a refusal or failure with a stable code.
type Error struct {
	Code       Code
	Message    string        // for the caller: what was wrong, with what, and what to do
	RetryAfter time.Duration // zero: no hint
	Locations  []Location    // wrong parts of the input, for InvalidRequest
	Err        error         // the cause: logged, never sent
}

// Invalid says what is wrong with one field of a request's body.
func Invalid(field, format string, args ...any) *Error {
	err := New(InvalidRequest, format, args...)
	err.Locations = []Location{{Location: "body." + field, Message: err.Message}}
	return err
}

// Shorten keeps a message readable when somebody sends a megabyte as a name.
func Shorten(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// Error implements error. It includes the cause, so it is for logs; callers get Message.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// Status is the HTTP status of the error's code.
func (e *Error) Status() int {
	if s, ok := statuses[e.Code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// New makes an Error with a formatted message.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an Error that keeps its cause for the log.
func Wrap(code Code, err error, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Err: err}
}

// From returns the Error inside err. An error without one is Internal; nil stays nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: Internal, Message: "an internal error occurred; the log of the program that answered has the cause", Err: err}
}

// CodeOf is the code of err, or "" for nil.
func CodeOf(err error) Code {
	if e := From(err); e != nil {
		return e.Code
	}
	return ""
}

// Is reports whether err carries the code.
func Is(err error, code Code) bool { return err != nil && CodeOf(err) == code }
