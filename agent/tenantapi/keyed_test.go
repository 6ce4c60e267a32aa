package tenantapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/shared/api"
)

func key(values ...string) func(*http.Request) {
	return func(r *http.Request) { r.Header[keyed.Header] = values }
}

// creations are the calls that make something with a secret, each with the same body in another form and another body.
var creations = map[string]struct{ body, same, other string }{
	"/containers": {
		`{"project_id":"drawing","name":"x","services":[{"name":"web","redirect_paths":["/x"]},{"name":"api"},{"name":"page","redirect_paths":["/"],"public":true}]}`,
		`{ "name":"x","project_id":"drawing", "services":[{"name":"web","redirect_paths":["/x"]},{"name":"api"},{"name":"page","redirect_paths":["/"],"public":true}]}`,
		`{"project_id":"drawing","name":"y","services":[{"name":"web","redirect_paths":["/x"]}]}`,
	},
	"/oauth/clients": {
		`{"name":"x","service":true,"scope":["room:write","room:read"]}`, `{"service":true,"name":"x","scope":["room:write","room:read"]}`, `{"name":"y","service":true,"scope":["room:read"]}`,
	},
}

func TestARepeatWithTheSameKeyHasTheSameAnswer(t *testing.T) {
	for path, c := range creations {
		t.Run(strings.Trim(path, "/"), func(t *testing.T) {
			k := newKit(t)
			ada, eve := bearer(k.jwt("ada")), bearer(k.jwt("eve"))
			const word = "the-key-of-ada"
			create := func(body string, edit ...func(*http.Request)) reply {
				return k.do(ours, http.MethodPost, path, body, edit...)
			}
			first := create(c.body, ada, key(word))
			if first.status != http.StatusCreated || !strings.Contains(first.body, "secret") {
				t.Fatalf("%d %s", first.status, first.body)
			}
			same := func(what string, got reply) {
				t.Helper()
				if got.status != first.status || got.body != first.body || got.header.Get("Location") != first.header.Get("Location") {
					t.Errorf("%s: %d %s, and the first was %s", what, got.status, got.body, first.body)
				}
			}
			same("again", create(c.body, ada, key(word)))
			same("written otherwise", create(c.same, ada, key(word)))
			same("by his browser", create(c.body, k.session(ours, "ada"), key(word)))
			if err := k.containers.CloseAll(); err != nil { // they are read from the journal again
				t.Fatal(err)
			}
			same("after a restart", create(c.body, ada, key(word)))

			token, _ := k.tokens(ours, "ada", "*:*")
			for what, new := range map[string]reply{
				"another's": create(c.body, eve, key(word)), "of a client in his name": create(c.body, bearer(token), key(word)),
				"another key": create(c.body, ada, key("k2")), "no key": create(c.body, ada), "an empty key": create(c.body, ada, key("")),
			} {
				if new.status != http.StatusCreated || new.body == first.body {
					t.Errorf("%s: %d %s", what, new.status, new.body)
				}
			}
			if got := create(c.other, ada, key(word)); got.status != http.StatusConflict || !strings.Contains(got.body, `"conflict"`) {
				t.Errorf("another body: %d %s", got.status, got.body)
			}
			for what, wrong := range map[string]func(*http.Request){"long": key(strings.Repeat("k", 201)), "two": key("a", "b")} {
				if got := create(c.body, ada, wrong); got.status != http.StatusBadRequest || !strings.Contains(got.body, "header.Idempotency-Key") {
					t.Errorf("%s: %d %s", what, got.status, got.body)
				}
			}
			if got := create(c.body, ada, key(strings.Repeat("ü", 200))); got.status != http.StatusCreated {
				t.Errorf("the longest key: %d %s", got.status, got.body)
			}
			if got := create(c.body, bearer(k.jwt("bob")), key(word)); got.status != http.StatusForbidden {
				t.Errorf("somebody who may not: %d %s", got.status, got.body)
			}
			one := path + "/" + made(t, first)
			if got := k.do(ours, http.MethodDelete, one, "", ada); got.status != http.StatusNoContent {
				t.Fatalf("%d %s", got.status, got.body)
			}
			if got := create(c.body, ada, key(word)); got.status != http.StatusConflict || !strings.Contains(got.body, `"superseded"`) {
				t.Errorf("what it made is gone: %d %s", got.status, got.body)
			}
			for _, secret := range []string{word, secretIn(t, first)} {
				if strings.Contains(k.log.String(), secret) {
					t.Error("a key or a secret is in the log")
				}
			}
		})
	}
}

// made is the id in an answer.
func made(t testing.TB, r reply) string {
	t.Helper()
	var out struct {
		Container string `json:"container_id"`
		Client    string `json:"client_id"`
	}
	if err := json.Unmarshal([]byte(r.body), &out); err != nil || out.Container+out.Client == "" {
		t.Fatalf("%v: %s", err, r.body)
	}
	return out.Container + out.Client
}

// secretIn is a secret in an answer.
func secretIn(t testing.TB, r reply) string {
	t.Helper()
	var out struct {
		api.CreatedContainer
		Secret string `json:"client_secret"`
	}
	if err := json.Unmarshal([]byte(r.body), &out); err != nil {
		t.Fatal(err)
	}
	for _, s := range out.Secrets {
		return s
	}
	if out.Secret == "" {
		t.Fatalf("there is no secret in %s", r.body)
	}
	return out.Secret
}

func TestTheSameKeyManyTimesAtOnce(t *testing.T) {
	for path, c := range creations {
		k := newKit(t)
		ada := bearer(k.jwt("ada"))
		answers := make([]reply, 16)
		var all sync.WaitGroup
		for i := range answers {
			all.Go(func() { answers[i] = k.do(ours, http.MethodPost, path, c.body, ada, key("k")) })
		}
		all.Wait()
		for _, got := range answers {
			if got.status != http.StatusCreated || got.body != answers[0].body {
				t.Fatalf("%s: %d %s", path, got.status, got.body)
			}
		}
		var list struct {
			Items []json.RawMessage `json:"items"`
		}
		if got := k.do(ours, http.MethodGet, path, "", ada); json.Unmarshal([]byte(got.body), &list) != nil || len(list.Items) != 1 {
			t.Errorf("%s: %s", path, got.body)
		}
	}
}

// Every call of members that creates takes a key. The other POSTs create nothing that a list would show: a repeat of
// them is harmless.
func TestEveryCallThatCreatesTakesAKey(t *testing.T) {
	for _, row := range newKit(t).server.Routes() {
		_, creates := creations[row.Path]
		creates = creates && row.Method == http.MethodPost
		if row.Keyed != creates {
			t.Errorf("%s %s takes a key: %v", row.Method, row.Path, row.Keyed)
		}
		if row.Method == http.MethodPost && row.Caller == Member && !creates && row.Path != "/containers/{container}/token" {
			t.Errorf("%s %s: does it create? Then it takes a key", row.Method, row.Path)
		}
	}
}
