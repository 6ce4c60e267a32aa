// Package keyed is what a creating call with an Idempotency-Key is remembered by. Whoever creates keeps two
// digests of it, and makes what is secret about the new thing of the key instead of at random: so the same call
// can be given the same answer though no secret is kept.
package keyed

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

const (
	// Header is where a caller puts the key.
	Header = "Idempotency-Key"
	// Remembered is for how long a key has one answer.
	Remembered = 24 * time.Hour
	// MasterSize is the size of the key that the secrets are made with.
	MasterSize = sha256.Size

	maxKey = 200
)

// Digest names a key or a body where the thing itself must not be.
type Digest [sha256.Size]byte

// Request is one creating call. The zero Request is one without a key: it is never a repeat.
type Request struct {
	key, body Digest
	text      logging.Secret // caller, call and key
}

// New reads the key of a call. Everything that two callers may not share is in caller; call names what is asked
// for, and body is that as it was understood.
func New(h http.Header, caller, call string, body any) (Request, error) {
	keys := h.Values(Header)
	if len(keys) == 0 || len(keys) == 1 && keys[0] == "" {
		return Request{}, nil
	}
	if len(keys) > 1 || utf8.RuneCountInString(keys[0]) > maxKey {
		err := fault.New(fault.InvalidRequest, "cannot use the %s: give one, of at most %d characters", Header, maxKey)
		err.Locations = []fault.Location{{Location: "header." + Header, Message: err.Message}}
		return Request{}, err
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return Request{}, fmt.Errorf("cannot encode the body for its digest: %w", err)
	}
	text := caller + "\x00" + call + "\x00" + keys[0] // no part can hold a zero
	return Request{key: sha256.Sum256([]byte(text)), body: sha256.Sum256(raw), text: logging.NewSecret(text)}, nil
}

// Given reports whether the call had a key.
func (r Request) Given() bool { return !r.text.IsZero() }

// Key is the digest of caller, call and key.
func (r Request) Key() Digest { return r.key }

// Body is the digest of what was asked for.
func (r Request) Body() Digest { return r.body }

// Secret makes 256 bits of the call for a purpose. Nobody can who lacks the master key or the key of the caller.
func (r Request) Secret(master []byte, purpose string) [sha256.Size]byte {
	mac := hmac.New(sha256.New, master)
	_, _ = io.WriteString(mac, purpose+"\x00"+r.text.Reveal())
	return [sha256.Size]byte(mac.Sum(nil))
}

// Over reports whether a key that was used at a moment is free again.
func Over(used, now time.Time) bool { return now.Sub(used) >= Remembered }

// Reused is the answer to a key that came with another body.
func Reused() error {
	return fault.New(fault.Conflict, "this idempotency key was used for another request; use a new key")
}

// Lost is the answer when the secrets cannot be made again.
func Lost(what string) error {
	return fault.New(fault.Conflict, "this idempotency key has made %s, whose secrets cannot be given again: delete it, and use a new key", what)
}

// Gone is the answer when what the key has made is not there any more.
func Gone(what string) error { return fault.New(fault.Superseded, "%s was deleted meanwhile", what) }
