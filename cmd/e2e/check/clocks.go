package check

import (
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// righted is a run with the times of its records as they were by a clock that nobody set. A record tells its times by the
// clock of the coordinator that led: in a run whose fault sets clocks that one may be wrong by a known step, and a
// record from before the run may be from such a run. Steps are far longer than a run, so no time has two meanings.
func righted(r Run) Run {
	from, to := r.Begun.Add(-time.Second), r.Begun.Add(time.Second)
	for _, look := range r.looks() {
		to = later(to, look.Time.Add(time.Second))
	}
	for _, op := range r.Operations {
		to = later(to, r.Begun.Add(max(op.Call, op.Return)+time.Second))
	}
	steps := []time.Duration{0}
	for _, f := range r.Faults {
		steps = append(steps, f.Clocks...)
	}
	within := func(at time.Time) time.Time {
		for _, step := range steps {
			if right := at.Add(-step); !right.Before(from) && !right.After(to) {
				return right
			}
		}
		return at
	}
	before := map[string]api.Allocation{}
	for _, a := range r.Before.Allocations {
		before[a.AllocationID] = a
	}
	earlier := func(at time.Time) time.Time { // by then it was so
		if !r.Before.Time.IsZero() && at.After(r.Before.Time) {
			return r.Before.Time
		}
		return at
	}
	all := func(records []api.Allocation) []api.Allocation {
		records = slices.Clone(records)
		for i := range records {
			a := &records[i]
			was, known := before[a.AllocationID]
			if known {
				a.CreatedAt = earlier(a.CreatedAt)
			} else {
				a.CreatedAt = within(a.CreatedAt)
			}
			if a.EndedAt != nil {
				right := within(*a.EndedAt)
				if known && was.EndedAt != nil {
					right = earlier(*a.EndedAt)
				}
				a.EndedAt = &right
			}
			if a.Relocation != nil { // when all was quiet there was none
				relocation := *a.Relocation
				relocation.Since = within(relocation.Since)
				a.Relocation = &relocation
			}
		}
		return records
	}
	r.Before.Allocations, r.After.Allocations = all(r.Before.Allocations), all(r.After.Allocations)
	r.Samples = slices.Clone(r.Samples)
	for i := range r.Samples {
		r.Samples[i].Allocations = all(r.Samples[i].Allocations)
	}
	return r
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
