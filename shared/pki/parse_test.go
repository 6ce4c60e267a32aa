package pki_test

import (
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

func TestParseIdentity(t *testing.T) {
	good := "demiurge://" + clusterA + "/agent/host-1"
	who := must[pki.Identity](t)(pki.ParseIdentity(good))
	if who.Cluster() != clusterA || who.Role() != pki.RoleAgent || who.Name() != "host-1" || who.String() != good || who.IsZero() {
		t.Errorf("read as %s", who)
	}
	for _, bad := range []string{
		"", "demiurge://", "demiurge:///agent/host-1", "demiurge://c/agent/", "demiurge://c/agent", "demiurge://c/agent/h/x", "demiurge://c//h",
		"Demiurge://c/agent/h", "spiffe://c/agent/h", " demiurge://c/agent/h", "demiurge://c/agent/h ", "demiurge://c/agent/h?", "demiurge://c/agent/h#f",
		"demiurge://C/agent/h", "demiurge://c/Agent/h", "demiurge://c/agent/H", "demiurge://c/agent/h%31", "demiurge://c:1/agent/h", "demiurge://u@c/agent/h",
		"demiurge://c/owner/h", "demiurge://c/agent/..", "demiurge://c/agent/-h", "demiurge://c/agent/h-", "demiurge://c/agent/" + strings.Repeat("h", 33),
		"demiurge://" + strings.Repeat("c", 64) + "/agent/h", "demiurge://c./agent/h", "demiurge://c/agent/h\x00", "demiurge://c/agent/h\n", good + good,
	} {
		if who, err := pki.ParseIdentity(bad); err == nil {
			t.Errorf("%q is %s", bad, who)
		} else if pki.ReasonOf(err) != pki.Malformed {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParsePinAndToken(t *testing.T) {
	pin := authority(t, clusterA).Root().Pin()
	if again := must[pki.Pin](t)(pki.ParsePin(pin.String())); again != pin || pin.IsZero() || !strings.HasPrefix(pin.String(), "sha256:") {
		t.Errorf("%s read as %s", pin, again)
	}
	for _, bad := range []string{"", "sha256:", "sha256:ab", strings.ToUpper(pin.String()), strings.TrimPrefix(pin.String(), "sha256:"), pin.String() + "0", "sha1:" + strings.Repeat("a", 64), " " + pin.String()} {
		if _, err := pki.ParsePin(bad); err == nil {
			t.Errorf("%q is a pin", bad)
		}
	}
	token := pki.NewJoinToken(pin)
	again := must[pki.JoinToken](t)(pki.ParseJoinToken(token.Reveal()))
	if again.ID != token.ID || again.Pin != pin || again.Reveal() != token.Reveal() {
		t.Errorf("%s read as %s", token, again)
	}
	parts := strings.Split(token.Reveal(), ".")
	join := func(p ...string) string { return strings.Join(p, ".") }
	for _, bad := range []string{
		"", "dmj1", "dmj1...", join("dmj2", parts[1], parts[2], parts[3]), join("DMJ1", parts[1], parts[2], parts[3]),
		join("dmj1", "tk-abcdefghij", parts[2], parts[3]), join("dmj1", parts[1], parts[2][1:], parts[3]), join("dmj1", parts[1], strings.ToUpper(parts[2])+"A", parts[3]),
		join("dmj1", parts[1], parts[2], parts[3][2:]), token.Reveal() + ".", token.Reveal() + "\n", " " + token.Reveal(), join("dmj1", parts[1], parts[2], pin.String()),
		join("dmj1", parts[1], strings.Repeat("A", 64), parts[3]),
	} {
		_, err := pki.ParseJoinToken(bad)
		if pki.ReasonOf(err) != pki.Malformed {
			t.Errorf("%q: %v", bad, err)
		}
		if err != nil && strings.Contains(err.Error(), parts[2]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

// What is stored of a token: enough to know it again, not enough to use it, and good for its own id only.
func TestJoinTokenHash(t *testing.T) {
	pin := authority(t, clusterA).Root().Pin()
	token, other := pki.NewJoinToken(pin), pki.NewJoinToken(pin)
	hash := token.Hash()
	if len(hash) != 64 || strings.Contains(token.Reveal(), string(hash)) {
		t.Errorf("stored as %s", hash)
	}
	renamed := token
	renamed.ID = other.ID
	replayed := must[pki.JoinToken](t)(pki.ParseJoinToken(token.Reveal()))
	for name, c := range map[string]struct {
		hash  pki.TokenHash
		token pki.JoinToken
		want  bool
	}{
		"itself": {hash, token, true}, "a replay is seen as the same": {hash, replayed, true}, "another": {hash, other, false},
		"the secret under another id": {hash, renamed, false}, "nothing stored": {"", token, false}, "no token": {hash, pki.JoinToken{}, false},
		"nothing for nothing": {pki.JoinToken{}.Hash(), pki.JoinToken{}, false},
	} {
		if got := c.hash.Matches(c.token); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("demiurge://" + clusterA + "/agent/host-1")
	f.Add("demiurge://c/coordinator/c1")
	f.Add("demiurge://c/agent/h%31?x#y")
	f.Fuzz(func(t *testing.T, s string) {
		who, err := pki.ParseIdentity(s)
		if err != nil {
			if !who.IsZero() {
				t.Errorf("%q is refused and is %s", s, who)
			}
			return
		}
		if who.String() != s {
			t.Errorf("%q has another spelling: %q", s, who)
		}
		if again, err := pki.NewIdentity(who.Cluster(), who.Role(), who.Name()); err != nil || again != who {
			t.Errorf("%q is made of what makes %s (%v)", s, again, err)
		}
	})
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add("dmj1.jt-abcdefghij." + strings.Repeat("0a", 32) + "." + strings.Repeat("b1", 32))
	f.Add("dmj1...")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := pki.ParseJoinToken(s)
		if err != nil {
			return
		}
		if token.Reveal() != s {
			t.Errorf("%q has another spelling: %q", s, token.Reveal())
		}
		if !token.Hash().Matches(token) {
			t.Errorf("%q does not match its own hash", s)
		}
	})
}

func FuzzParsePin(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("0a", 32))
	f.Fuzz(func(t *testing.T, s string) {
		if pin, err := pki.ParsePin(s); err == nil && pin.String() != s {
			t.Errorf("%q has another spelling: %q", s, pin)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add(goldenKey)
	f.Fuzz(func(t *testing.T, s string) {
		if key, err := pki.ParseKey(s); err == nil && key.Reveal() != s {
			t.Errorf("%q has another spelling", s)
		}
	})
}

func FuzzOpen(f *testing.F) {
	key, err := pki.ParseKey(goldenKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(must[[]byte](f)(pki.Seal(key, "fuzz", []byte("x"))), "fuzz")
	f.Add([]byte("dmseal\x00\x01"), "fuzz")
	f.Fuzz(func(t *testing.T, sealed []byte, context string) {
		plain, err := pki.Open(key, context, sealed)
		if err == nil && (len(plain) >= len(sealed) || context != "fuzz") {
			t.Errorf("forged %q for %q", plain, context)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	r := rotate(f)
	f.Add(r.nextBundle.PEM())
	f.Add("# x\n" + r.oldBundle.PEM() + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := pki.ParseBundle(text)
		if err != nil {
			return
		}
		again, err := pki.ParseBundle(b.PEM())
		if err != nil || !again.Equal(b) || again.PEM() != b.PEM() {
			t.Errorf("%q does not survive being printed: %v", text, err)
		}
	})
}

func FuzzDecodeAuthority(f *testing.F) {
	key, err := pki.ParseKey(goldenKey)
	if err != nil {
		f.Fatal(err)
	}
	ca := authority(f, clusterA)
	f.Add(must[[]byte](f)(ca.Encode(key)))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := pki.DecodeAuthority(data, key)
		if err != nil {
			return
		}
		if _, err := a.Encode(key); err != nil {
			t.Errorf("read and cannot be printed: %v", err)
		}
	})
}

func FuzzIssue(f *testing.F) {
	ca := authority(f, clusterA)
	who := identity(f, clusterA, pki.RoleAgent, "host-1")
	e := must[*pki.Enrolment](f)(pki.NewEnrolment())
	f.Add(e.Request())
	f.Fuzz(func(t *testing.T, request string) {
		chain, err := ca.Issue(request, pki.Grant{Identity: who, Now: noon})
		if err != nil {
			return
		}
		if leaf := first(t, chain); len(leaf.URIs) != 1 || leaf.URIs[0].String() != who.String() || leaf.IsCA || len(leaf.DNSNames) > 0 {
			t.Errorf("%q got more than its key", request)
		}
	})
}

func FuzzAccept(f *testing.F) {
	ca := authority(f, clusterA)
	who := identity(f, clusterA, pki.RoleAgent, "host-1")
	e := must[*pki.Enrolment](f)(pki.NewEnrolment())
	bundle := pki.NewBundle(ca.Root()).PEM()
	f.Add(must[string](f)(ca.Issue(e.Request(), pki.Grant{Identity: who, Now: noon})), bundle)
	f.Add(bundle, bundle)
	f.Fuzz(func(t *testing.T, chain, bundle string) {
		c, err := e.Accept(chain, bundle, who, noon)
		if err == nil && (c.Identity() != who || c.Expires().Before(noon) || c.RenewAt().After(c.Expires().Add(time.Second))) {
			t.Errorf("accepted %s", c)
		}
	})
}
