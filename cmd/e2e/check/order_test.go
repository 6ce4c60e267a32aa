package check

import (
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// What the answers say of the order is enough where a later start was answered with what a batch began: no search, which
// takes too long for a whole run.
func TestAnswersOrderBatches(t *testing.T) {
	item := func(name string, epoch uint64) Item {
		return Item{Organization: "org-" + name, Allocation: "al-" + name, Gateway: "gw-" + name, Epoch: epoch, State: api.AllocationActive}
	}
	r := Run{Operations: []Operation{
		{ID: 0, Kind: Batch, Outcome: OK, Call: 100, Return: 300, Items: []Item{item("a", 41)}},
		{ID: 1, Kind: Batch, Outcome: OK, Call: 110, Return: 200, Items: []Item{item("b", 40)}},
		{ID: 2, Kind: Start, Outcome: OK, Call: 400, Return: 500, Items: []Item{item("b", 40)}},
	}}
	m, first := initial(r)
	proposed, contradiction := narrow(history(r), first.max)
	if contradiction != nil || !m.explains(first, proposed) {
		t.Errorf("no order is found at once: %+v, %v", proposed, contradiction)
	}
}
