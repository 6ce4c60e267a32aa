package reconcile

import (
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// chain keeps the steps of a grant until they are reported: all at once at its end, and one by one only
// when it takes long, so that a fast allocation costs one report.
type chain struct {
	since time.Time
	steps []api.StepReport
	ended bool
	quiet bool // an organization that the coordinator counts on is brought back: no steps
}

// begin starts a chain at a time. Steps that were not reported before stay.
func (c *chain) begin(now time.Time, quiet bool) {
	c.since, c.ended, c.quiet = now, false, quiet
}

// add notes a finished step.
func (c *chain) add(s api.StepReport) {
	if !c.quiet {
		c.steps = append(c.steps, s)
	}
}

// end makes everything due.
func (c *chain) end() { c.ended = true }

// due takes out what is to be reported now.
func (c *chain) due(now time.Time, quiet time.Duration) []api.StepReport {
	if len(c.steps) == 0 || !c.ended && now.Sub(c.since) < quiet {
		return nil
	}
	out := c.steps
	c.steps = nil
	return out
}
