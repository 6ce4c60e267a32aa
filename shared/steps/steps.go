// Package steps says what a change of several steps does next, and nothing else: it acts on nothing, has
// no clock of its own and keeps nothing on disk. A Change is data. Its owner stores it before it acts
// (Begin) and after (Report), so that whoever reads it later, after a crash too, goes on where it stopped.
//
// Steps are done in order. When one fails, or the change is taken back, those that took effect or may
// have are undone in reverse order.
package steps

import (
	"fmt"
	"time"
)

// Status is how far one step is. The values are stored: never reorder or reuse one.
type Status uint8

// The statuses of a step.
const (
	Pending Status = 0 // not started
	Doing   Status = 1 // started; may have taken effect, so doing it again and undoing it must be safe
	Done    Status = 2 // took effect
	Undoing Status = 3 // its undo started
	Undone  Status = 4 // took effect, or may have, and was taken back
	Failed  Status = 5 // did not take effect
)

// String names the status.
func (s Status) String() string {
	switch s {
	case Pending:
		return "pending"
	case Doing:
		return "doing"
	case Done:
		return "done"
	case Undoing:
		return "undoing"
	case Undone:
		return "undone"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Step is one action with its compensation.
type Step struct {
	Name    string    `json:"name"`
	Status  Status    `json:"status"`
	Started time.Time `json:"started,omitzero"` // of the last try to do it
	Ended   time.Time `json:"ended,omitzero"`
	UndoAt  time.Time `json:"undo_at,omitzero"` // of the first try to undo it
	UndoEnd time.Time `json:"undo_end,omitzero"`
}

// Change is a list of steps and its direction. The zero value is a finished change without steps.
type Change struct {
	Steps []Step `json:"steps,omitempty"`
	Back  bool   `json:"back,omitempty"` // the steps are being undone, or were
}

// Action is what to do now: a step, or its undo.
type Action struct {
	Step string
	Undo bool
}

// Outcome is how an action ended.
type Outcome uint8

// The outcomes of an action.
const (
	Succeeded Outcome = iota // took effect
	Refused                  // did not take effect, and will not
	Unclear                  // failed, and may have taken effect all the same
)

// New makes a change of the named steps, none of them started.
func New(names ...string) Change {
	c := Change{Steps: make([]Step, len(names))}
	for i, n := range names {
		c.Steps[i].Name = n
	}
	return c
}

// Next is what to do now; false when the change is finished, in whichever direction. A step that was
// begun and not reported is given again.
func (c *Change) Next() (Action, bool) {
	if c.Back {
		for i := len(c.Steps) - 1; i >= 0; i-- {
			switch s := c.Steps[i]; s.Status {
			case Doing, Done, Undoing:
				return Action{Step: s.Name, Undo: true}, true
			}
		}
		return Action{}, false
	}
	for _, s := range c.Steps {
		switch s.Status {
		case Pending, Doing:
			return Action{Step: s.Name}, true
		}
	}
	return Action{}, false
}

// Begin notes that the action starts. It is stored before anything is done. An action that is not the
// next one is a mistake of the caller and refused.
func (c *Change) Begin(a Action, now time.Time) error {
	s, err := c.expect(a)
	if err != nil {
		return err
	}
	if a.Undo {
		if s.Status != Undoing {
			s.UndoAt = now
		}
		s.Status = Undoing
		return nil
	}
	s.Status, s.Started = Doing, now
	return nil
}

// Report notes how the action ended. A step that did not succeed turns the change back; an undo that did
// not succeed stays the next action, because a compensation is never given up.
func (c *Change) Report(a Action, o Outcome, now time.Time) error {
	s, err := c.expect(a)
	if err != nil {
		return err
	}
	switch {
	case a.Undo && o == Succeeded:
		s.Status, s.UndoEnd = Undone, now
	case a.Undo:
	case o == Succeeded:
		s.Status, s.Ended = Done, now
	case o == Refused:
		s.Status, s.Ended, c.Back = Failed, now, true
	default:
		s.Ended, c.Back = now, true // stays Doing: its undo must run as well
	}
	return nil
}

// TakeBack turns the change back wherever it is, also when all of it is done. A second call does nothing.
func (c *Change) TakeBack() { c.Back = true }

// Complete reports whether every step took effect and none is being taken back.
func (c *Change) Complete() bool {
	_, more := c.Next()
	return !more && !c.Back && len(c.Steps) > 0
}

// Status is how far the named step is; Pending for a name that the change does not have.
func (c *Change) Status(name string) Status {
	for _, s := range c.Steps {
		if s.Name == name {
			return s.Status
		}
	}
	return Pending
}

// Clone copies the change, so that the copy can be stored while the original goes on.
func (c *Change) Clone() Change {
	return Change{Steps: append([]Step(nil), c.Steps...), Back: c.Back}
}

// expect finds the step of the next action and refuses any other.
func (c *Change) expect(a Action) (*Step, error) {
	next, ok := c.Next()
	if !ok || next != a {
		return nil, fmt.Errorf("cannot take %s: the next action is %s", a, describe(next, ok))
	}
	for i := range c.Steps {
		if c.Steps[i].Name == a.Step {
			return &c.Steps[i], nil
		}
	}
	return nil, fmt.Errorf("cannot take %s: no such step", a)
}

// String says what the action is.
func (a Action) String() string {
	if a.Undo {
		return "undo " + a.Step
	}
	return "do " + a.Step
}

func describe(a Action, ok bool) string {
	if !ok {
		return "none"
	}
	return a.String()
}
