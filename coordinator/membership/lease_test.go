package membership_test

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/membership"
)

// What an earlier leader acknowledged counts too: it was sent before this one began to lead.
func TestLeaseEnd(t *testing.T) {
	lease := 8 * time.Second // and 80 ms for a slow clock, and a second to close the routes
	for name, c := range map[string]struct {
		heard, leads float64
		over         bool
	}{
		"heard just now":                       {heard: 99, leads: 0},
		"heard a lease ago":                    {heard: 92, leads: 0},
		"a slow clock may still count":         {heard: 90.95, leads: 0},
		"over":                                 {heard: 90.9, leads: 0, over: true},
		"a new leader that heard nothing":      {leads: 95},
		"heard in an earlier reign, leads new": {heard: 50, leads: 95},
		"leads for long, heard nothing":        {leads: 80, over: true},
		"heard before it led, leads for long":  {heard: 70, leads: 85, over: true},
	} {
		s := membership.Signals{LeadsSince: at(c.leads)}
		if c.heard > 0 {
			s.Heard = at(c.heard)
		}
		if got := at(100).After(membership.LeaseEnd(s, lease)); got != c.over {
			t.Errorf("%s: over is %t", name, got)
		}
	}
}
