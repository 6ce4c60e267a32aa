//go:build e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
)

var (
	seedFlag = flag.Uint64("seed", 0, "replays the schedule and the load of an earlier run; 0: another one each time")
	rounds   = flag.Int("rounds", 1, "how often everything is broken")
	duration = flag.Duration("duration", 0, "goes on for so long, and for one round at least, in the place of -rounds")
	rate     = flag.Int("rate", 140, "operations a second")
	moves    = flag.Bool("moves", true, "migrate allocations, cordon and drain hosts meanwhile")
	only     = flag.String("only", "", "break only what has this in its name")
)

const (
	warmUp    = 2 * time.Second  // of load before a fault
	gathering = 30 * time.Second // longest that the load may take to become one
	recovery  = time.Second      // of load after a fault
)

// Three coordinators and their hosts keep what they promise, whatever is done to them.
func TestClusterKeepsItsPromises(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: replay with SEED=%d", seed, seed)
	dir, err := os.MkdirTemp("", "dme2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d; histories, configuration, data and logs are in %s", seed, dir)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	begun := time.Now()
	upgraded := !testing.Short() && strings.Contains(upgrade.name, *only)
	c := newCluster(ctx, t, dir, !testing.Short(), upgraded)
	first := check.Run{Begun: begun}
	c.quiet(&first)
	last, base := first.After, c.used(nil)
	t.Logf("all is quiet after %s", time.Since(begun).Round(time.Millisecond))
	n, rng := &nemesis{c: c}, rand.New(rand.NewPCG(seed, 3))
	var pieces check.Pieces
	t.Cleanup(func() { t.Logf("%v, %d operations; seed %d", &pieces, c.asked, seed) })
	over := func() bool { return *duration > 0 && time.Since(begun) >= *duration }
	for round := 0; ctx.Err() == nil && !over() && (round < *rounds || *duration > 0); round++ {
		broken := order(rng, *only, testing.Short())
		if upgraded && round == 0 {
			broken = slices.Insert(broken, 0, upgrade)
		}
		for i, b := range broken {
			var end bool // of the round, or of the run after its first round
			// One that is done again has the same seed: a replay breaks the same things, however busy either machine is.
			for again := true; again; {
				r := check.Run{Seed: seed + uint64(pieces.Green), Before: last}
				end = i == len(broken)-1 || round > 0 && over()
				if end && b.name != upgrade.name { // others may use more
					r.UsedBefore = base
				}
				verdict := c.piece(&r, n, b, filepath.Join(dir, fmt.Sprintf("history-%04d.jsonl", pieces.Green+pieces.Invalid)))
				if t.Failed() {
					return
				}
				if again, err = pieces.After(verdict); err != nil {
					t.Fatal(err)
				}
				if again && b.name == upgrade.name && len(r.Faults) > 0 {
					t.Fatal("the upgrade is done and its piece is invalid: the run is invalid and proves nothing; run it again")
				}
				last = r.After
			}
			if b.name == upgrade.name {
				base = c.used(nil)
			}
			t.Logf("nothing found so far: round %d, %d of %d faults, %s; %v; seed %d", round+1, i+1, len(broken), progress(time.Since(begun)), &pieces, seed)
			if end {
				break
			}
		}
	}
	t.Logf("nothing found in %s; %d pieces invalid, done again", time.Since(begun).Round(time.Second), pieces.Invalid)
}

// progress is how long the run has gone on, of how long.
func progress(gone time.Duration) string {
	text := gone.Round(time.Second).String()
	if *duration > 0 {
		text += fmt.Sprint(" of ", *duration, ", and one round at least")
	}
	return text
}

// piece breaks one thing under load, waits until all is quiet again, and judges what came of it. What it sees is
// in the file at once: there it is when anything ends the test. Where the load does not become one, nothing is broken
// and the piece is invalid.
func (c *cluster) piece(r *check.Run, n *nemesis, b breakage, path string) (verdict check.Verdict) {
	r.Begun = time.Now()
	rec, err := check.Record(path, *r)
	c.must(err)
	l := newLoad(c, r, rec, *rate)
	loading, stop := context.WithCancel(c.ctx)
	var work sync.WaitGroup
	defer func() {
		stop()
		work.Wait()
		c.must(rec.Close())
		verdict = c.judge(path)
	}()
	var reports []string
	var asked, served int
	work.Go(func() { l.run(loading) })
	work.Go(func() { r.Samples = l.sample(loading) })
	work.Go(func() { reports, asked, served = c.watch(loading, r.Seed) })
	waitFor(c.ctx, warmUp)
	n.choose(r.Seed)
	at, rate := l.gather()
	if rate >= check.DefaultLimits().Rate {
		c.t.Logf("%.0f operations a second", rate)
		fault := check.Fault{Name: b.name, At: at}
		if b.clocks {
			fault.Clocks = steps
		}
		rec.Fault(fault)
		r.Faults = append(r.Faults, fault)
		n.strike(c.ctx, b)
		waitFor(c.ctx, recovery)
	} else {
		c.t.Logf("nothing was broken: only %.0f operations a second for %s", rate, gathering)
	}
	stop()
	work.Wait()
	if c.ctx.Err() != nil {
		c.t.Errorf("interrupted")
		return verdict
	}
	c.asked += len(l.operations) // of which all are answered
	c.quiet(r)
	if len(r.UsedBefore) > 0 {
		r.UsedAfter = c.used(r.UsedBefore)
		c.t.Logf("used %+v, and before %+v", r.UsedAfter, r.UsedBefore)
	}
	for _, a := range c.agents {
		c.reports = append(c.reports, a.run.Violations()...)
	}
	r.Reports, c.reports = append(reports, c.reports...), nil
	c.t.Logf("refused for %v; of %d requests to organizations %d were served", l.codes, asked, served)
	rec.End(*r)
	return verdict
}

// judge checks the stored history of a piece. One that is invalid proves nothing, and may yet show a violation.
func (c *cluster) judge(path string) check.Verdict {
	r, err := check.Read(path)
	c.must(err)
	var out strings.Builder
	verdict := check.Judge(&out, filepath.Base(path), r)
	if verdict == check.Red {
		c.t.Errorf("not green; check it again with: go run ./cmd/e2e/judge %s", path)
	}
	c.t.Log(strings.TrimSpace(out.String()))
	return verdict
}
