//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
)

var (
	seedFlag = flag.Uint64("seed", 0, "replays the schedule and the load of an earlier run; 0: another one each time")
	rounds   = flag.Int("rounds", 1, "how often everything is broken")
	duration = flag.Duration("duration", 0, "rounds are begun for so long, in the place of -rounds")
	rate     = flag.Int("rate", 130, "operations a second")
)

// warmUp is how long the load goes on before the first fault.
const warmUp = 5 * time.Second

// Three coordinators keep what they promise, whatever is done to them.
func TestClusterKeepsItsPromises(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: replay with -seed %d", seed, seed)
	dir, err := os.MkdirTemp("", "dme2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("history, configuration, data and logs are in %s", dir)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	begun := time.Now()
	c := newCluster(ctx, t, dir)
	r := check.Run{Seed: seed}
	r.Before, _, r.UsedBefore = c.quiet(begun)
	base := r.UsedBefore
	t.Logf("all is quiet after %s", time.Since(begun).Round(time.Millisecond))
	for round := 0; ctx.Err() == nil && (round < *rounds && *duration == 0 || *duration > 0 && time.Since(begun) < *duration); round++ {
		r.Seed = seed + uint64(round)
		c.round(&r)
		if t.Failed() {
			return
		}
		before := r.After
		r = check.Run{Before: before, UsedBefore: base}
	}
	if ctx.Err() != nil {
		t.Error("interrupted")
	}
}

// round breaks everything once under load, and checks what came of it.
func (c *cluster) round(r *check.Run) {
	ctx := c.ctx
	r.Begun = time.Now()
	rng := rand.New(rand.NewPCG(r.Seed, 3))
	l := newLoad(c, r.Seed, *rate, r.Begun, r.Before)
	loading, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		if c.t.Failed() {
			r.Operations = l.recorded()
			c.keep(r)
		}
	}()
	var work sync.WaitGroup
	work.Go(func() { l.run(loading) })
	work.Go(func() { r.Samples = l.sample(loading) })
	waitFor(ctx, warmUp)
	r.FirstFault = time.Since(r.Begun)
	n := &nemesis{c: c, rng: rng}
	n.run(ctx, rng.Perm(len(breakages)))
	stop()
	work.Wait()
	if ctx.Err() != nil || c.t.Failed() {
		return
	}
	r.After, r.States, r.UsedAfter = c.quiet(r.Begun)
	r.Operations = l.recorded()
	for _, a := range c.agents {
		c.reports = append(c.reports, a.run.Violations()...)
	}
	r.Reports, c.reports = c.reports, nil
	c.verdict(r, l)
}

// verdict checks a round and keeps its history when something is wrong.
func (c *cluster) verdict(r *check.Run, l *load) {
	outcomes, kinds := map[check.Outcome]int{}, map[check.Kind]int{}
	for _, op := range r.Operations {
		outcomes[op.Outcome]++
		kinds[op.Kind]++
	}
	c.t.Logf("%s of load: %d operations %v, %v, refused for %v; %d looks", r.After.At.Round(time.Second), len(r.Operations), kinds, outcomes, l.codes, len(r.Samples))
	begun := time.Now()
	found := check.Check(*r, check.DefaultLimits())
	c.t.Logf("checked in %s: %d violations", time.Since(begun).Round(time.Millisecond), len(found))
	if len(found) == 0 {
		return
	}
	for _, v := range found[:min(len(found), 10)] {
		c.t.Error(v)
	}
	if found[0].Invariant == check.Valid {
		c.t.Errorf("the run is INVALID: it proves nothing")
	}
	c.t.Errorf("first broken: %s", found[0].Invariant)
}

// keep writes the history of a round that failed.
func (c *cluster) keep(r *check.Run) {
	file := filepath.Join(c.dir, "history.json")
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	c.t.Errorf("seed %d, history %s (%v): replay with -seed %d", r.Seed, file, err, r.Seed)
}
