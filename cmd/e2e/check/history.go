package check

import (
	"math"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// forever is the return time of what may still happen.
const forever = time.Duration(math.MaxInt64)

// late is how long after its client gave up, or after its record was stamped, something may take effect.
const late = 15 * time.Second

// history is what is to be put into an order. What happened of an operation without an answer, and of one that
// was undone, the state at the end tells: it has every allocation, also those that have ended.
func history(r Run) []Operation {
	w := newWitness(r)
	var out []Operation
	for _, op := range r.Operations {
		starts := op.Kind == Start || op.Kind == Batch
		switch {
		case op.Again || op.Outcome != OK && (op.Kind == Get || op.Kind == GetStep):
		case op.Kind == SetStep:
			if op.Outcome == Unknown {
				op.Return = forever
			}
			if op.Outcome != Refused {
				out = append(out, op)
			}
		case starts && (op.Outcome == Unknown || op.Outcome == Refused && undone(op.Code)):
			out = append(out, w.begun(op)...)
		case op.Kind == Start && op.Outcome == Refused:
			op.Items = []Item{{Organization: op.Items[0].Organization, Code: op.Code}}
			out = append(out, op)
		case op.Kind == Batch && op.Outcome == Refused:
		case op.Kind == Release && op.Outcome == Unknown:
			if a := w.records[op.Items[0].Allocation]; a.EndedAt != nil {
				op.Outcome, op.Return = OK, w.ends(a)
				out = append(out, op)
			}
		default:
			out = append(out, op)
			if starts { // items of a batch may have been undone
				for _, it := range op.Items {
					if it.Code != "" && undone(it.Code) {
						one := op
						one.Items = []Item{it}
						out = append(out, w.begun(one)...)
					}
				}
			}
		}
	}
	return append(out, w.endings()...)
}

// undone reports whether a refusal with this code may come after something had begun, which is then undone.
func undone(code string) bool {
	switch fault.Code(code) {
	case fault.PoolExhausted, fault.NoEligibleHost, fault.Conflict, fault.NotFound, fault.RateLimited, fault.InvalidRequest,
		fault.Unauthenticated, fault.Forbidden:
		return false
	}
	return true
}

// witness tells from the state at the end what happened.
type witness struct {
	run     Run
	records map[string]api.Allocation
	of      map[string][]api.Allocation // by organization
	highest []epochSeen
}

// epochSeen is that an answer had this epoch: whatever has a lower one had happened by then.
type epochSeen struct {
	epoch uint64
	by    time.Duration
}

func newWitness(r Run) *witness {
	w := &witness{run: r, records: map[string]api.Allocation{}, of: map[string][]api.Allocation{}}
	for _, a := range r.After.Allocations {
		w.records[a.AllocationID] = a
		w.of[a.OrganizationID] = append(w.of[a.OrganizationID], a)
	}
	for _, op := range r.Operations {
		if op.Outcome != OK || op.Kind == Release {
			continue
		}
		for _, it := range op.Items {
			w.highest = append(w.highest, epochSeen{it.Epoch, op.Return})
		}
	}
	return w
}

// begun is what an operation whose answer is not known can have begun: all allocations of its organizations
// that were made while it was on its way. Saying so of one that somebody else made claims no more than that
// it was there.
func (w *witness) begun(op Operation) []Operation {
	var out []Operation
	for _, it := range op.Items {
		for _, a := range w.of[it.Organization] {
			at := a.CreatedAt.Sub(w.run.Begun)
			if a.Epoch == 0 || at < op.Call || at > op.Return+late {
				continue
			}
			one := op
			one.Kind, one.Outcome, one.Code, one.Return = Start, OK, "", w.ends(a)
			one.Items = []Item{{Organization: a.OrganizationID, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch, State: a.State}}
			for _, seen := range w.highest {
				if seen.epoch > a.Epoch {
					one.Return = min(one.Return, max(seen.by, one.Call))
				}
			}
			out = append(out, one)
		}
	}
	return out
}

// ends is when an allocation had ended at the latest.
func (w *witness) ends(a api.Allocation) time.Duration {
	if a.EndedAt == nil {
		return forever
	}
	return a.EndedAt.Sub(w.run.Begun) + late
}

// endings are the allocations that the cluster ended by itself: it says so in their failure.
func (w *witness) endings() []Operation {
	var out []Operation
	for _, a := range w.run.After.Allocations {
		if a.Failure == nil || a.CreatedAt.Before(w.run.Begun) || a.Epoch == 0 {
			continue
		}
		out = append(out, Operation{
			Kind: ended, Outcome: OK, Call: a.CreatedAt.Sub(w.run.Begun), Return: w.ends(a),
			Items: []Item{{Organization: a.OrganizationID, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch}},
		})
	}
	return out
}
