package nginx

import (
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// EventType says what happened.
type EventType string

// The types of events.
const (
	GenerationLive   EventType = "generation_live"   // proven: it answers, its predecessor accepts no more
	GenerationFailed EventType = "generation_failed" // refused or rolled back; the last live one serves
	PartQuarantined  EventType = "part_quarantined"  // left out of generations until it changes
	PartReleased     EventType = "part_released"     // it changed, or nobody wants it any more
	DriftRepaired    EventType = "drift_repaired"    // somebody else changed a file of ours
	NginxServing     EventType = "nginx_serving"
	NginxDown        EventType = "nginx_down"
	NginxWedged      EventType = "nginx_wedged"
	NginxRestarted   EventType = "nginx_restarted" // another master runs than at the last look: the one before has ended
)

// Event is something that operators want to know. Fields that do not apply are zero.
type Event struct {
	Type         EventType
	At           time.Time
	Organization id.Organization
	Part         string
	Generation   uint64
	Reason       string
	Took         time.Duration // of a generation, from its beginning to its proof
}
