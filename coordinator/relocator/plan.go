package relocator

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// actor is who the commands of this package come from.
const actor = "relocator"

// batch is how many allocations one entry of the log moves at most.
const batch = 1000

// View is what Plan looks at.
type View struct {
	Lost      []Lost
	Held      []Held
	Draining  []Draining
	Elsewhere Elsewhere
}

// Lost is a lost host that still has active allocations: it was given up by a version that left them there.
type Lost struct {
	Host     id.Host
	Reason   string
	FencedBy time.Time
}

// Held is an allocation that may not be placed before a time.
type Held struct {
	Allocation id.Allocation
	Until      time.Time
}

// Plan says what to propose now, and when to look again even if nothing changes; zero: not needed.
func Plan(v View, now time.Time) (actions []command.Command, again time.Time) {
	meta := command.Meta{At: now, Actor: actor}
	for _, l := range v.Lost {
		actions = append(actions, command.LoseHost{Meta: meta, Host: l.Host, Reason: l.Reason, FencedBy: l.FencedBy})
	}
	var due []id.Allocation
	for _, h := range v.Held {
		switch {
		case !h.Until.After(now):
			due = append(due, h.Allocation)
		default:
			again = earlier(again, h.Until)
		}
	}
	for len(due) > 0 {
		n := min(len(due), batch)
		actions = append(actions, command.Place{Meta: meta, Allocations: due[:n]})
		due = due[n:]
	}
	for _, d := range v.Draining {
		more, at := planDrain(d, &v.Elsewhere, now)
		actions, again = append(actions, more...), earlier(again, at)
	}
	return actions, again
}
