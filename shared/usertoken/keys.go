package usertoken

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// algorithms are those that may be configured: all with a private and a public key. Neither "none" nor any
// in which who verifies could sign as well is among them.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// Bounds of a key set.
const (
	maxSet     = 256 << 10 // bytes
	maxKeys    = 100
	minRSABits = 2048 // and at most jose.MaxRSAModulusBits, by the library that reads keys
	sameName   = 4    // keys that one token is tried with
)

// key is one public key and what it may verify.
type key struct {
	id         string
	algorithms []string
	public     crypto.PublicKey
}

// parseKeys reads a JSON Web Key Set (RFC 7517) and keeps the keys that verify one of the algorithms. Keys
// of other kinds, and those that are for encryption, may stand beside them. A set without any usable key is
// refused, and so is one with a private key in it, which is no secret any more.
func parseKeys(data []byte, pinned []string) ([]key, error) {
	if len(data) > maxSet {
		return nil, fmt.Errorf("cannot use a key set of more than %d bytes", maxSet)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&set); err != nil {
		return nil, fmt.Errorf("cannot read the key set: %w", err)
	}
	if decoder.More() {
		return nil, errors.New("cannot read the key set: something follows it")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("cannot use a key set of %d keys: want at most %d", len(set.Keys), maxKeys)
	}
	var out []key
	var unfit []error
	for _, raw := range set.Keys {
		k, err := parseKey(raw, pinned)
		if errors.Is(err, errPrivate) {
			return nil, err
		}
		if err != nil {
			unfit = append(unfit, err)
			continue
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("cannot use the key set: none of its %d keys verifies one of %v: %w", len(set.Keys), pinned, errors.Join(unfit...))
	}
	return out, nil
}

var errPrivate = errors.New("cannot use the key set: it holds a private key, so whoever has read it can sign; replace that key at the issuer")

// parseKey reads one key.
func parseKey(raw json.RawMessage, pinned []string) (key, error) {
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(raw); err != nil {
		return key{}, fmt.Errorf("cannot read a key: %w", err)
	}
	switch k.Key.(type) {
	case *rsa.PrivateKey, *ecdsa.PrivateKey, ed25519.PrivateKey:
		return key{}, errPrivate
	}
	if k.Use != "" && k.Use != "sig" {
		return key{}, fmt.Errorf("key %.40q is for %.20q", k.KeyID, k.Use)
	}
	fit, err := fitting(k.Key)
	if err != nil {
		return key{}, fmt.Errorf("key %.40q: %w", k.KeyID, err)
	}
	fit = slices.DeleteFunc(fit, func(a string) bool {
		return !slices.Contains(pinned, a) || k.Algorithm != "" && k.Algorithm != a
	})
	if len(fit) == 0 {
		return key{}, fmt.Errorf("key %.40q is for another algorithm", k.KeyID)
	}
	return key{id: k.KeyID, algorithms: fit, public: k.Key}, nil
}

// fitting names the algorithms that a public key is for. Everything else, a shared secret above all, is for
// none.
func fitting(public any) ([]string, error) {
	switch p := public.(type) {
	case *rsa.PublicKey:
		if bits := p.N.BitLen(); bits < minRSABits || p.E < 3 || p.E%2 == 0 {
			return nil, fmt.Errorf("cannot use an RSA key of %d bits with exponent %d: want %d to %d bits and an odd exponent above 1", bits, p.E, minRSABits, jose.MaxRSAModulusBits)
		}
		return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, nil
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256():
			return []string{"ES256"}, nil
		case elliptic.P384():
			return []string{"ES384"}, nil
		case elliptic.P521():
			return []string{"ES512"}, nil
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}, nil
	}
	return nil, fmt.Errorf("cannot verify with a %T", public)
}

// choose gives the keys that may verify a token with this key id and algorithm. A token that names no key
// is verified only where there is no choice.
func choose(keys []key, kid string, algorithm string) (any, error) {
	var fit []jwt.VerificationKey
	for _, k := range keys {
		if slices.Contains(k.algorithms, algorithm) && (kid == "" || k.id == kid) && len(fit) < sameName {
			fit = append(fit, k.public)
		}
	}
	switch {
	case len(fit) == 0:
		return nil, errUnknownKey
	case len(fit) == 1:
		return fit[0], nil
	case kid == "":
		return nil, errors.New("the token does not say which key signed it (kid), and the issuer has several")
	}
	return jwt.VerificationKeySet{Keys: fit}, nil
}

// errUnknownKey is the refusal of a token whose key is not in the set, or not yet.
var errUnknownKey = errors.New("the issuer's key set has no such key for this algorithm")
