// Package oauth is the authorization server of organizations (RFC 6749 with the best practice of RFC 9700):
// clients, authorization codes, access and refresh tokens, their expiry and clean-up, and the HTTP
// endpoints on an organization's host name.
//
// A Store holds what one organization has, in memory, with a journal on the host; Organizations holds the
// stores of a host and the loops that keep them small; a Server speaks HTTP for one store. Who a person is,
// whether he belongs to the organization and what he agreed to is asked through interfaces (Login, Members,
// Consent). DESIGN.md says why things are as they are.
package oauth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Kind is what an object is, as metrics name it.
type Kind uint8

// The kinds of objects. Their numbers are stored; never reorder or reuse one.
const (
	Code    Kind = 1 // an authorization code
	Access  Kind = 2 // an access token
	Refresh Kind = 3 // a refresh token
)

// Kinds lists all kinds, in the order of their numbers.
func Kinds() []Kind { return []Kind{Code, Access, Refresh} }

// String is the kind's name in metrics and in answers of introspection.
func (k Kind) String() string {
	switch k {
	case Code:
		return "code"
	case Access:
		return "access_token"
	case Refresh:
		return "refresh_token"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Every value begins with a mark of its kind, so that one that leaked into a file can be found there, and a
// value of one kind is never taken for another.
var marks = map[Kind]string{Code: "dmc_", Access: "dma_", Refresh: "dmr_"}

const (
	markSize  = 4
	valueSize = markSize + 43 // 256 random bits in base64url
)

// digest is the SHA-256 of a value. Nothing but the digest is ever kept of one.
type digest [sha256.Size]byte

// newValue makes a random value.
func newValue(k Kind) (logging.Secret, digest) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
	value := marks[k] + base64.RawURLEncoding.EncodeToString(b[:])
	return logging.NewSecret(value), digest(sha256.Sum256([]byte(value)))
}

// parseValue gives the digest of what somebody sent as a value of one of the kinds.
func parseValue(value string, kinds ...Kind) (digest, bool) {
	if len(value) != valueSize {
		return digest{}, false
	}
	for _, k := range kinds {
		if strings.HasPrefix(value, marks[k]) {
			return digest(sha256.Sum256([]byte(value))), true
		}
	}
	return digest{}, false
}
