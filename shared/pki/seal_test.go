package pki_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/pki"
)

// update writes golden files that are missing. It never rewrites one: the bytes are in snapshots already.
var update = flag.Bool("update", false, "write the golden files that are missing")

// goldenKey is the cluster key of the golden files, and of nothing else.
const goldenKey = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// golden reads a file of testdata, and makes it where it is missing and -update is given.
func golden(t *testing.T, name string, make func() []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if _, err := os.Stat(path); os.IsNotExist(err) && *update {
		if err := os.WriteFile(path, make(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return must[[]byte](t)(os.ReadFile(path))
}

func TestSealedTextOfVersion1IsRead(t *testing.T) {
	key := must[pki.Key](t)(pki.ParseKey(goldenKey))
	text := golden(t, "seal.v1.golden", func() []byte {
		sealed := must[[]byte](t)(pki.Seal(key, "golden/1", []byte("what was sealed by version 1")))
		return []byte(hex.EncodeToString(sealed) + "\n")
	})
	sealed := must[[]byte](t)(hex.DecodeString(strings.TrimSpace(string(text))))
	plain := must[[]byte](t)(pki.Open(key, "golden/1", sealed))
	if string(plain) != "what was sealed by version 1" {
		t.Errorf("opened as %q", plain)
	}
}

func TestStoredAuthorityOfVersion1IsRead(t *testing.T) {
	key := must[pki.Key](t)(pki.ParseKey(goldenKey))
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	made := func() *pki.Authority {
		return must[*pki.Authority](t)(pki.NewAuthority(pki.AuthorityOptions{Cluster: clusterA, Now: begin}))
	}
	data := golden(t, "authority.v1.golden", func() []byte {
		first := made()
		next, _, err := first.Rotate(pki.NewBundle(first.Root()), pki.RotateOptions{Overlap: 90 * 24 * time.Hour, Now: begin})
		if err != nil {
			t.Fatal(err)
		}
		return must[[]byte](t)(next.Encode(key))
	})
	ca := must[*pki.Authority](t)(pki.DecodeAuthority(data, key))
	// It signs, and hands on what the CA before it signed.
	chain := memberAt(t, ca, pki.NewBundle(ca.Root()), identity(t, clusterA, pki.RoleAgent, "host-1"), noon).Chain(t)
	if n := strings.Count(chain, "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("a chain of %d certificates", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	key := pki.NewKey()
	plain := []byte("plain text that must not show")
	sealed := must[[]byte](t)(pki.Seal(key, "a", plain))
	if bytes.Contains(sealed, plain) {
		t.Fatal("the text shows")
	}
	if again := must[[]byte](t)(pki.Seal(key, "a", plain)); bytes.Equal(again, sealed) {
		t.Error("the same text is sealed the same way twice")
	}
	if got := must[[]byte](t)(pki.Open(key, "a", sealed)); !bytes.Equal(got, plain) {
		t.Errorf("opened as %q", got)
	}
	if _, err := pki.Open(key, "b", sealed); pki.ReasonOf(err) != pki.Mismatch {
		t.Errorf("opened for another context: %v", err)
	}
	if _, err := pki.Open(pki.NewKey(), "a", sealed); pki.ReasonOf(err) != pki.Mismatch {
		t.Errorf("opened with another key: %v", err)
	}
	for n := range sealed { // every byte is authenticated
		changed := bytes.Clone(sealed)
		changed[n] ^= 1
		if got, err := pki.Open(key, "a", changed); err == nil {
			t.Fatalf("byte %d was changed and %q came out", n, got)
		}
		if got, err := pki.Open(key, "a", sealed[:n]); err == nil {
			t.Fatalf("cut off after %d bytes, and %q came out", n, got)
		}
	}
	if _, err := pki.Seal(pki.Key{}, "a", plain); err == nil {
		t.Error("sealed without a key")
	}
}

func TestKeysAndTokensDoNotShow(t *testing.T) {
	key := pki.NewKey()
	token := pki.NewJoinToken(authority(t, clusterA).Root().Pin())
	c := member(t, authority(t, clusterA), pki.RoleAgent, "host-1")
	parts := strings.Split(token.Reveal(), ".")
	for name, v := range map[string]any{"key": key, "token": token, "pointer": &token, "credentials": c, "struct": struct {
		K pki.Key
		T pki.JoinToken
		C *pki.Credentials
	}{key, token, c}} {
		text := fmt.Sprintf("%v %+v %#v %s %x", v, v, v, v, v)
		js, _ := json.Marshal(v)
		text += string(js)
		for _, secret := range []string{key.Reveal(), hex.EncodeToString([]byte(key.Reveal())), parts[2], hex.EncodeToString([]byte(parts[2])), "PRIVATE"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows its secret: %s", name, text)
			}
		}
	}
	if again := must[pki.Key](t)(pki.ParseKey(key.Reveal())); again.Reveal() != key.Reveal() {
		t.Error("the key changed on its way")
	}
	for _, s := range []string{"", "ab", strings.ToUpper(strings.Repeat("a", 64)), strings.Repeat("g", 64), strings.Repeat("a", 65), strings.Repeat("a", 66)} {
		_, err := pki.ParseKey(s)
		if err == nil {
			t.Errorf("%q is a key", s)
		} else if len(s) > 2 && strings.Contains(err.Error(), s) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}
