package allocator

import (
	"fmt"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// However many steps an agent reports, those that are kept are few, and what it says again of one of them counts.
func TestTheStepsOfAnAllocationAreBounded(t *testing.T) {
	have := []command.Step{{Step: api.StepRoute, State: api.StepFailed}}
	for i := range 10_000 {
		have = mergeSteps(have, []command.Step{{Step: fmt.Sprint("step-", i), State: api.StepDone}})
	}
	have = mergeSteps(have, []command.Step{{Step: api.StepRoute, State: api.StepDone}})
	if len(have) != maxSteps || have[0].State != api.StepDone || have[1].Step != "step-0" {
		t.Errorf("%d steps are kept, the first %+v", len(have), have[:2])
	}
}
