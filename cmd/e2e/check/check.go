package check

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Invariant is what a cluster promises.
type Invariant string

// The invariants, in the order in which they are checked.
const (
	Valid        Invariant = "the run is valid"
	Seen         Invariant = "nobody saw a violation in the act"
	OneLive      Invariant = "one live allocation per organization and per gateway"
	EpochsRise   Invariant = "epochs only rise"
	ExactlyOnce  Invariant = "what was acknowledged is there exactly once"
	NothingLeft  Invariant = "what was refused left nothing"
	Cordoned     Invariant = "nothing begins on a cordoned host"
	Deadlines    Invariant = "no reservation outlives its deadline"
	Counts       Invariant = "the counts of the pools add up"
	SameState    Invariant = "all coordinators hold the same state at the same index"
	Routes       Invariant = "routes on every host equal the state"
	Names        Invariant = "names in the DNS equal the state"
	NoGrowth     Invariant = "nothing grows"
	Linearizable Invariant = "the history is linearizable"
)

// Limits are the bounds of a check.
type Limits struct {
	// Rate is how many operations a second there must have been before the first fault: a cluster that
	// nobody uses breaks no promise.
	Rate float64
	// Reservation is how old an allocation may get that does not serve yet.
	Reservation time.Duration
	// Search bounds the search for an order of the operations.
	Search time.Duration
	// Goroutines, Files and Stored are how many more a program may have than any of its kind had before.
	Goroutines, Files, Stored int
}

// DefaultLimits are those of the short form.
func DefaultLimits() Limits {
	return Limits{Rate: 100, Reservation: 90 * time.Second, Search: 2 * time.Minute, Goroutines: 40, Files: 30, Stored: 150}
}

// Violation is a promise that was not kept.
type Violation struct {
	Invariant Invariant `json:"invariant"`
	What      string    `json:"what"`
}

func (v Violation) String() string { return fmt.Sprintf("%s: broken: %s", v.Invariant, v.What) }

// Check lists what was broken, the first invariant first. Nothing is listed but the invalidity when the run
// is invalid.
func Check(r Run, l Limits) []Violation {
	if v := valid(r, l); len(v) > 0 {
		return v
	}
	r = righted(r)
	out := append(SoFar(r), exactlyOnce(r)...)
	out = append(out, nothingLeft(r)...)
	out = append(out, cordoned(r)...)
	out = append(out, deadlines(r, l)...)
	out = append(out, counts(r)...)
	out = append(out, sameState(r)...)
	out = append(out, routes(r)...)
	out = append(out, names(r)...)
	out = append(out, noGrowth(r, l)...)
	return append(out, linearizable(r, l.Search)...)
}

// SoFar lists what was broken in a run that did not come to its end.
func SoFar(r Run) []Violation {
	r = righted(r)
	var out []Violation
	for _, report := range r.Reports {
		out = append(out, Violation{Seen, report})
	}
	out = append(out, oneLive(r)...)
	return append(out, epochsRise(r)...)
}

// valid reports a run that proves nothing.
func valid(r Run, l Limits) []Violation {
	invalid := func(format string, args ...any) []Violation {
		return []Violation{{Valid, fmt.Sprintf(format, args...)}}
	}
	if len(r.Faults) == 0 || r.Faults[0].At <= 0 {
		return invalid("there was no fault")
	}
	if rate := Rate(r.Operations, r.Faults[0].At); rate < l.Rate {
		return invalid("%.0f operations a second before the fault, want %.0f", rate, l.Rate)
	}
	if r.After.Time.IsZero() {
		return invalid("it did not come to its end")
	}
	if !r.Before.Quiet || !r.After.Quiet {
		return invalid("it was not quiet before and after: %t, %t", r.Before.Quiet, r.After.Quiet)
	}
	if len(r.States) == 0 {
		return invalid("nobody looked at the state of the coordinators")
	}
	return nil
}

// window is how long before a fault the rate of operations is measured.
const window = 2 * time.Second

// Rate is how many operations a second were answered shortly before a moment.
func Rate(ops []Operation, at time.Duration) float64 {
	length, answered := min(window, at), 0
	for _, op := range ops {
		if op.Outcome != Unknown && op.Return <= at && op.Return > at-length {
			answered++
		}
	}
	return float64(answered) / max(length, time.Millisecond).Seconds()
}

// Unsettled lists the routes and names that differ from the state, and the coordinators that differ.
func Unsettled(r Run) []Violation { return slices.Concat(routes(r), names(r), sameState(r)) }

// Grown lists the programs that use more than before, which may yet pass.
func Grown(r Run) []Violation { return noGrowth(r, DefaultLimits()) }

// describe prints an operation for a report.
func describe(op Operation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "operation %d, %s through %s, %s to %s: %s", op.ID, op.Kind, strings.Join(op.Nodes, ", "),
		op.Call.Round(time.Microsecond), op.Return.Round(time.Microsecond), op.Outcome)
	if op.Return == forever {
		b.Reset()
		fmt.Fprintf(&b, "operation %d, %s through %s, from %s: %s", op.ID, op.Kind, strings.Join(op.Nodes, ", "), op.Call, op.Outcome)
	}
	if op.Code != "" {
		fmt.Fprintf(&b, " (%s)", op.Code)
	}
	for _, it := range op.Items {
		fmt.Fprintf(&b, "; organization %s", it.Organization)
		if it.Allocation != "" {
			fmt.Fprintf(&b, ", allocation %s on %s, epoch %d %s", it.Allocation, it.Gateway, it.Epoch, it.State)
		}
		if it.Code != "" {
			fmt.Fprintf(&b, " refused: %s", it.Code)
		}
	}
	if op.Host != "" {
		fmt.Fprintf(&b, "; host %s, index %d", op.Host, op.Index)
	}
	if op.Kind == SetStep || op.Kind == GetStep {
		fmt.Fprintf(&b, "; step %d", op.Step)
	}
	return b.String()
}
