package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"
)

// Pin names a CA: the SHA-256 of its root's SubjectPublicKeyInfo.
//
// It is of the public key and not of the certificate, so that a root that is issued anew with the same key
// (a longer life) keeps its pin and the join tokens that are out stay good. It is no weaker: whoever wants
// to pass needs the private key either way, and a root counts only if it is signed with that key itself
// (parseRoot), so nobody can put other constraints around the same key.
type Pin struct{ sum [sha256.Size]byte }

const pinPrefix = "sha256:"

// pinOf is the pin of a certificate's key.
func pinOf(cert *x509.Certificate) Pin {
	return Pin{sha256.Sum256(cert.RawSubjectPublicKeyInfo)}
}

// ParsePin reads what String printed: "sha256:" and 64 lower-case hexadecimal digits.
func ParsePin(s string) (Pin, error) {
	digits, ok := strings.CutPrefix(s, pinPrefix)
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != sha256.Size || digits != strings.ToLower(digits) {
		return Pin{}, refuse(Malformed, "cannot use %q as the pin of a CA: want sha256: and 64 lower-case hexadecimal digits", short(s))
	}
	return Pin{[sha256.Size]byte(raw)}, nil
}

// String prints the pin.
func (p Pin) String() string { return pinPrefix + p.digits() }

func (p Pin) digits() string { return hex.EncodeToString(p.sum[:]) }

// IsZero reports whether this pins nothing.
func (p Pin) IsZero() bool { return p == Pin{} }
