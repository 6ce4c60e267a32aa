package pki_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// FuzzStore: whatever stands in the files of a certificate, what is loaded fits together, counts now, and is saved and
// loaded as the same; or the file that is wrong is named, and the key is not shown.
func FuzzStore(f *testing.F) {
	r := rotate(f)
	dir := f.TempDir()
	store := openStore(f, dir)
	other := openStore(f, f.TempDir())
	saved := memberAt(f, r.next, r.nextBundle, identity(f, clusterA, pki.RoleAgent, "host-1"), noon)
	if err := store.Save(saved); err != nil {
		f.Fatal(err)
	}
	version := filepath.Dir(must[string](f)(filepath.EvalSymlinks(store.CertFile())))
	var good [3][]byte
	names := []string{"ca.pem", "cert.pem", "key.pem"}
	for n, name := range names {
		good[n] = must[[]byte](f)(os.ReadFile(filepath.Join(version, name)))
	}
	f.Add(good[0], good[1], good[2])
	f.Add(good[0], good[1], append(bytes.Clone(good[2]), good[2]...))
	f.Add(append([]byte("# ours\n"), good[0]...), good[1], good[2])
	f.Add([]byte(r.oldBundle.PEM()), good[1], append([]byte("\n\n"), good[2]...))
	f.Add(good[0], good[0], good[2])
	f.Add(good[0], []byte(nil), good[2])
	if err := other.Save(memberAt(f, r.next, r.nextBundle, identity(f, clusterA, pki.RoleAgent, "host-2"), noon)); err != nil {
		f.Fatal(err)
	}
	f.Add(good[0], must[[]byte](f)(os.ReadFile(other.CertFile())), good[2]) // of another one
	f.Fuzz(func(t *testing.T, ca, certificate, key []byte) {
		for n, data := range [][]byte{ca, certificate, key} {
			if err := os.WriteFile(filepath.Join(version, names[n]), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := store.Load(noon)
		if err != nil {
			if !strings.Contains(err.Error(), version) && !strings.Contains(err.Error(), filepath.Join(dir, "pki", "current")) || len(err.Error()) > 2000 {
				t.Fatalf("refused with %v", err)
			}
			if body, _, _ := bytes.Cut(bytes.TrimPrefix(key, []byte("-----BEGIN PRIVATE KEY-----\n")), []byte("\n")); len(body) > 40 && bytes.Contains([]byte(err.Error()), body[:40]) {
				t.Fatalf("the key is shown: %v", err)
			}
			return
		}
		if !c.Fits() || c.Expires().Before(noon) || c.Identity().IsZero() || c.Identity().Cluster() != c.Bundle().Cluster() {
			t.Fatalf("loaded %s of %s", c, c.Bundle().Cluster())
		}
		if err := other.Save(c); err != nil {
			t.Fatal(err)
		}
		if again, err := other.Load(noon); err != nil || !again.Equal(c) {
			t.Fatalf("%s is saved, and %s is loaded, %v", c, again, err)
		}
	})
}

// FuzzJoinAnswer: whatever answers a join, it is an answer that is written and read as the same, or an error; no refusal
// passes for an answer, and only an error of the API with a code of its own ends the search for another coordinator.
func FuzzJoinAnswer(f *testing.F) {
	f.Add(201, []byte(`{"certificate":"x","ca":"y","cluster":{"cluster_id":"c","api_addresses":["a:1"],"trust":"AA=="}}`))
	f.Add(200, []byte(`{"cluster":{"trust":"!"}}`))
	f.Add(200, []byte("null"))
	f.Add(401, []byte(`{"status":401,"code":"unauthenticated","detail":"the join token is spent","errors":[{"location":"x"}]}`))
	f.Add(503, []byte(`{"code":"no_leader"}`))
	f.Add(404, []byte(`{"code":7}`))
	f.Add(502, []byte("<html>"))
	f.Add(-200, []byte("{}"))
	f.Fuzz(func(t *testing.T, status int, data []byte) {
		answer, err := pki.ParseAnswer(status, data)
		if (answer == nil) == (err == nil) || err == nil && (status < 200 || status > 299) {
			t.Fatalf("%d %q is read as %+v, %v", status, data, answer, err)
		}
		if err != nil {
			var refused *fault.Error
			if errors.As(err, &refused) && (refused.Code == "" || !strings.Contains(strings.ToLower(string(data)), "code")) || err.Error() == "" {
				t.Fatalf("%d %q is refused with %v", status, data, err)
			}
			return
		}
		text, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		again, err := pki.ParseAnswer(200, text)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(twice, text) {
			t.Fatalf("%s is read as %s, %v", text, twice, err)
		}
	})
}
