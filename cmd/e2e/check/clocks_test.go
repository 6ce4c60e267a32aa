package check_test

import (
	"slices"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// skewed is a sound run, in the midst of which the clock of who writes the records was wrong: half of what was made in it, and
// half of what ended in it, bears another time.
func skewed(by time.Duration) check.Run {
	run := newSound(7, 250)
	known := map[string]bool{}
	for _, a := range run.Before.Allocations {
		known[a.AllocationID] = true
	}
	wrong := func(at time.Time) time.Time {
		if passed := at.Sub(run.Begun); passed > 60*time.Millisecond && passed < 190*time.Millisecond {
			return at.Add(by)
		}
		return at
	}
	set := func(records []api.Allocation) []api.Allocation {
		records = slices.Clone(records)
		for i := range records {
			a := &records[i]
			if !known[a.AllocationID] {
				a.CreatedAt = wrong(a.CreatedAt)
			}
			if a.EndedAt != nil {
				at := wrong(*a.EndedAt)
				a.EndedAt = &at
			}
		}
		return records
	}
	run.After.Allocations = set(run.After.Allocations)
	for i := range run.Samples {
		run.Samples[i].Allocations = set(run.Samples[i].Allocations)
	}
	return run
}

// Times of a clock that somebody set are no violation in a run that says by how much; in one that says nothing they are.
func TestClocksThatAreSet(t *testing.T) {
	steps := []time.Duration{-6 * time.Hour, -5 * time.Minute, 20 * time.Minute, time.Hour}
	for _, by := range steps {
		run := skewed(by)
		// What seems to be from before the run is left out of most checks.
		if by > 0 && len(check.Check(run, limits())) == 0 {
			t.Errorf("%s: nobody said that clocks were set, and nothing was found", by)
		}
		run.Faults[0].Clocks = steps
		for _, v := range check.Check(run, limits()) {
			t.Errorf("%s: %s", by, v)
		}
	}
}

// What was made before a run was made before it, whatever the clock said by which it was made.
func TestRecordsOfClocksThatWereSet(t *testing.T) {
	run := newSound(8, 250)
	known := map[string]bool{}
	for _, a := range run.Before.Allocations {
		known[a.AllocationID] = true
	}
	for _, look := range append([]check.Snapshot{run.Before, run.After}, run.Samples...) {
		for i := range look.Allocations {
			if a := &look.Allocations[i]; known[a.AllocationID] {
				a.CreatedAt = begun.Add(100 * time.Millisecond)
			}
		}
	}
	for _, v := range check.Check(run, limits()) {
		t.Error(v)
	}
}
