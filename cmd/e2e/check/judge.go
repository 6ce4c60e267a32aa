package check

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// shown is how many violations of one history are printed.
const shown = 10

// Verdict is what a run proves.
type Verdict string

// The verdicts.
const (
	Green   Verdict = "green"   // valid, and nothing broken
	Invalid Verdict = "invalid" // it proves nothing, and nothing broken was seen
	Red     Verdict = "red"     // something was broken, also where the run is not valid
)

// Judge checks a run and prints what it was and what it broke, the first invariant first.
func Judge(out io.Writer, name string, r Run) Verdict {
	outcomes, kinds := map[Outcome]int{}, map[Kind]int{}
	for _, op := range r.Operations {
		outcomes[op.Outcome]++
		kinds[op.Kind]++
	}
	var faults []string
	for _, f := range r.Faults {
		faults = append(faults, f.Name)
	}
	begun := time.Now()
	found := Check(r, DefaultLimits())
	took := time.Since(begun).Round(time.Millisecond)
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(out, name+": "+format+"\n", args...) } // nobody to tell
	say("%s: %d operations %v %v, %d looks, checked in %s: %d violations", strings.Join(faults, ", "), len(r.Operations), kinds, outcomes, len(r.Samples), took, len(found))
	if len(found) == 0 {
		return Green
	}
	if found[0].Invariant == Valid {
		say("INVALID, it proves nothing: %s", found[0].What)
		found = SoFar(r)
	}
	for _, v := range found[:min(len(found), shown)] {
		say("%s", v)
	}
	if len(found) == 0 {
		return Invalid
	}
	say("seed %d; first broken: %s", r.Seed, found[0].Invariant)
	return Red
}
