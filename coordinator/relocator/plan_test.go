package relocator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/relocator"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// brief is what matters of a command.
func brief(c command.Command) string {
	switch c := c.(type) {
	case command.LoseHost:
		return "lose " + string(c.Host)
	case command.Place:
		return fmt.Sprintf("place %d", len(c.Allocations))
	case command.RetireGateways:
		return fmt.Sprintf("retire %d", len(c.Gateways))
	case command.Relocate:
		return fmt.Sprintf("move %d %s force=%v", len(c.Items), c.Cause, c.Force)
	case command.NoteDrain:
		return strings.TrimSpace("note " + c.State + " " + c.Reason)
	}
	return fmt.Sprintf("%T", c)
}

func active(n int, pool id.Pool) []relocator.Leaving {
	out := make([]relocator.Leaving, n)
	for i := range out {
		out[i] = relocator.Leaving{Allocation: id.Allocation(fmt.Sprint("al-", i)), Epoch: 1, Pool: pool}
	}
	return out
}

func TestPlan(t *testing.T) {
	draining := func(change func(*relocator.Draining)) relocator.View {
		d := relocator.Draining{Host: "h1", Drain: state.Drain{State: api.DrainDraining}, Leaving: active(20, "default")}
		change(&d)
		return relocator.View{Draining: []relocator.Draining{d}, Elsewhere: relocator.Elsewhere{Hosts: 2, Ready: map[id.Pool]int{"default": 5}}}
	}
	for name, c := range map[string]struct {
		view  relocator.View
		want  string
		again time.Duration // 0: none
	}{
		"nothing": {},
		"a host that an older version lost": {
			view: relocator.View{Lost: []relocator.Lost{{Host: "h1"}}}, want: "lose h1",
		},
		"leases": {
			view: relocator.View{Held: []relocator.Held{{Until: now}, {Until: now.Add(2 * time.Second)}, {Until: now.Add(time.Second)}}},
			want: "place 1", again: time.Second,
		},
		"many leases": {
			view: relocator.View{Held: make([]relocator.Held, 2500)}, want: "place 1000, place 1000, place 500",
		},
		"as many as there are gateways": {
			view: draining(func(*relocator.Draining) {}), want: "move 5 drain force=false",
		},
		"no more than some at a time": {
			view: draining(func(d *relocator.Draining) { d.Moving = relocator.Parallel - 1 }), want: "move 1 drain force=false",
		},
		"all that may are on their way": {
			view: draining(func(d *relocator.Draining) { d.Moving = relocator.Parallel }),
		},
		"no gateway": {
			view: draining(func(d *relocator.Draining) { d.Leaving = active(2, "other") }),
			want: "note draining pool other has no ready gateway on another host",
		},
		"no gateway for some": {
			view: draining(func(d *relocator.Draining) { d.Leaving = append(active(2, "other"), active(1, "default")...) }),
			want: "move 1 drain force=false",
		},
		"it has said so": {
			view: draining(func(d *relocator.Draining) {
				d.Leaving, d.Drain.Reason = active(2, "other"), "pool other has no ready gateway on another host"
			}),
		},
		"idle gateways": {
			view: draining(func(d *relocator.Draining) { d.Idle, d.Moving = make([]id.Gateway, 3), relocator.Parallel }), want: "retire 3",
		},
		"a try that failed": {
			view: draining(func(d *relocator.Draining) {
				d.Leaving = []relocator.Leaving{{Pool: "default", NotBefore: now.Add(time.Second), Failure: "no answer"}}
			}),
			want: "note draining the last try failed: no answer", again: time.Second,
		},
		"before the deadline": {
			view: draining(func(d *relocator.Draining) {
				d.Drain.Deadline, d.Drain.Force, d.Moving = now.Add(time.Minute), true, relocator.Parallel
			}), again: time.Minute,
		},
		"at the deadline": {
			view: draining(func(d *relocator.Draining) { d.Drain.Deadline, d.Leaving = now, active(2, "other") }),
			want: "note overdue pool other has no ready gateway on another host",
		},
		"forced": {
			view: draining(func(d *relocator.Draining) {
				d.Drain.Deadline, d.Drain.Force, d.Leaving = now, true, active(1200, "other")
			}),
			want: "move 1000 drain force=true, move 200 drain force=true",
		},
		"what is coming there is waited for": {
			view: draining(func(d *relocator.Draining) { d.Leaving, d.Coming = nil, 1 }),
		},
		"connections are waited for": {
			view: draining(func(d *relocator.Draining) { d.Leaving, d.Closing = nil, 1 }),
		},
		"empty": {
			view: draining(func(d *relocator.Draining) { d.Leaving = nil }), want: "note drained",
		},
		"empty already": {
			view: draining(func(d *relocator.Draining) { d.Leaving, d.Drain.State = nil, api.DrainDrained }),
		},
	} {
		actions, again := relocator.Plan(c.view, now)
		var got []string
		for _, a := range actions {
			got = append(got, brief(a))
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %q, want %q", name, s, c.want)
		}
		if c.again == 0 != again.IsZero() || c.again != 0 && !again.Equal(now.Add(c.again)) {
			t.Errorf("%s: again %v, want %v", name, again, c.again)
		}
	}
}

// Two hosts that are drained share what there is elsewhere.
func TestPlanSharesGateways(t *testing.T) {
	v := relocator.View{Elsewhere: relocator.Elsewhere{Hosts: 1, Ready: map[id.Pool]int{"default": 3}}}
	for _, h := range []id.Host{"h1", "h2"} {
		v.Draining = append(v.Draining, relocator.Draining{Host: h, Drain: state.Drain{State: api.DrainDraining}, Leaving: active(2, "default")})
	}
	actions, _ := relocator.Plan(v, now)
	if len(actions) != 2 || brief(actions[0]) != "move 2 drain force=false" || brief(actions[1]) != "move 1 drain force=false" {
		t.Errorf("%+v", actions)
	}
}
