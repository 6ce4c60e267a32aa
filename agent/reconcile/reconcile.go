// Package reconcile makes a host match its assignment: gateways run, are named by the live nginx
// generation, serve the organization they were granted, and are recycled before they serve another.
//
// Every gateway has an actor, one goroutine that owns everything known of it. What an actor does next is
// decided by one pure function (decide.go) from what is wanted and what is observed; acting changes what
// is observed, and the actor asks again. What must survive the agent is in the journal before it is acted
// on, so a new agent continues where a killed one stopped. See DESIGN.md.
package reconcile

import (
	"context"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Slot is what nginx must know of a gateway before it can be ready.
type Slot struct {
	Gateway id.Gateway
	MaxBody int64 // bytes; zero is the default
}

// Route is the gateway and the epoch that an organization's host name leads to.
type Route struct {
	Gateway id.Gateway
	Epoch   id.Epoch
}

// Nginx is what the actors need of the nginx engine.
type Nginx interface {
	// SetSlots replaces the list of gateways that the configuration names. It does not wait.
	SetSlots(slots []Slot)
	// WaitSlot returns when the live generation names the gateway.
	WaitSlot(ctx context.Context, g id.Gateway) error
	// Route leads every new request of the organization to the gateway with that epoch, which the step after
	// it proves. On an error the route is what it was before. Repeating it is safe.
	Route(ctx context.Context, org id.Organization, to Route) error
	// Unroute returns when no new request of the organization goes to that gateway and epoch any more. A
	// route to another gateway or epoch stays. Repeating it is safe.
	Unroute(ctx context.Context, org id.Organization, from Route) error
	// Retain makes the routes exactly those of keep. It is called once, before anything is routed.
	Retain(keep map[id.Organization]Route)
	// Get asks for a path of the organization through the real listener, as any client would.
	Get(ctx context.Context, org id.Organization, path string) (*http.Response, error)
}

// Control speaks to gateways over their own sockets. Every call names the process that must answer: an
// answer of another one, such as a predecessor that is about to exit, is an error.
type Control interface {
	Health(ctx context.Context, p driver.Process) (api.GatewayHealth, error)
	Activate(ctx context.Context, p driver.Process, body *api.Activate) error
	Deactivate(ctx context.Context, p driver.Process, body api.Deactivate) error
	// Forget lets go of what is kept of a gateway that is not asked any more.
	Forget(g id.Gateway)
}

// Services are what the agent itself does for organizations, beside their gateways.
type Services interface {
	// Retain forgets every organization but these, at these epochs. It is called once, before all else.
	Retain(keep map[id.Organization]id.Epoch) error
	// Serve takes up an organization at an epoch, with what the platform says of it at a version, for a gateway
	// that is about to be given it. It does not wait. Repeating it is safe, and an epoch or a version that is
	// over changes nothing.
	Serve(g id.Gateway, body *api.Activate, version uint64)
	// Update tells what the platform says of an organization now, if that is served at this epoch; else it does
	// nothing. It does not wait.
	Update(body *api.Activate, version uint64)
	// Leave forgets an organization that a gateway served at an epoch. Nothing is answered for it after the call,
	// even if that fails; it is repeated then. An organization that is served at another epoch stays.
	Leave(ctx context.Context, g id.Gateway, org id.Organization, epoch id.Epoch) error
}

// noServices is an agent that does nothing beside its gateways.
type noServices struct{}

// Retain implements Services.
func (noServices) Retain(map[id.Organization]id.Epoch) error { return nil }

// Serve implements Services.
func (noServices) Serve(id.Gateway, *api.Activate, uint64) {}

// Update implements Services.
func (noServices) Update(*api.Activate, uint64) {}

// Leave implements Services.
func (noServices) Leave(context.Context, id.Gateway, id.Organization, id.Epoch) error { return nil }

// Sink takes what was observed. It does not block.
type Sink interface {
	// Observe takes reports, steps and events of one moment; they reach the coordinator together.
	Observe(o api.Observation)
}

// Layout says where the things of a gateway are.
type Layout interface {
	// Spec is how to run a gateway of a release. An error says why it cannot be run here.
	Spec(g id.Gateway, release string, limits api.Limits) (driver.Spec, error)
	// Dir holds a directory for every gateway, and nothing else.
	Dir() string
}

// Timing are the delays of the actors. The zero value of a field is its default.
type Timing struct {
	StartTimeout    time.Duration // from start to the first healthy answer; default 10s
	ProbeEvery      time.Duration // between questions to a starting process; default 10ms, growing to 10 times that
	HealthEvery     time.Duration // between questions to a process that serves, about; default 2s
	IdleEvery       time.Duration // the same of one that serves nobody; default 5s
	AskAgain        time.Duration // after a missed answer; default 250ms
	HealthTimeout   time.Duration // for one answer; default 2s
	Misses          int           // after which a process is hung; default 3
	BackOff         time.Duration // before the second restart; doubles; default 50ms
	MaxBackOff      time.Duration // default 10s
	Stable          time.Duration // after which the back-off begins anew; default 30s
	FailedStarts    int           // after which a gateway without organization is given up; default 5
	StopGrace       time.Duration // between SIGTERM and SIGKILL; default 12s
	ActivateTimeout time.Duration // default 5s
	RouteTimeout    time.Duration // default 10s
	VerifyTimeout   time.Duration // default 3s
	ChainQuiet      time.Duration // a chain that lasts longer is reported step by step; default 100ms
	StaleFrames     time.Duration // how long frames older than what was seen are ignored; default 1m
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.StartTimeout, 10*time.Second)
	set(&t.ProbeEvery, 10*time.Millisecond)
	set(&t.HealthEvery, 2*time.Second)
	set(&t.IdleEvery, 5*time.Second)
	set(&t.AskAgain, 250*time.Millisecond)
	set(&t.HealthTimeout, 2*time.Second)
	set(&t.BackOff, 50*time.Millisecond)
	set(&t.MaxBackOff, 10*time.Second)
	set(&t.Stable, 30*time.Second)
	set(&t.StopGrace, 12*time.Second)
	set(&t.ActivateTimeout, 5*time.Second)
	set(&t.RouteTimeout, 10*time.Second)
	set(&t.VerifyTimeout, 3*time.Second)
	set(&t.ChainQuiet, 100*time.Millisecond)
	set(&t.StaleFrames, time.Minute)
	if t.Misses <= 0 {
		t.Misses = 3
	}
	if t.FailedStarts <= 0 {
		t.FailedStarts = 5
	}
	return t
}
