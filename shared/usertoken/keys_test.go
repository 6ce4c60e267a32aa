package usertoken

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"math/big"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// Beside a good key stands one that must verify nothing, although it is of a pinned algorithm: a set of bad ones alone would
// be refused for whatever reason.
func TestSecurityKeysThatVerifyNothing(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := jose.JSONWebKey{Key: &private.PublicKey, KeyID: "good"}
	ofBits := func(bits uint, e int) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: e}
	}
	pinned := []string{"ES256", "RS256", "PS256"}
	parse := func(keys ...jose.JSONWebKey) ([]key, error) {
		data, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return parseKeys(data, pinned)
	}
	for what, bad := range map[string]jose.JSONWebKey{
		"for encryption":           {Key: &private.PublicKey, Use: "enc"},
		"for another use":          {Key: &private.PublicKey, Use: "SIG"},
		"for another algorithm":    {Key: &private.PublicKey, Algorithm: "ES384"},
		"for exchanging keys":      {Key: &private.PublicKey, Algorithm: "ECDH-ES"},
		"RSA, too short":           {Key: ofBits(minRSABits-1, 65537)},
		"RSA, as long as it likes": {Key: ofBits(uint(jose.MaxRSAModulusBits)+1, 65537)},
		"RSA with exponent 1":      {Key: ofBits(minRSABits, 1)},
		"RSA with an even one":     {Key: ofBits(minRSABits, 65536)},
		"RSA that does not sign":   {Key: ofBits(minRSABits, 65537), Algorithm: "RSA-OAEP"},
	} {
		bad.KeyID = "bad"
		if keys, err := parse(good, bad); err != nil || len(keys) != 1 || keys[0].id != "good" {
			t.Errorf("%s: %+v, %v", what, keys, err)
		}
		if keys, err := parse(bad); err == nil {
			t.Errorf("%s, alone: %+v", what, keys)
		}
	}
	for what, fine := range map[string]jose.JSONWebKey{
		"for signatures": {Key: &private.PublicKey, Use: "sig", Algorithm: "ES256"}, "RSA, short": {Key: ofBits(minRSABits, 3)},
		"RSA, long": {Key: ofBits(uint(jose.MaxRSAModulusBits), 65537)},
	} {
		fine.KeyID = "fine"
		if keys, err := parse(good, fine); err != nil || len(keys) != 2 {
			t.Errorf("%s: %+v, %v", what, keys, err)
		}
	}
	if keys, err := parse(jose.JSONWebKey{Key: ofBits(minRSABits, 65537), Algorithm: "PS256"}); err != nil || len(keys[0].algorithms) != 1 {
		t.Errorf("a key of one algorithm: %+v, %v", keys, err)
	}
	// Where one key is no secret any more, nobody can tell which others are.
	if keys, err := parse(good, jose.JSONWebKey{Key: private, KeyID: "private"}); !errors.Is(err, errPrivate) {
		t.Errorf("a private key beside a good one: %+v, %v", keys, err)
	}
	many := make([]jose.JSONWebKey, maxKeys+1)
	for i := range many {
		many[i] = good
	}
	if _, err := parse(many...); err == nil {
		t.Error("more keys than a set has are taken")
	}
	if keys, err := parse(many[1:]...); err != nil || len(keys) != maxKeys {
		t.Errorf("as many keys as a set has: %d, %v", len(keys), err)
	} else if verifying, err := choose(keys, "good", "ES256"); err != nil || len(verifying.(jwt.VerificationKeySet).Keys) != sameName {
		t.Errorf("one token is tried with more than %d keys: %v, %v", sameName, verifying, err)
	}
}

// FuzzKeys: a key set of an issuer is read or refused, and a set that is taken has a key of a pinned algorithm.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"keys":[]}`, `{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`, `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}]}`, `{"keys":[null]}`, `{"keys":7}`, `{"keys":[]} {}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parseKeys(data, []string{"EdDSA", "ES256", "RS256"})
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > maxKeys {
			t.Errorf("%q is taken for %d keys", data, len(keys))
		}
		for _, k := range keys {
			if k.public == nil {
				t.Errorf("%q gives a key without a public part", data)
			}
		}
	})
}
