package steps_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/steps"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// scripts are changes of activate, route, verify. A line is "ok", "refuse", "unclear" (report the next
// action so), "crash" (begin it and go on from the stored form) or "back" (take the change back); what
// follows "->" is the action that must be next afterwards.
var scripts = []struct{ name, script string }{
	{"all goes well", `
		ok      -> do route
		ok      -> do verify
		ok      -> complete`},
	{"the first step is refused: nothing to undo", `
		refuse  -> finished`},
	{"the first step is unclear: it is undone", `
		unclear -> undo activate
		ok      -> finished`},
	{"the last step is refused: the others are undone in reverse", `
		ok      -> do route
		ok      -> do verify
		refuse  -> undo route
		ok      -> undo activate
		ok      -> finished`},
	{"an undo that fails is tried again", `
		ok      -> do route
		refuse  -> undo activate
		unclear -> undo activate
		refuse  -> undo activate
		ok      -> finished`},
	{"a crash in a step repeats it", `
		ok      -> do route
		crash   -> do route
		ok      -> do verify
		crash   -> do verify
		ok      -> complete`},
	{"a crash in an undo repeats it", `
		ok      -> do route
		unclear -> undo route
		crash   -> undo route
		ok      -> undo activate
		crash   -> undo activate
		ok      -> finished`},
	{"taken back before anything began", `
		back    -> finished`},
	{"taken back in the middle of a step: that step is undone too", `
		ok      -> do route
		crash   -> do route
		back    -> undo route
		ok      -> undo activate
		ok      -> finished`},
	{"taken back when complete", `
		ok      -> do route
		ok      -> do verify
		ok      -> complete
		back    -> undo verify
		back    -> undo verify
		ok      -> undo route
		ok      -> undo activate
		ok      -> finished`},
}

func TestScripts(t *testing.T) {
	for _, tt := range scripts {
		t.Run(tt.name, func(t *testing.T) {
			c := steps.New("activate", "route", "verify")
			now := start
			for n, line := range strings.Split(strings.TrimSpace(tt.script), "\n") {
				verb, want, _ := strings.Cut(line, "->")
				now = now.Add(time.Second)
				c = play(t, c, strings.TrimSpace(verb), now)
				if got := state(&c); got != strings.TrimSpace(want) {
					t.Fatalf("line %d (%s): next is %q, want %q", n+1, strings.TrimSpace(verb), got, strings.TrimSpace(want))
				}
				check(t, &c)
			}
		})
	}
}

func play(t *testing.T, c steps.Change, verb string, now time.Time) steps.Change {
	t.Helper()
	if verb == "back" {
		c.TakeBack()
		return c
	}
	a, ok := c.Next()
	if !ok {
		t.Fatalf("%s: nothing to do", verb)
	}
	if err := c.Begin(a, now); err != nil {
		t.Fatal(err)
	}
	stored, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[string]steps.Outcome{"ok": steps.Succeeded, "refuse": steps.Refused, "unclear": steps.Unclear}
	if verb == "crash" {
		var again steps.Change
		if err := json.Unmarshal(stored, &again); err != nil {
			t.Fatal(err)
		}
		return again
	}
	o, ok := outcomes[verb]
	if !ok {
		t.Fatalf("unknown verb %q", verb)
	}
	if err := c.Report(a, o, now.Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	return c
}

func state(c *steps.Change) string {
	if a, ok := c.Next(); ok {
		return a.String()
	}
	if c.Complete() {
		return "complete"
	}
	return "finished"
}

// check holds after every line: a finished change that went back has no step in effect, and a step is
// never in effect behind one that is not.
func check(t *testing.T, c *steps.Change) {
	t.Helper()
	_, more := c.Next()
	for i, s := range c.Steps {
		if !more && c.Back && s.Status != steps.Undone && s.Status != steps.Failed && s.Status != steps.Pending {
			t.Fatalf("finished, but step %s is %s", s.Name, s.Status)
		}
		if i > 0 && s.Status == steps.Done && c.Steps[i-1].Status != steps.Done {
			t.Fatalf("step %s is done, but %s is %s", s.Name, c.Steps[i-1].Name, c.Steps[i-1].Status)
		}
	}
}

func TestAnotherActionThanTheNextIsRefused(t *testing.T) {
	for _, a := range []steps.Action{{Step: "route"}, {Step: "activate", Undo: true}, {Step: "dance"}, {}} {
		c := steps.New("activate", "route")
		if err := c.Begin(a, start); err == nil || !strings.Contains(err.Error(), "the next action is do activate") {
			t.Errorf("Begin(%s) = %v", a, err)
		}
		if err := c.Report(a, steps.Succeeded, start); err == nil {
			t.Errorf("Report(%s) was taken", a)
		}
		if got := fmt.Sprint(c); got != fmt.Sprint(steps.New("activate", "route")) {
			t.Errorf("a refused action changed the change: %s", got)
		}
	}
	var none steps.Change
	if err := none.Begin(steps.Action{Step: "x"}, start); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a change without steps began one: %v", err)
	}
}

func TestTimesAreKept(t *testing.T) {
	c := steps.New("one")
	at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }
	do, undo := steps.Action{Step: "one"}, steps.Action{Step: "one", Undo: true}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.Begin(do, at(1)))
	must(c.Report(do, steps.Succeeded, at(2)))
	c.TakeBack()
	must(c.Begin(undo, at(3)))
	must(c.Report(undo, steps.Unclear, at(4)))
	must(c.Begin(undo, at(5))) // a second try: the undo began with the first
	must(c.Report(undo, steps.Succeeded, at(6)))
	want := steps.Step{Name: "one", Status: steps.Undone, Started: at(1), Ended: at(2), UndoAt: at(3), UndoEnd: at(6)}
	if c.Steps[0] != want {
		t.Fatalf("got %+v, want %+v", c.Steps[0], want)
	}
}

func TestCloneIsIndependent(t *testing.T) {
	c := steps.New("one")
	clone := c.Clone()
	if err := c.Begin(steps.Action{Step: "one"}, start); err != nil {
		t.Fatal(err)
	}
	if clone.Status("one") != steps.Pending || c.Status("one") != steps.Doing || c.Status("other") != steps.Pending {
		t.Fatalf("clone %s, original %s", clone.Status("one"), c.Status("one"))
	}
}

// TestStoredValues keeps the numbers that journals hold.
func TestStoredValues(t *testing.T) {
	for want, s := range []steps.Status{steps.Pending, steps.Doing, steps.Done, steps.Undoing, steps.Undone, steps.Failed} {
		if int(s) != want {
			t.Errorf("%s is stored as %d, want %d", s, s, want)
		}
	}
	if got := steps.Status(9).String(); got != "status 9" {
		t.Errorf("an unknown status prints as %q", got)
	}
}
