package usertoken_test

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/usertoken"
	kit "github.com/demiurge-platform/demiurge/shared/usertoken/usertokentest"
)

// clocks are the world's, which can be set, and the one that cannot.
type clocks struct{ world, steady atomic.Int64 }

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func (c *clocks) now() time.Time { return start.Add(time.Duration(c.world.Load())) }

func (c *clocks) elapsed() time.Duration { return time.Duration(c.steady.Load()) }

func (c *clocks) pass(d time.Duration) {
	c.world.Add(int64(d))
	c.steady.Add(int64(d))
}

// verifier makes one for issuers with clocks of its own.
func verifier(t testing.TB, issuers ...usertoken.Issuer) (*usertoken.Verifier, *clocks) {
	t.Helper()
	c := &clocks{}
	v, err := usertoken.New(usertoken.Options{Issuers: issuers, Logger: hclog.NewNullLogger(), Now: c.now, Elapsed: c.elapsed})
	if err != nil {
		t.Fatal(err)
	}
	return v, c
}

// refused checks that a token is, and for that reason.
func refused(t *testing.T, v *usertoken.Verifier, what, token, why string) {
	t.Helper()
	user, err := v.Verify(token)
	switch {
	case err == nil:
		t.Errorf("%s: accepted as %s", what, user)
	case !strings.Contains(err.Error(), why):
		t.Errorf("%s: refused with %q, want %q in it", what, err, why)
	case user != (usertoken.User{}):
		t.Errorf("%s: refused, and names %s", what, user)
	case len(token) > 40 && strings.Contains(err.Error(), token[len(token)-40:]):
		t.Errorf("%s: the error has the token in it", what)
	}
}

func accepted(t *testing.T, v *usertoken.Verifier, what, token, want string) {
	t.Helper()
	user, err := v.Verify(token)
	if err != nil || user.String() != want {
		t.Errorf("%s: %q, %v; want %q", what, user, err, want)
	}
}

const alice = "user/platform/alice"

func TestVerifyGoodTokens(t *testing.T) {
	ec, rs := kit.NewKey(t, "a"), kit.RSAKey(t, "b")
	v, _ := verifier(t, kit.File(t, ec, rs))
	good := kit.For("alice", start)
	accepted(t, v, "ES256", kit.Sign(t, ec, good), alice)
	accepted(t, v, "RS256", kit.Sign(t, rs, good), alice)
	accepted(t, v, "one of several audiences", kit.Sign(t, ec, good.With(kit.Claims{"aud": []string{"other", kit.Audience}})), alice)
	accepted(t, v, "an access token by its type", kit.Sign(t, ec, good, "typ", "at+jwt"), alice)
	accepted(t, v, "its media type", kit.Sign(t, ec, good, "typ", "application/JWT"), alice)
	accepted(t, v, "no times but the expiry", kit.Sign(t, ec, good.With(kit.Claims{"iat": nil, "nbf": nil})), alice)
	user, err := v.Verify(kit.Sign(t, ec, good))
	if want := start.Add(10*time.Minute + 10*time.Second); err != nil || !user.Expires.Equal(want) {
		t.Errorf("it opens until %s, %v; want %s", user.Expires, err, want)
	}
}

func TestSecurityExpired(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, c := verifier(t, kit.File(t, k))
	token := kit.Sign(t, k, kit.For("alice", start))
	c.pass(10*time.Minute + 9*time.Second)
	accepted(t, v, "within the leeway", token, alice)
	c.pass(time.Second)
	refused(t, v, "after it", token, "expired")
	refused(t, v, "without expiry", kit.Sign(t, k, kit.For("alice", start).With(kit.Claims{"exp": nil})), "exp")
	refused(t, v, "an expiry that is no time", kit.Sign(t, k, kit.For("alice", start).With(kit.Claims{"exp": "never"})), "exp")
	for _, far := range []float64{1e12, 1e20, 1e300} {
		if user, err := v.Verify(kit.Sign(t, k, kit.For("alice", start).With(kit.Claims{"exp": far}))); err == nil {
			t.Errorf("an expiry of %g: accepted as %s", far, user)
		}
	}
}

// P2: tokens valid 365 days that nothing revokes.
func TestSecurityP2LongLife(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, _ := verifier(t, kit.File(t, k))
	year := kit.For("alice", start).With(kit.Claims{"exp": start.Add(365 * 24 * time.Hour).Unix()})
	refused(t, v, "365 days", kit.Sign(t, k, year), "max_life")
	allowing := kit.File(t, k)
	allowing.MaxLife = 20 * 24 * time.Hour
	v, _ = verifier(t, allowing)
	refused(t, v, "365 days where 20 are allowed", kit.Sign(t, k, year), "max_life")
	accepted(t, v, "19 days", kit.Sign(t, k, year.With(kit.Claims{"exp": start.Add(19 * 24 * time.Hour).Unix()})), alice)
}

func TestSecurityNotYetValid(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, c := verifier(t, kit.File(t, k))
	later := kit.Sign(t, k, kit.For("alice", start).With(kit.Claims{"nbf": start.Add(time.Minute).Unix()}))
	refused(t, v, "not before", later, "not valid yet")
	refused(t, v, "made in the future", kit.Sign(t, k, kit.For("alice", start).With(kit.Claims{"iat": start.Add(time.Minute).Unix(), "nbf": nil})), "before issued")
	c.pass(50 * time.Second)
	accepted(t, v, "within the leeway", later, alice)
}

func TestSecurityClockGoesBackwards(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, c := verifier(t, kit.File(t, k))
	token := kit.Sign(t, k, kit.For("alice", start))
	c.pass(time.Hour)
	refused(t, v, "expired", token, "expired")
	c.world.Add(-int64(2 * time.Hour)) // somebody sets the clock
	refused(t, v, "expired, and the clock was set back", token, "expired")
	accepted(t, v, "a newer one", kit.Sign(t, k, kit.For("alice", start.Add(time.Hour))), alice)
	c.world.Add(int64(4 * time.Hour)) // too far forward, and put right again
	refused(t, v, "while the clock is ahead", kit.Sign(t, k, kit.For("alice", start.Add(time.Hour))), "expired")
	c.world.Add(-int64(2 * time.Hour))
	accepted(t, v, "after it was put right", kit.Sign(t, k, kit.For("alice", start.Add(time.Hour))), alice)
}

func TestSecurityOtherAudienceAndIssuer(t *testing.T) {
	k, other := kit.NewKey(t, "a"), kit.NewKey(t, "a")
	second := kit.File(t, other)
	second.Name, second.Issuer = "partner", "https://partner.example.org"
	v, _ := verifier(t, kit.File(t, k), second)
	good := kit.For("alice", start)
	for what, aud := range map[string]any{"another": "billing", "several others": []string{"a", "b"}, "none": nil, "empty": "", "a number": 7, "a part": "demiurg", "other case": "Demiurge"} {
		refused(t, v, "audience: "+what, kit.Sign(t, k, good.With(kit.Claims{"aud": aud})), "aud")
	}
	for what, iss := range map[string]any{"another": "https://evil.example.org/", "none": nil, "a list": []string{kit.URL}, "without the slash": strings.TrimSuffix(kit.URL, "/"), "other case": strings.ToUpper(kit.URL)} {
		refused(t, v, "issuer: "+what, kit.Sign(t, k, good.With(kit.Claims{"iss": iss})), "another issuer")
	}
	refused(t, v, "the key of the second issuer for the first", kit.Sign(t, other, good), "signature is invalid")
	refused(t, v, "the key of the first issuer for the second", kit.Sign(t, k, good.With(kit.Claims{"iss": second.Issuer})), "signature is invalid")
	accepted(t, v, "the second", kit.Sign(t, other, good.With(kit.Claims{"iss": second.Issuer})), "user/partner/alice")
}

// Keys of a claim count to the letter: a program that takes "SUB" for "sub" lets users choose who they are.
func TestSecurityClaimsInAnotherCase(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, _ := verifier(t, kit.File(t, k))
	token := kit.Sign(t, k, kit.For("mallory", start).With(kit.Claims{"SUB": "alice", "Sub": "alice", "sUb": "alice"}))
	accepted(t, v, "claims beside sub", token, "user/platform/mallory")
	refused(t, v, "only SUB", kit.Sign(t, k, kit.For("x", start).With(kit.Claims{"sub": nil, "SUB": "alice"})), "claim sub")
}

func TestSecurityAlgNone(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, _ := verifier(t, kit.File(t, k))
	good := kit.Sign(t, k, kit.For("alice", start))
	for _, alg := range []any{"none", "None", "NONE", "nOnE", "", nil, 7} {
		header := kit.Claims{"typ": "JWT", "kid": "a", "alg": alg}
		if user, err := v.Verify(kit.Unsigned(t, header, kit.For("alice", start))); err == nil {
			t.Errorf("alg %v: accepted as %s", alg, user)
		}
		if user, err := v.Verify(kit.WithHeader(t, good, header)); err == nil {
			t.Errorf("alg %v with a signature: accepted as %s", alg, user)
		}
	}
}

// The public key is no secret: it must not verify what its bytes signed as one.
func TestSecurityKeyConfusion(t *testing.T) {
	rs, ec := kit.RSAKey(t, "a"), kit.NewKey(t, "b")
	v, _ := verifier(t, kit.File(t, rs, ec))
	for _, k := range []kit.Key{rs, ec} {
		der, err := x509.MarshalPKIXPublicKey(k.Private.Public())
		if err != nil {
			t.Fatal(err)
		}
		jwk, err := k.JWK().MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		for what, secret := range map[string][]byte{
			"PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "DER": der, "JWK": jwk, "set": kit.Set(t, rs, ec),
		} {
			refused(t, v, "HS256 with the "+what+" of "+string(k.Algorithm), kit.SignWithSecret(t, k.ID, secret, kit.For("alice", start)), "signing method HS256 is invalid")
		}
	}
}

// An algorithm counts only if the operator named it, and only with a key of its kind.
func TestSecurityAlgorithmsArePinned(t *testing.T) {
	rs, ec := kit.RSAKey(t, "a"), kit.NewKey(t, "b")
	only := kit.File(t, rs, ec)
	only.Algorithms = []string{"RS256"}
	v, _ := verifier(t, only)
	good := kit.For("alice", start)
	accepted(t, v, "RS256", kit.Sign(t, rs, good), alice)
	refused(t, v, "ES256", kit.Sign(t, ec, good), "signing method ES256 is invalid")
	for _, alg := range []jose.SignatureAlgorithm{jose.RS384, jose.RS512, jose.PS256} {
		refused(t, v, string(alg), kit.Sign(t, kit.Key{ID: "a", Algorithm: alg, Private: rs.Private}, good), "is invalid")
	}
	both := kit.File(t, rs, ec)
	both.Algorithms = []string{"RS256", "PS256", "ES256", "ES384"}
	v, _ = verifier(t, both)
	refused(t, v, "PS256 with a key that is for RS256", kit.Sign(t, kit.Key{ID: "a", Algorithm: jose.PS256, Private: rs.Private}, good), "no such key")
	refused(t, v, "RS256 that names the other kind's key", kit.Sign(t, kit.Key{ID: "b", Algorithm: jose.RS256, Private: rs.Private}, good), "no such key")
	refused(t, v, "ES384 with a key for ES256", kit.WithHeader(t, kit.Sign(t, ec, good), kit.Claims{"alg": "ES384", "kid": "b"}), "no such key")
}

func TestSecurityUnknownKid(t *testing.T) {
	a, b, stranger := kit.NewKey(t, "a"), kit.NewKey(t, "b"), kit.NewKey(t, "c")
	v, _ := verifier(t, kit.File(t, a, b))
	good := kit.For("alice", start)
	refused(t, v, "unknown", kit.Sign(t, stranger, good), "no such key")
	refused(t, v, "unknown, by a known key", kit.Sign(t, kit.Key{ID: "c", Algorithm: jose.ES256, Private: a.Private}, good), "no such key")
	refused(t, v, "the other key's", kit.Sign(t, kit.Key{ID: "b", Algorithm: jose.ES256, Private: a.Private}, good), "signature is invalid")
	refused(t, v, "none, where there are two", kit.Sign(t, kit.Key{Algorithm: jose.ES256, Private: a.Private}, good), "does not say which key")
	for _, kid := range []any{7, []string{"a"}, map[string]any{}, nil, ""} {
		refused(t, v, "no text", kit.WithHeader(t, kit.Sign(t, a, good), kit.Claims{"alg": "ES256", "kid": kid}), "kid is not a text")
	}
	for _, kid := range []string{"../../etc/passwd", "a' OR '1'='1", "a\x00", strings.Repeat("a", 1000)} {
		refused(t, v, "a hostile one", kit.Sign(t, kit.Key{ID: kid, Algorithm: jose.ES256, Private: a.Private}, good), "no such key")
	}
	v, _ = verifier(t, kit.File(t, a))
	accepted(t, v, "none, where there is one", kit.Sign(t, kit.Key{Algorithm: jose.ES256, Private: a.Private}, good), alice)
	// Two keys of one name, as while one is replaced.
	v, _ = verifier(t, kit.File(t, a, kit.Key{ID: "a", Algorithm: jose.ES256, Private: b.Private}))
	accepted(t, v, "the first of its name", kit.Sign(t, a, good), alice)
	accepted(t, v, "the second of its name", kit.Sign(t, kit.Key{ID: "a", Algorithm: jose.ES256, Private: b.Private}, good), alice)
}

// What a token brings along for its own verification is not looked at, and nothing is fetched for it: these
// verifiers have no way to fetch anything.
func TestSecurityKeysInTheTokenAreIgnored(t *testing.T) {
	k, evil := kit.NewKey(t, "a"), kit.NewKey(t, "a")
	v, _ := verifier(t, kit.File(t, k))
	good := kit.For("alice", start)
	refused(t, v, "jwk", kit.SignWithOwnKey(t, evil, good), "signature is invalid")
	for name, value := range map[string]any{
		"jku": "https://evil.example.org/jwks.json", "x5u": "https://evil.example.org/cert.pem",
		"x5c": []string{"AAAA"}, "x5t": "AAAA", "jwk": evil.JWK(),
	} {
		refused(t, v, name, kit.Sign(t, evil, good, name, value), "signature is invalid")
		accepted(t, v, name+" beside a good signature", kit.Sign(t, k, good, name, value), alice)
	}
	refused(t, v, "crit", kit.WithHeader(t, kit.Sign(t, k, good), kit.Claims{"alg": "ES256", "kid": "a", "crit": []string{"exp"}, "exp": 1}), "crit")
}

func TestSecurityOversized(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, _ := verifier(t, kit.File(t, k))
	padded := func(n int) string {
		return kit.Sign(t, k, kit.For("alice", start).With(kit.Claims{"pad": strings.Repeat("x", n)}))
	}
	fits := padded(5000)
	if len(fits) > usertoken.MaxToken {
		t.Fatalf("%d bytes", len(fits))
	}
	accepted(t, v, "large", fits, alice)
	refused(t, v, "too large", padded(usertoken.MaxToken), "bytes")
}

// P9: a refresh token is for its issuer, not for a call.
func TestSecurityP9RefreshTokenIsNoLogin(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, _ := verifier(t, kit.File(t, k))
	good := kit.For("alice", start)
	for _, typ := range []string{"refresh+jwt", "logout+jwt", "dpop+jwt", "secevent+jwt"} {
		refused(t, v, typ, kit.Sign(t, k, good, "typ", typ), "type")
	}
	for claim, value := range map[string]string{"typ": "Refresh", "type": "refresh_token", "token_use": "refresh", "token_type": "refresh"} {
		refused(t, v, claim, kit.Sign(t, k, good.With(kit.Claims{claim: value})), "refresh token")
	}
	accepted(t, v, "an access token", kit.Sign(t, k, good.With(kit.Claims{"token_use": "access", "typ": "Bearer"})), alice)
}

func TestWhoTheUserIs(t *testing.T) {
	k := kit.NewKey(t, "a")
	conf := kit.File(t, k)
	conf.UserClaim, conf.UserPrefix = "uid", "p."
	v, _ := verifier(t, conf)
	good := kit.For("x", start)
	accepted(t, v, "another claim", kit.Sign(t, k, good.With(kit.Claims{"uid": "alice@example.org"})), "user/platform/p.alice@example.org")
	for _, uid := range []any{nil, "", 7, []string{"alice"}, "a/b", "a b", "a\nb", strings.Repeat("a", 200), "älice", true} {
		if user, err := v.Verify(kit.Sign(t, k, good.With(kit.Claims{"uid": uid}))); err == nil {
			t.Errorf("%v: accepted as %s", uid, user)
		}
	}
}

func TestMalformed(t *testing.T) {
	k := kit.NewKey(t, "a")
	v, _ := verifier(t, kit.File(t, k))
	good := kit.Sign(t, k, kit.For("alice", start))
	parts := strings.Split(good, ".")
	for what, token := range map[string]string{
		"empty": "", "dots": "..", "two parts": parts[0] + "." + parts[1], "four parts": good + ".x", "no signature": parts[0] + "." + parts[1] + ".",
		"padding": parts[0] + "=." + parts[1] + "." + parts[2], "a space": good + " ", "other claims": parts[0] + "." + parts[1] + "A." + parts[2],
		"a cut signature": good[:len(good)-2], "a longer signature": good + "AAAA", "no JSON": "AAAA.AAAA.AAAA", "null": "bnVsbA.bnVsbA.bnVsbA",
	} {
		if user, err := v.Verify(token); err == nil {
			t.Errorf("%s: accepted as %s", what, user)
		}
	}
	if !usertoken.Looks(good) || usertoken.Looks(strings.Repeat("0", 64)) || usertoken.Looks("jt-aaaaaaaaaa.b.c.d") {
		t.Error("tokens are told apart wrongly")
	}
}

// FuzzVerify: no input panics, and none but what the key signed gets through.
func FuzzVerify(f *testing.F) {
	k := kit.NewKey(f, "a")
	v, _ := verifier(f, kit.File(f, k))
	good := kit.Sign(f, k, kit.For("alice", start))
	f.Add(good)
	f.Add(kit.Unsigned(f, kit.Claims{"alg": "none"}, kit.For("alice", start)))
	f.Add(kit.SignWithOwnKey(f, kit.NewKey(f, "a"), kit.For("alice", start)))
	f.Add(kit.SignWithSecret(f, "a", kit.Set(f, k), kit.For("alice", start)))
	f.Add(kit.WithHeader(f, good, kit.Claims{"alg": "ES256", "kid": []any{map[string]any{}}, "typ": 7}))
	f.Add(kit.Unsigned(f, kit.Claims{"alg": "ES256", "kid": "a"}, kit.Claims{"iss": kit.URL, "exp": -1e300, "nbf": 1e300, "aud": []any{1}}))
	f.Add("eyJ.eyJ.eyJ")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		user, err := v.Verify(token)
		if err == nil && (token != good || user.ID != "alice") {
			t.Fatalf("accepted %q as %s", token, user)
		}
		if err != nil && user != (usertoken.User{}) {
			t.Fatalf("refused %q, and names %s", token, user)
		}
	})
}
