package dns

import (
	"fmt"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Wanted is a record that the state asks for.
type Wanted struct {
	Record
	// Latest is the highest epoch that the state has granted its organization, where that is not Epoch: while it
	// moves. A record of that one is not wrong.
	Latest id.Epoch
	// Pending tells that an allocation's steps have the record in their hands: it may be there or not, and
	// is left alone.
	Pending bool
}

// Verb is what an Action does.
type Verb string

// The verbs.
const (
	Make   Verb = "make"
	Remove Verb = "remove"
)

// Action is one repair.
type Action struct {
	Verb   Verb
	Record Record   // to make; of one to remove only the name is set
	UpTo   id.Epoch // for Provider.Remove
	Reason string
}

// Plan says what must be done so that a provider holds what is wanted, and nothing else of the
// organizations of the domain: records that are missing or wrong first, then those that nobody wants or
// that hide a wildcard, in the order of their names. It returns at most limit actions, and reports
// whether there are more. A record of an epoch that the state does not have is replaced too (Record.Instead): only
// who surely leads may do so.
func Plan(domain string, wanted []Wanted, observed []Record, limit int) (actions []Action, more bool) {
	byName := make(map[string]Record, len(observed))
	for _, r := range observed {
		byName[r.Name] = r
	}
	wants := make(map[string]Wanted, len(wanted))
	var makes, removes []Action
	for _, w := range wanted {
		if owner, ours := split(w.Name, domain); !ours || owner != w.Name {
			continue
		}
		wants[w.Name] = w
		if reason := wrong(w, byName); reason != "" {
			make := w.Record
			if held := byName[w.Name].Epoch; held > w.Epoch {
				make.Instead = held
			}
			makes = append(makes, Action{Verb: Make, Record: make, Reason: reason})
		}
	}
	for _, r := range observed {
		if a, needed := superfluous(domain, r, wants, byName); needed {
			removes = append(removes, a)
		}
	}
	byRecord := func(a, b Action) int { return strings.Compare(a.Record.Name, b.Record.Name) }
	slices.SortFunc(makes, byRecord)
	slices.SortFunc(removes, byRecord)
	all := append(makes, removes...)
	return all[:min(limit, len(all))], len(all) > limit
}

// wrong tells what is not as a record wants it; "" when nothing is.
func wrong(w Wanted, observed map[string]Record) string {
	if w.Pending {
		return ""
	}
	top, below := observed[w.Name], observed[wildcard(w.Name)]
	switch {
	case top.Epoch > max(w.Epoch, w.Latest):
		return fmt.Sprintf("it is of epoch %s, which the state does not have: it is older than the record", top.Epoch)
	case top.Epoch > w.Epoch:
		return "" // made for a later grant, which will be wanted in a moment
	case top.Name == "":
		return "it is missing"
	case !same(w.Record, top):
		return fmt.Sprintf("it points to %v with TTL %s", top.Addresses, top.TTL)
	case below.Name == "":
		return "it is missing for the names below"
	case !same(w.Record, below):
		return fmt.Sprintf("for the names below it points to %v with TTL %s", below.Addresses, below.TTL)
	case top.Epoch < w.Epoch:
		return fmt.Sprintf("it is of epoch %s", top.Epoch)
	}
	return ""
}

func same(a, b Record) bool {
	return a.TTL == b.TTL && slices.Equal(normal(a.Addresses), normal(b.Addresses))
}

// superfluous makes the removal of a name that is held and should not be.
func superfluous(domain string, r Record, wants map[string]Wanted, observed map[string]Record) (Action, bool) {
	owner, ours := split(r.Name, domain)
	if !ours {
		return Action{}, false
	}
	w, wanted := wants[owner]
	top, held := observed[owner]
	action := Action{Verb: Remove, Record: Record{Name: r.Name}, UpTo: top.Epoch}
	switch {
	case wanted && (w.Pending || r.Name == owner || r.Name == wildcard(owner)):
		return Action{}, false
	case wanted:
		action.UpTo = max(action.UpTo, w.Epoch)
		action.Reason = "it hides the record of its organization"
	case held && r.Name == wildcard(owner):
		return Action{}, false // goes with its organization's name
	default:
		action.Reason = "no live allocation has it"
	}
	return action, true
}
