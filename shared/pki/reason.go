package pki

import (
	"errors"
	"fmt"
)

// Reason says why a certificate, a key or a join was refused. Programs may branch on it.
type Reason string

// The reasons.
const (
	NoCertificate Reason = "no_certificate" // the peer presented none
	Malformed     Reason = "malformed"      // not a certificate, key, token … of this system
	OtherCA       Reason = "other_ca"       // signed by nobody who is trusted here
	OtherCluster  Reason = "other_cluster"  // of another cluster
	Expired       Reason = "expired"
	NotYetValid   Reason = "not_yet_valid"
	WrongRole     Reason = "wrong_role" // a genuine certificate of a program that has no business here
	WrongName     Reason = "wrong_name" // a genuine certificate of another host or coordinator
	WrongPin      Reason = "wrong_pin"  // the CA is not the one that the join token names
	WeakKey       Reason = "weak_key"
	Mismatch      Reason = "mismatch" // certificate and private key do not belong together
	Exposed       Reason = "exposed"  // a private key that others can read
)

// Error is a refusal by this package. Its text names the thing and what to do.
type Error struct {
	Reason  Reason
	Message string
	Err     error // the cause, or nil
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf finds the reason inside err, also below the errors of net/http and crypto/tls; "" if there is
// none.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// refuse makes an Error with a formatted message.
func refuse(reason Reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// because is refuse with a cause.
func because(reason Reason, err error, format string, args ...any) *Error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...), Err: err}
}

// short bounds what is quoted from outside.
func short(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
