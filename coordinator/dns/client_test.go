package dns

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestAnswersOfPowerDNSAreBounded(t *testing.T) {
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		rest := []byte(strings.Repeat("x", 4096))
		_, err := w.Write([]byte(`{"rrsets": [{"name": "`))
		for err == nil {
			_, err = w.Write(rest)
		}
	}))
	defer endless.Close()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("a-key"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(PowerDNSConfig{URL: endless.URL, KeyFile: file, Timeout: time.Minute}, testDomain, 100_000)
	_, err := c.sets(t.Context(), "")
	if KindOf(err) != Refused || !strings.Contains(fault.From(err).Message, "longer than 100000 bytes") {
		t.Error(err)
	}
}

// A large zone takes longer than a name.
func TestAZoneMayTakeLonger(t *testing.T) {
	asked, goOn := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("rrset_name") {
			<-r.Context().Done()
			return
		}
		close(asked)
		<-goOn
		_, _ = w.Write([]byte(`{"rrsets": []}`)) // who asked may be gone
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("a-key"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(PowerDNSConfig{URL: server.URL, KeyFile: file, Timeout: time.Second}, testDomain, maxAnswer)
	listed := make(chan error, 1)
	go func() {
		_, err := c.sets(t.Context(), "")
		listed <- err
	}()
	<-asked
	if _, err := c.sets(t.Context(), orgA); KindOf(err) != Temporary {
		t.Errorf("a name: %v", err)
	}
	close(goOn)
	if err := <-listed; err != nil {
		t.Errorf("the zone: %v", err)
	}
}

// What is not asked for is not kept, however much of it there is: an answer may be as long as a whole zone.
func TestOnlyWhatIsAskedForIsKept(t *testing.T) {
	const filler = 100_000
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"kind": "Native", "dnskeys": [{"a": []}], "rrsets": [` + strings.Repeat(`{},`, filler) +
			`{"name": "` + orgB + `.", "type": "A"}, {"name": "www.` + testDomain + `.", "type": "A"}, {"name": "` + strings.ToUpper(orgA) + `.", "type": "A", "ttl": 5},` +
			`{"name": "` + orgA + `.", "type": "SSHFP"}], "soa_edit": ""}`)) // who asked may be gone
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("a-key"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(PowerDNSConfig{URL: server.URL, KeyFile: file, Timeout: time.Minute}, testDomain, maxAnswer)
	for name, want := range map[string]int{orgA: 1, orgB: 1, "": 2} {
		if got, err := c.sets(t.Context(), name); err != nil || len(got) != want {
			t.Errorf("%q: %d sets, %v, want %d", name, len(got), err, want)
		}
	}
}

// A write takes one second here, so what is asked for meanwhile is sent together.
func TestWritesAreSentTogether(t *testing.T) {
	refused := &Error{Kind: Refused}
	for name, c := range map[string]struct {
		callers int
		bad     string        // is refused, with all that is sent beside it
		fail    error         // of every write
		patient time.Duration // of the caller whose turn is second
		sent    string        // names of each request
		failed  int           // callers
	}{
		"one":                     {1, "", nil, time.Hour, "a", 0},
		"many":                    {5, "", nil, time.Hour, "a bcde", 0},
		"one of them is refused":  {4, "c", nil, time.Hour, "a bcd b c d", 1},
		"all fail":                {3, "", &Error{Kind: Temporary}, time.Hour, "a bc", 3},
		"the sender gives up":     {4, "", nil, 1500 * time.Millisecond, "a bcd cd", 1},
		"the second never begins": {4, "", nil, 500 * time.Millisecond, "a cd", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var sent []string
				w := newWrites(func(ctx context.Context, changes []rrset) error {
					names := ""
					for _, set := range changes {
						names += set.Name
					}
					mu.Lock()
					sent = append(sent, names)
					mu.Unlock()
					select {
					case <-time.After(time.Second):
					case <-ctx.Done():
						return &Error{Kind: Temporary, Err: ctx.Err()}
					}
					if c.bad != "" && strings.Contains(names, c.bad) {
						return refused
					}
					return c.fail
				})
				failures := 0
				var callers sync.WaitGroup
				for i := range c.callers {
					ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
					if i == 1 {
						cancel()
						ctx, cancel = context.WithTimeout(t.Context(), c.patient)
					}
					callers.Go(func() {
						defer cancel()
						if err := w.do(ctx, []rrset{{Name: string(rune('a' + i))}}); err != nil {
							mu.Lock()
							failures++
							mu.Unlock()
						}
					})
					synctest.Wait() // in this order
				}
				callers.Wait()
				if got := sorted(sent); got != c.sent || failures != c.failed {
					t.Errorf("sent %q, %d failed; want %q, %d", got, failures, c.sent, c.failed)
				}
				if len(w.waiting) != 0 || len(w.turn) != 0 {
					t.Errorf("left over: %d waiting, %d in turn", len(w.waiting), len(w.turn))
				}
			})
		})
	}
}

// sorted makes requests comparable: whose turn it is among those that wait is chance, and so is which name
// comes first.
func sorted(requests []string) string {
	var out []string
	for _, names := range requests {
		letters := strings.Split(names, "")
		slices.Sort(letters)
		out = append(out, strings.Join(letters, ""))
	}
	return strings.Join(out, " ")
}
