package keyed

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

func request(t testing.TB, caller, call, key string, body any) Request {
	t.Helper()
	q, err := New(http.Header{Header: {key}}, caller, call, body)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestARequestIsItsCallerCallAndKey(t *testing.T) {
	q := request(t, "ada", "POST /x", "k", 1)
	if same := request(t, "ada", "POST /x", "k", 2); same.Key() != q.Key() || same.Body() == q.Body() {
		t.Error("the body is part of the key, or not of the body")
	}
	for _, other := range []Request{request(t, "bob", "POST /x", "k", 1), request(t, "ada", "POST /y", "k", 1), request(t, "ada", "POST /x", "l", 1)} {
		if other.Key() == q.Key() || other.Secret(nil, "p") == q.Secret(nil, "p") || other.Body() != q.Body() {
			t.Error("another request is the same")
		}
	}
	if !q.Given() || (Request{}).Given() || request(t, "ada", "POST /x", "", 1).Given() {
		t.Error("it is not known whether there is a key")
	}
}

func TestSecretsDependOnTheMasterKeyAndThePurpose(t *testing.T) {
	q := request(t, "ada", "POST /x", "k", 1)
	seen := map[[32]byte]bool{}
	for _, master := range [][]byte{bytes.Repeat([]byte{1}, MasterSize), bytes.Repeat([]byte{2}, MasterSize)} {
		for _, purpose := range []string{"a", "b"} {
			seen[q.Secret(master, purpose)] = true
			if again := request(t, "ada", "POST /x", "k", 2); !seen[again.Secret(master, purpose)] {
				t.Error("it is not made again")
			}
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d secrets for four purposes", len(seen))
	}
}

// What a master key makes of a call never changes: answers are repeated by later versions.
func TestTheSecretOfACallNeverChanges(t *testing.T) {
	const want = "a13a33613b86b7e127c846b9691be5cb6d4cdeff59d31e1b69c12bf26181dc06"
	if got := fmt.Sprintf("%x", request(t, "ada", "POST /x", "k", 1).Secret(bytes.Repeat([]byte{1}, MasterSize), "a")); got != want {
		t.Errorf("%s", got)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	for _, keys := range [][]string{{"a", "b"}, {"", "b"}, {strings.Repeat("k", maxKey+1)}} {
		if _, err := New(http.Header{Header: keys}, "ada", "POST /x", 1); !fault.Is(err, fault.InvalidRequest) || strings.Contains(err.Error(), "kk") {
			t.Errorf("%d keys: %v", len(keys), err)
		}
	}
	if _, err := New(http.Header{Header: {"k"}}, "ada", "POST /x", math.NaN()); err == nil {
		t.Error("a body that cannot be encoded")
	}
	if _, err := New(http.Header{Header: {strings.Repeat("ü", maxKey)}}, "ada", "POST /x", 1); err != nil {
		t.Error(err)
	}
}

func TestARequestDoesNotPrintItsKey(t *testing.T) {
	q := request(t, "ada", "POST /x", "the-key-of-ada", 1)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, q); strings.Contains(text, "the-key") {
			t.Errorf("%s prints %s", verb, text)
		}
	}
}

func TestOver(t *testing.T) {
	at := time.Unix(1e9, 0)
	if Over(at, at.Add(Remembered-1)) || !Over(at, at.Add(Remembered)) || Over(at, at.Add(-time.Hour)) {
		t.Error("a day is not a day")
	}
}
