package usertoken_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/usertoken"
	kit "github.com/demiurge-platform/demiurge/shared/usertoken/usertokentest"
)

// patience is how long a test waits for a condition on a busy machine.
const patience = 30 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// running runs a verifier until the end of the test.
func running(t *testing.T, v *usertoken.Verifier) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ended by the clean-up
		defer close(done)
		v.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func opens(v *usertoken.Verifier, token string) bool {
	_, err := v.Verify(token)
	return err == nil
}

func TestKeysFromAFileAreWatched(t *testing.T) {
	a, b := kit.NewKey(t, "a"), kit.NewKey(t, "b")
	conf := kit.File(t, a)
	v, _ := verifier(t, conf)
	running(t, v)
	byA, byB := kit.Sign(t, a, kit.For("alice", start)), kit.Sign(t, b, kit.For("alice", start))
	accepted(t, v, "the key of the beginning", byA, alice)
	refused(t, v, "a key to come", byB, "no such key")
	kit.Write(t, conf.JWKSFile, kit.Set(t, a, b)) // both, while tokens of the old one are about
	eventually(t, "the new key counts", func() bool { return opens(v, byB) })
	accepted(t, v, "the old key beside it", byA, alice)
	kit.Write(t, conf.JWKSFile, kit.Set(t, b))
	eventually(t, "the old key counts no more", func() bool { return !opens(v, byA) })
	for what, bad := range map[string][]byte{"garbage": []byte("{"), "no keys": []byte(`{"keys":[]}`), "empty": nil} {
		kit.Write(t, conf.JWKSFile, bad)
		eventually(t, what+" is noticed", func() bool { return strings.Contains(v.Problems()[kit.Name], conf.JWKSFile) })
		accepted(t, v, "after "+what, byB, alice)
		kit.Write(t, conf.JWKSFile, kit.Set(t, b))
		eventually(t, "it is well again", func() bool { return len(v.Problems()) == 0 })
	}
	if err := os.Remove(conf.JWKSFile); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal is noticed", func() bool { return len(v.Problems()) == 1 })
	accepted(t, v, "after the removal", byB, alice)
}

func TestAFileThatCannotBeUsedAtTheStartIsAnError(t *testing.T) {
	k := kit.NewKey(t, "a")
	for what, change := range map[string]func(*usertoken.Issuer){
		"missing": func(i *usertoken.Issuer) { i.JWKSFile += "x" },
		"garbage": func(i *usertoken.Issuer) { kit.Write(t, i.JWKSFile, []byte("keys")) },
		"other algorithm": func(i *usertoken.Issuer) {
			i.Algorithms = []string{"EdDSA"}
		},
	} {
		conf := kit.File(t, k)
		change(&conf)
		_, err := usertoken.New(usertoken.Options{Issuers: []usertoken.Issuer{conf}, Logger: hclog.NewNullLogger()})
		if err == nil || !strings.Contains(err.Error(), conf.JWKSFile) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// scripted is an issuer's server in a bubble of time: what it answers can be changed, and questions count.
type scripted struct {
	asked  atomic.Int64
	answer atomic.Pointer[func(*http.Request) (*http.Response, error)]
}

func (s *scripted) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked.Add(1)
	return (*s.answer.Load())(r)
}

func (s *scripted) set(f func(*http.Request) (*http.Response, error)) { s.answer.Store(&f) }

func (s *scripted) gives(data []byte) {
	s.set(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Status: "200 OK", Body: io.NopCloser(bytes.NewReader(data))}, nil
	})
}

func (s *scripted) down() {
	s.set(func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") })
}

// inBubble runs a test with a verifier whose issuer is at a URL and answered by script.
func inBubble(t *testing.T, s *scripted, k kit.Key, test func(t *testing.T, v *usertoken.Verifier)) {
	t.Helper()
	refreshing(t, s, k, 0, test)
}

// refreshing is inBubble with another pace than the usual one.
func refreshing(t *testing.T, s *scripted, k kit.Key, refresh time.Duration, test func(t *testing.T, v *usertoken.Verifier)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		conf := usertoken.Issuer{
			Name: kit.Name, Issuer: kit.URL, Audience: kit.Audience, Algorithms: []string{string(k.Algorithm)}, JWKSURL: "https://login.example.org/jwks", Refresh: refresh,
		}
		v, err := usertoken.New(usertoken.Options{Issuers: []usertoken.Issuer{conf}, Logger: hclog.NewNullLogger(), Transport: s})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { // ends with ctx
			defer close(done)
			v.Run(ctx)
		}()
		test(t, v)
		cancel()
		<-done
	})
}

// waitFor lets time go by in a bubble.
func waitFor(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestSecurityJWKSDownAtTheStart(t *testing.T) {
	k, s := kit.NewKey(t, "a"), &scripted{}
	s.down()
	inBubble(t, s, k, func(t *testing.T, v *usertoken.Verifier) {
		synctest.Wait()
		refused(t, v, "without keys", kit.Sign(t, k, kit.For("alice", time.Now())), "no such key")
		if p := v.Problems()[kit.Name]; !strings.Contains(p, "there are no keys") || !strings.Contains(p, "connection refused") {
			t.Errorf("problem %q", p)
		}
		waitFor(10 * time.Minute)
		if n := s.asked.Load(); n < 8 || n > 14 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		s.gives(kit.Set(t, k))
		waitFor(5 * time.Minute)
		accepted(t, v, "once it is up", kit.Sign(t, k, kit.For("alice", time.Now())), alice)
		if p := v.Problems(); len(p) > 0 {
			t.Errorf("problems %v", p)
		}
	})
}

// However long an issuer was down, whoever comes to log in once it is up does not wait for the turn that is due after
// so many failures. A flood of them while it is down does not have it asked more often than while it is up.
func TestAnIssuerThatIsBackIsAskedForWhoComes(t *testing.T) {
	k, s := kit.NewKey(t, "a"), &scripted{}
	s.down()
	inBubble(t, s, k, func(t *testing.T, v *usertoken.Verifier) {
		comes := func() bool { return opens(v, kit.Sign(t, k, kit.For("alice", time.Now()))) }
		waitFor(time.Hour)
		before := s.asked.Load()
		for range 600 {
			if comes() {
				t.Fatal("a user got in without keys")
			}
			waitFor(time.Second)
		}
		if n := s.asked.Load() - before; n < 15 || n > 21 {
			t.Errorf("asked %d times in ten minutes of users", n)
		}
		waitFor(time.Hour)
		s.gives(kit.Set(t, k))
		back := time.Now()
		for !comes() {
			waitFor(time.Second)
		}
		if waited := time.Since(back); waited > 31*time.Second {
			t.Errorf("who came once it was up had to wait %s", waited)
		}
	})
}

// An operator who has the issuer asked every minute has it asked every minute, down or up.
func TestAnIssuerThatIsDownIsAskedAtItsPace(t *testing.T) {
	k, s := kit.NewKey(t, "a"), &scripted{}
	s.down()
	refreshing(t, s, k, time.Minute, func(t *testing.T, v *usertoken.Verifier) {
		waitFor(time.Hour)
		before := s.asked.Load()
		waitFor(10 * time.Minute)
		if n := s.asked.Load() - before; n < 9 || n > 12 {
			t.Errorf("asked %d times in ten minutes, after an hour of failures", n)
		}
	})
}

func TestSecurityJWKSDownMidWay(t *testing.T) {
	k, s := kit.NewKey(t, "a"), &scripted{}
	s.gives(kit.Set(t, k))
	inBubble(t, s, k, func(t *testing.T, v *usertoken.Verifier) {
		synctest.Wait()
		accepted(t, v, "at first", kit.Sign(t, k, kit.For("alice", time.Now())), alice)
		s.down()
		waitFor(23 * time.Hour)
		accepted(t, v, "with the keys of before", kit.Sign(t, k, kit.For("alice", time.Now())), alice)
		if p := v.Problems()[kit.Name]; !strings.Contains(p, "keys from before") {
			t.Errorf("problem %q", p)
		}
		waitFor(2 * time.Hour) // whoever keeps the answers away must not keep a withdrawn key alive for ever
		refused(t, v, "with keys that are too old", kit.Sign(t, k, kit.For("alice", time.Now())), "no such key")
		s.gives(kit.Set(t, k))
		waitFor(6 * time.Minute)
		accepted(t, v, "again", kit.Sign(t, k, kit.For("alice", time.Now())), alice)
	})
}

func TestSecurityJWKSSlow(t *testing.T) {
	k, s := kit.NewKey(t, "a"), &scripted{}
	s.set(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	inBubble(t, s, k, func(t *testing.T, v *usertoken.Verifier) {
		synctest.Wait()
		before := time.Now()
		refused(t, v, "while it is asked", kit.Sign(t, k, kit.For("alice", time.Now())), "no such key")
		if waited := time.Since(before); waited != 0 {
			t.Errorf("it waited %s", waited)
		}
		waitFor(time.Minute)
		if n := s.asked.Load(); n < 3 || n > 5 { // each is given up after ten seconds
			t.Errorf("asked %d times in a minute", n)
		}
	})
}

func TestSecurityJWKSLying(t *testing.T) {
	k, evil, s := kit.NewKey(t, "a"), kit.NewKey(t, "a"), &scripted{}
	private := func(k kit.Key) []byte {
		jwk := k.JWK()
		jwk.Key = k.Private
		raw, err := jwk.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		return []byte(`{"keys":[` + string(raw) + `]}`)
	}
	many := `{"keys":[` + strings.TrimSuffix(strings.Repeat(`{"kty":"oct","k":"AAAA"},`, 101), ",") + `]}`
	answers := map[string][]byte{
		"garbage": []byte("<html>log in</html>"), "nothing": nil, "null": []byte("null"), "no keys": []byte(`{"keys":[]}`), "a list": []byte("[]"),
		"a secret": []byte(`{"keys":[{"kty":"oct","kid":"a","alg":"HS256","k":"c2VjcmV0"}]}`),
		"no key":   []byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"AAAA","y":"AAAA"}]}`),
		"off the curve": []byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"` + strings.Repeat("A", 42) + `E","y":"` +
			strings.Repeat("A", 42) + `E"}]}`),
		"a short key": []byte(`{"keys":[{"kty":"RSA","kid":"a","e":"AQAB","n":"` + strings.Repeat("_", 171) + `"}]}`),
		"private":     private(evil), "private of the known": private(k), "two answers": append(kit.Set(t, k), kit.Set(t, evil)...),
		"too many": []byte(many), "too long": append(kit.Set(t, evil), bytes.Repeat([]byte(" "), 300<<10)...),
	}
	s.gives(kit.Set(t, k))
	inBubble(t, s, k, func(t *testing.T, v *usertoken.Verifier) {
		synctest.Wait()
		check := func(what string) {
			waitFor(6 * time.Minute)
			accepted(t, v, what, kit.Sign(t, k, kit.For("alice", time.Now())), alice)
			refused(t, v, what, kit.Sign(t, evil, kit.For("alice", time.Now())), "signature is invalid")
			if len(v.Problems()) != 1 {
				t.Errorf("%s: problems %v", what, v.Problems())
			}
			s.gives(kit.Set(t, k))
			waitFor(6 * time.Minute)
			if len(v.Problems()) != 0 {
				t.Errorf("after %s: problems %v", what, v.Problems())
			}
		}
		for what, data := range answers {
			s.gives(data)
			check(what)
		}
		for _, status := range []int{204, 302, 404, 500} {
			s.set(func(*http.Request) (*http.Response, error) {
				return &http.Response{
					StatusCode: status, Status: http.StatusText(status), Header: http.Header{"Location": {"https://evil.example.org/"}},
					Body: io.NopCloser(bytes.NewReader(kit.Set(t, evil))),
				}, nil
			})
			check(http.StatusText(status))
		}
	})
}

// A token with an unknown key makes the issuer be asked sooner, and a flood of them not more often.
func TestAnUnknownKeyIsAskedForAtABoundedRate(t *testing.T) {
	k, next, s := kit.NewKey(t, "a"), kit.NewKey(t, "b"), &scripted{}
	s.gives(kit.Set(t, k))
	inBubble(t, s, k, func(t *testing.T, v *usertoken.Verifier) {
		waitFor(time.Minute)
		s.gives(kit.Set(t, k, next))
		token := kit.Sign(t, next, kit.For("alice", time.Now()))
		refused(t, v, "before the issuer was asked", token, "no such key")
		synctest.Wait()
		accepted(t, v, "a moment later", token, alice)
		before := s.asked.Load()
		made := kit.Sign(t, kit.NewKey(t, "made-up"), kit.For("alice", time.Now()).With(kit.Claims{"exp": time.Now().Add(time.Hour).Unix()}))
		for range 600 {
			refused(t, v, "a made-up key", made, "no such key")
			waitFor(time.Second)
		}
		if n := s.asked.Load() - before; n < 15 || n > 21 {
			t.Errorf("asked %d times in ten minutes of made-up keys", n)
		}
	})
}

// Over a real connection: size and redirections are bounded there as well, and a file of a server counts.
func TestKeysFromAServer(t *testing.T) {
	k, evil := kit.NewKey(t, "a"), kit.NewKey(t, "a")
	var redirect, endless atomic.Bool
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/evil":
			_, _ = w.Write(kit.Set(t, evil))
		case endless.Load():
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 4096)); err != nil {
					return
				}
			}
		case redirect.Load():
			asked.Add(1)
			http.Redirect(w, r, "/evil", http.StatusFound)
		default:
			_, _ = w.Write(kit.Set(t, k))
		}
	}))
	defer server.Close()
	start := func() *usertoken.Verifier {
		conf := usertoken.Issuer{Name: kit.Name, Issuer: kit.URL, Audience: kit.Audience, Algorithms: []string{"ES256"}, JWKSURL: server.URL + "/jwks"}
		v, err := usertoken.New(usertoken.Options{Issuers: []usertoken.Issuer{conf}, Logger: hclog.NewNullLogger()})
		if err != nil {
			t.Fatal(err)
		}
		running(t, v)
		return v
	}
	good := kit.Sign(t, k, kit.For("alice", time.Now()))
	v := start()
	eventually(t, "the keys are there", func() bool { return opens(v, good) })
	redirect.Store(true)
	v = start()
	eventually(t, "the redirection is refused", func() bool { return strings.Contains(v.Problems()[kit.Name], "302") })
	refused(t, v, "the other place's key", kit.Sign(t, evil, kit.For("alice", time.Now())), "no such key")
	endless.Store(true)
	v = start()
	eventually(t, "the endless answer is given up", func() bool { return strings.Contains(v.Problems()[kit.Name], "more than") })
}

func TestValidate(t *testing.T) {
	good := usertoken.Issuer{Name: "platform", Issuer: kit.URL, Audience: "demiurge", JWKSURL: "https://login.example.org/jwks", Algorithms: []string{"RS256"}}
	if err := usertoken.Validate("auth.issuers", []usertoken.Issuer{good}); err != nil {
		t.Error(err)
	}
	for key, change := range map[string]func(*usertoken.Issuer){
		"name":                 func(i *usertoken.Issuer) { i.Name = "My Issuer" },
		"issuer":               func(i *usertoken.Issuer) { i.Issuer = "" },
		"audience":             func(i *usertoken.Issuer) { i.Audience = "" },
		"jwks_file: the keys":  func(i *usertoken.Issuer) { i.JWKSURL = "" },
		"jwks_file: the keys ": func(i *usertoken.Issuer) { i.JWKSFile = "/keys.json" },
		"jwks_file":            func(i *usertoken.Issuer) { i.JWKSURL, i.JWKSFile = "", "keys.json" },
		"jwks_url: whoever":    func(i *usertoken.Issuer) { i.JWKSURL = "http://login.example.org/jwks" },
		"jwks_url: whoever ":   func(i *usertoken.Issuer) { i.JWKSURL = "http://localhost/jwks" },
		"jwks_url: whoever  ":  func(i *usertoken.Issuer) { i.JWKSURL = "http://10.0.0.1/jwks" },
		"jwks_url: whoever   ": func(i *usertoken.Issuer) { i.JWKSURL = "http://[::ffff:192.0.2.1]/jwks" },
		"jwks_url: it has ":    func(i *usertoken.Issuer) { i.JWKSURL = "https://login.example.org/jwks#keys" },
		"jwks_url":             func(i *usertoken.Issuer) { i.JWKSURL = "file:///etc/keys.json" },
		"jwks_url: it has":     func(i *usertoken.Issuer) { i.JWKSURL = "https://a:b@login.example.org/jwks" },
		"jwks_url: it is not":  func(i *usertoken.Issuer) { i.JWKSURL = "login.example.org" },
		"algorithms":           func(i *usertoken.Issuer) { i.Algorithms = nil },
		`algorithms: "none"`:   func(i *usertoken.Issuer) { i.Algorithms = []string{"none"} },
		`algorithms: "HS256"`:  func(i *usertoken.Issuer) { i.Algorithms = []string{"RS256", "HS256"} },
		"user_prefix":          func(i *usertoken.Issuer) { i.UserPrefix = "a/" },
		"leeway":               func(i *usertoken.Issuer) { i.Leeway = time.Hour },
		"max_life":             func(i *usertoken.Issuer) { i.MaxLife = 365 * 24 * time.Hour },
		"refresh":              func(i *usertoken.Issuer) { i.Refresh = time.Second },
		"max_stale":            func(i *usertoken.Issuer) { i.MaxStale = -1 },
	} {
		bad := good
		change(&bad)
		want := `"auth.issuers[0].` + strings.TrimSpace(key)
		want = strings.Replace(want, ":", `":`, 1)
		if err := usertoken.Validate("auth.issuers", []usertoken.Issuer{bad}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := usertoken.Validate("auth.issuers", []usertoken.Issuer{good, good}); err == nil || !strings.Contains(err.Error(), "auth.issuers[1].name") || !strings.Contains(err.Error(), "auth.issuers[1].issuer") {
		t.Errorf("twice the same: %v", err)
	}
	loopback := good
	loopback.JWKSURL = "http://[::1]:8080/jwks"
	if err := usertoken.Validate("auth.issuers", []usertoken.Issuer{loopback}); err != nil {
		t.Error(err)
	}
}
