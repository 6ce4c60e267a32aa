package pki

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// JoinToken lets one program join, once: dmj1.<id>.<secret>.<pin>. It carries the pin of the CA, so that
// the joiner knows whom it tells the secret. How long it is good, for whom, and that it is spent, is kept
// by the coordinators under its id, beside its hash.
type JoinToken struct {
	ID     id.JoinToken
	Pin    Pin
	secret logging.Secret // 64 hexadecimal digits
}

const tokenPrefix = "dmj1"

// NewJoinToken makes a random token for the CA of the pin.
func NewJoinToken(pin Pin) JoinToken {
	return JoinToken{ID: id.NewJoinToken(), Pin: pin, secret: logging.NewSecret(id.Secret())}
}

// ParseJoinToken reads what Reveal printed. Its error does not show the secret.
func ParseJoinToken(s string) (JoinToken, error) {
	bad := func(what string) (JoinToken, error) {
		return JoinToken{}, refuse(Malformed, "cannot use the join token (%d characters): %s; copy it whole, as it was shown when it was made", len(s), what)
	}
	parts := strings.Split(s, ".")
	if len(parts) != 4 || parts[0] != tokenPrefix {
		return bad("want " + tokenPrefix + ".<id>.<secret>.<pin>")
	}
	name, err := id.ParseJoinToken(parts[1])
	if err != nil {
		return bad("its id is damaged")
	}
	if raw, err := hex.DecodeString(parts[2]); err != nil || len(raw) != 32 || parts[2] != strings.ToLower(parts[2]) {
		return bad("its secret is damaged")
	}
	pin, err := ParsePin(pinPrefix + parts[3])
	if err != nil {
		return bad("its pin is damaged")
	}
	return JoinToken{ID: name, Pin: pin, secret: logging.NewSecret(parts[2])}, nil
}

// Reveal prints the token. It is shown once, to the one who made it, and sent once, by the joiner.
func (t JoinToken) Reveal() string {
	return tokenPrefix + "." + string(t.ID) + "." + t.secret.Reveal() + "." + t.Pin.digits()
}

// IsZero reports whether there is no token.
func (t JoinToken) IsZero() bool { return t.secret.IsZero() }

// String shows the id only.
func (t JoinToken) String() string { return "join token " + string(t.ID) }

// TokenHash is what is stored of a join token: a SHA-256, in hexadecimal digits. The secret has 256 random
// bits, so nothing slower is needed.
type TokenHash string

// Hash is of the id and the secret, so that a stored hash is good for its own id only.
func (t JoinToken) Hash() TokenHash {
	sum := sha256.Sum256([]byte(tokenPrefix + "." + string(t.ID) + "." + t.secret.Reveal()))
	return TokenHash(hex.EncodeToString(sum[:]))
}

// Matches compares in a time that does not depend on where they differ. No token matches an empty hash.
func (h TokenHash) Matches(t JoinToken) bool {
	return !t.IsZero() && subtle.ConstantTimeCompare([]byte(h), []byte(t.Hash())) == 1
}
