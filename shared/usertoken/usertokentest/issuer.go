// Package usertokentest issues tokens of platform users for tests, good ones and forged ones, with a signer
// that is not the one whose code verifies them.
package usertokentest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// Names of the issuer that New makes.
const (
	Name     = "platform"
	URL      = "https://login.example.org/"
	Audience = "demiurge"
)

// Claims of a token.
type Claims map[string]any

// Key is a private key and what it signs with.
type Key struct {
	ID        string
	Algorithm jose.SignatureAlgorithm
	Private   crypto.Signer
}

// NewKey makes a key for ES256.
func NewKey(t testing.TB, kid string) Key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Key{kid, jose.ES256, private}
}

// rsaKey is one for all tests of a process: making one takes long.
var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// RSAKey gives a key for RS256, always the same.
func RSAKey(t testing.TB, kid string) Key {
	t.Helper()
	private, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	return Key{kid, jose.RS256, private}
}

// JWK is the public half.
func (k Key) JWK() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.Private.Public(), KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"}
}

// Set is a key set with the public halves of keys.
func Set(t testing.TB, keys ...Key) []byte {
	t.Helper()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.JWK())
	}
	return encode(t, set)
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Sign makes a token of claims; headers come in pairs of name and value and are added to its own.
func Sign(t testing.TB, k Key, claims Claims, headers ...any) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT")
	if k.ID != "" {
		opts = opts.WithHeader("kid", k.ID)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		opts = opts.WithHeader(jose.HeaderKey(headers[i].(string)), headers[i+1])
	}
	return sign(t, jose.SigningKey{Algorithm: k.Algorithm, Key: k.Private}, opts, encode(t, claims))
}

// SignWithSecret makes a token as whoever takes a public key for a shared secret does: HS256 with its bytes.
func SignWithSecret(t testing.TB, kid string, secret []byte, claims Claims) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", kid)
	return sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: secret}, opts, encode(t, claims))
}

// SignWithOwnKey makes a token that brings the key along with which it is to be verified.
func SignWithOwnKey(t testing.TB, k Key, claims Claims) string {
	t.Helper()
	opts := (&jose.SignerOptions{EmbedJWK: true}).WithType("JWT").WithHeader("kid", k.ID)
	return sign(t, jose.SigningKey{Algorithm: k.Algorithm, Key: k.Private}, opts, encode(t, claims))
}

func sign(t testing.TB, key jose.SigningKey, opts *jose.SignerOptions, payload []byte) string {
	t.Helper()
	signer, err := jose.NewSigner(key, opts)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Unsigned makes a token with any header and no signature.
func Unsigned(t testing.TB, header, claims Claims) string {
	t.Helper()
	part := func(v any) string { return base64.RawURLEncoding.EncodeToString(encode(t, v)) }
	return part(header) + "." + part(claims) + "."
}

// WithHeader puts another header before the claims and the signature of a token.
func WithHeader(t testing.TB, token string, header Claims) string {
	t.Helper()
	_, rest, _ := strings.Cut(token, ".")
	return base64.RawURLEncoding.EncodeToString(encode(t, header)) + "." + rest
}

// For are the claims of a good token for a user at a moment.
func For(user string, now time.Time) Claims {
	return Claims{
		"iss": URL, "aud": Audience, "sub": user,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
}

// With are the claims with some changed; nil takes one away.
func (c Claims) With(changes Claims) Claims {
	out := Claims{}
	for k, v := range c {
		out[k] = v
	}
	for k, v := range changes {
		if out[k] = v; v == nil {
			delete(out, k)
		}
	}
	return out
}

// File is an issuer with its keys in a file of a temporary directory.
func File(t testing.TB, keys ...Key) usertoken.Issuer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "jwks.json")
	Write(t, path, Set(t, keys...))
	out := usertoken.Issuer{Name: Name, Issuer: URL, Audience: Audience, JWKSFile: path}
	for _, k := range keys {
		out.Algorithms = append(out.Algorithms, string(k.Algorithm))
	}
	return out
}

// Write replaces a file at once, as an operator's tools do.
func Write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
