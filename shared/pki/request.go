package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"
)

// maxRequest bounds a signing request, as api.JoinRequest says.
const maxRequest = 16 << 10

// parseRequest reads a signing request and returns its public key after the proof that the caller has the
// private one. Everything else in it is what a caller says of himself, and is not looked at.
func parseRequest(text string) (crypto.PublicKey, error) {
	if len(text) > maxRequest {
		return nil, refuse(Malformed, "cannot read the signing request: it has %d bytes and at most %d are allowed", len(text), maxRequest)
	}
	der, err := onePEM("the signing request", blockRequest, text)
	if err != nil {
		return nil, err
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, because(Malformed, err, "cannot read the signing request")
	}
	if err := checkStrength(request.PublicKey); err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, because(Mismatch, err, "cannot accept the signing request: it is not signed with the key that it names")
	}
	return request.PublicKey, nil
}

// RequestKey is the SHA-256 of the public key that a signing request proves to be its maker's, in
// hexadecimal digits: by it a coordinator knows the same request again.
func RequestKey(request string) (string, error) {
	public, err := parseRequest(request)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", because(Malformed, err, "cannot read the public key of the signing request")
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// checkStrength accepts a closed list of keys: what is not on it is weak, slow, or never used here.
func checkStrength(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
		return refuse(WeakKey, "cannot accept an ECDSA key on %s: want P-256, P-384, or Ed25519", key.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	}
	return refuse(WeakKey, "cannot accept a key of type %T: want ECDSA on P-256 or P-384, or Ed25519", public)
}

// parseKeyDER reads a private key of ours.
func parseKeyDER(what string, der []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, because(Malformed, err, "cannot read %s", what)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, refuse(WeakKey, "cannot use %s: want an ECDSA key on P-256", what)
	}
	return key, nil
}

func uris(i Identity) []*url.URL { return []*url.URL{i.uri()} }

// Enrolment is one request for a certificate, from the making of the key to the check of the answer. The
// key never leaves it but inside Credentials.
type Enrolment struct {
	key     *ecdsa.PrivateKey
	request string
}

// NewEnrolment makes a key and a signing request for it.
func NewEnrolment() (*Enrolment, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("cannot make a signing request: %w", err)
	}
	return &Enrolment{key: key, request: toPEM(blockRequest, der)}, nil
}

// Request is the signing request, PEM.
func (e *Enrolment) Request() string { return e.request }

// Accept checks an answer before it is believed: it must be a certificate for this key and for want, and
// verify against the bundle that came with it.
func (e *Enrolment) Accept(certificate, ca string, want Identity, now time.Time) (*Credentials, error) {
	bundle, err := ParseBundle(ca)
	if err != nil {
		return nil, err
	}
	c, err := newCredentials(certificate, e.key, bundle, now)
	if err != nil {
		return nil, err
	}
	if err := sameIdentity(c.identity, want); err != nil {
		return nil, err
	}
	return c, nil
}
