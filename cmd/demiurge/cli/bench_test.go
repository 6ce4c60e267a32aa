package cli_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// figures is what the tests read of the JSON report.
type figures struct {
	Organizations int
	Interrupted   bool
	Succeeded     int
	Failed        int
	Latency       map[string]struct {
		Count    int
		P50, Max float64
	} `json:"latency_ms"`
	Errors map[string]int
}

func (c *command) figures(t *testing.T) figures {
	t.Helper()
	var f figures
	if err := json.Unmarshal([]byte(c.stdout.String()), &f); err != nil {
		t.Fatalf("no report: %v\n%s%s", err, c.stdout.String(), c.stderr.String())
	}
	return f
}

func TestBenchMeasuresAndTidies(t *testing.T) {
	p := newPlatform(t)
	c := start(t, p.server, "bench", "allocate", "--organizations", "5", "--rate", "100", "--duration", "200ms", "--http", p.server.URL, "-o", "json")
	c.exit(t, 0)
	f := c.figures(t)
	if f.Succeeded+f.Errors["no_free_organization"] != 20 || f.Succeeded == 0 || f.Interrupted || f.Organizations != 5 {
		t.Errorf("figures = %+v, want 20 starts", f)
	}
	for _, name := range []string{"total", "coordinator", "reserve", "first byte", "commit to first byte", "release"} {
		if got := f.Latency[name].Count; got != f.Succeeded {
			t.Errorf("%s was measured %d times of %d", name, got, f.Succeeded)
		}
	}
	if f.Latency["reserve"].P50 != 0.5 {
		t.Errorf("reserve = %+v, want what the coordinator measured", f.Latency["reserve"])
	}
	p.wantNothingLeft(t)
}

// A system that gets slower does not slow the schedule down: the wait of a start that is late counts.
func TestBenchCountsFromTheIntendedStart(t *testing.T) {
	p := newPlatform(t)
	const service = 60 * time.Millisecond
	p.set(func() {
		p.before = func(r *http.Request) error {
			select {
			case <-time.After(service):
			case <-r.Context().Done():
			}
			return nil
		}
	})
	c := start(t, p.server, "bench", "allocate", "--organizations", "1", "--rate", "50", "--duration", "500ms", "-o", "json")
	c.exit(t, 0)
	f := c.figures(t)
	// Start n is due after 20 n ms and begins after 60 n ms at the earliest.
	if n := f.Succeeded; n < 2 || f.Latency["total"].Max < float64((service+time.Duration(n-1)*40*time.Millisecond)/time.Millisecond) {
		t.Errorf("max of total is %v ms for %d starts: the time that they waited does not count", f.Latency["total"].Max, n)
	}
	if f.Errors["no_free_organization"] == 0 {
		t.Errorf("errors = %v, want the starts that found no free organization", f.Errors)
	}
	p.wantNothingLeft(t)
}

func TestBenchCountsErrorsByCode(t *testing.T) {
	p := newPlatform(t)
	p.set(func() {
		p.before = func(*http.Request) error { return fault.New(fault.PoolExhausted, "empty") }
	})
	c := start(t, p.server, "bench", "allocate", "--organizations", "2", "--rate", "100", "--duration", "50ms", "-o", "json")
	c.exit(t, 1)
	if f := c.figures(t); f.Errors["pool_exhausted"]+f.Errors["no_free_organization"] != 5 || f.Errors["pool_exhausted"] == 0 || f.Succeeded != 0 {
		t.Errorf("figures = %+v, want 5 refusals", f)
	}
	if !strings.Contains(c.stderr.String(), "Error: no start succeeded\n") {
		t.Errorf("said %q", c.stderr.String())
	}
	p.wantNothingLeft(t)
}

func TestBenchFindsTheWrongGateway(t *testing.T) {
	p := newPlatform(t)
	p.set(func() { p.impostor = true })
	c := start(t, p.server, "bench", "allocate", "--organizations", "2", "--rate", "100", "--duration", "50ms", "--http", p.server.URL+"/")
	c.exit(t, 1)
	if !strings.Contains(c.stdout.String(), "wrong_answer") || !strings.Contains(c.stderr.String(), "were not of the organization that was asked for") {
		t.Errorf("said\n%s%s", c.stdout.String(), c.stderr.String())
	}
	p.wantNothingLeft(t)
}

func TestInterruptedBenchPrintsAndTidies(t *testing.T) {
	p := newPlatform(t)
	c := start(t, p.server, "bench", "allocate", "--organizations", "3", "--rate", "50", "--duration", "1h", "-o", "json")
	waitFor(t, "some starts", func() bool { _, _, starts := p.left(); return starts > 3 })
	c.interrupt()
	c.exit(t, 1)
	if f := c.figures(t); !f.Interrupted || f.Succeeded == 0 {
		t.Errorf("figures = %+v, want those until the interrupt", f)
	}
	if !strings.Contains(c.stderr.String(), "Error: interrupted: the figures are of the time until then\n") {
		t.Errorf("said %q", c.stderr.String())
	}
	p.wantNothingLeft(t)
}

// A second interrupt ends the tidying, and the command says what it leaves.
func TestHurriedBenchSaysWhatItLeaves(t *testing.T) {
	p := newPlatform(t)
	c := start(t, p.server, "bench", "allocate", "--organizations", "3", "--rate", "50", "--duration", "1h")
	waitFor(t, "some starts", func() bool { _, _, starts := p.left(); return starts > 3 })
	close(c.hurry)
	c.interrupt()
	c.exit(t, 1)
	orgs, _, _ := p.left()
	if got := c.stderr.String(); orgs > 0 && !strings.Contains(got, "of the organizations: 'demiurge org list' shows them") {
		t.Errorf("%d organizations are left, and it said %q", orgs, got)
	}
}
