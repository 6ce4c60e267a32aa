package api

import "time"

// The agent protocol. An agent holds GET /v1/agent/stream?host=H&instance=I open: newline-delimited
// JSON AssignmentFrames, the first with Full set, an empty one at least every second and a half. It reports with
// POST /v1/agent/observations. A coordinator never dials an agent.

// StreamHeartbeat is how often a silent stream carries an empty frame. An agent asks the next coordinator when it has
// read nothing for three seconds. With a thousand agents, what they read is the most of what a leader at rest has to do.
const StreamHeartbeat = 1500 * time.Millisecond

// FullObservations is how often an agent says everything again. What changes it says at once, and everything whenever
// a coordinator says everything to it: at the beginning of a stream, and after a restore. So this is for what neither knows of.
const FullObservations = 30 * time.Second

// moments is how many moments there are for empty frames in an interval. All streams have theirs at the same few ones,
// and not each at its own: many in one go cost less than as many wake-ups, and those that another coordinator passes on
// share records and system calls.
const moments = 10

// UntilBeat is how long it is to the next empty frame of a silent stream that carries one so often: no longer than that.
func UntilBeat(now time.Time, every time.Duration) time.Duration {
	return now.Add(every).Truncate(every / moments).Sub(now)
}

// AssignmentFrame is a piece of a host's assignment. A full frame replaces all; another one carries the
// gateways whose desired part changed. Index is the store's index the frame was made at.
type AssignmentFrame struct {
	Index    uint64              `json:"index"`
	Full     bool                `json:"full,omitempty"`
	Domain   string              `json:"domain,omitempty"` // in full frames
	Gateways []GatewayAssignment `json:"gateways,omitempty"`
	Verify   []VerifyRequest     `json:"verify,omitempty"`
	Ask      bool                `json:"ask,omitempty"`    // report at once, even if there is nothing new: is anybody there?
	Gossip   *GossipAccess       `json:"gossip,omitempty"` // in the first frame and when it changed
	CA       string              `json:"ca,omitempty"`     // whom the cluster trusts, PEM; in the first frame and when it changed
}

// GossipAccess is what an agent needs to enter the gossip and to stay there. It holds secrets.
type GossipAccess struct {
	Addresses []string `json:"addresses"` // host:port of the coordinators' gossip
	Keys      []string `json:"keys"`      // secret, base64, the one in use first
}

// Targets of a gateway.
const (
	TargetRun  = "run"
	TargetGone = "gone"
)

// GatewayAssignment is what one gateway of the host shall be. Incarnation rises when the coordinator wants
// the process stopped, its state wiped and a fresh one started: the agent first takes the route and the
// organization away. A grant belongs to the incarnation it came with.
type GatewayAssignment struct {
	GatewayID   string   `json:"gateway_id"`
	Pool        string   `json:"pool"`
	Target      string   `json:"target"`
	Incarnation uint64   `json:"incarnation"`
	Release     string   `json:"release,omitempty"`
	Limits      Limits   `json:"limits"`
	Grant       *Grant   `json:"grant,omitempty"`
	Drain       Duration `json:"drain,omitempty"` // how long the last grant's connections may go on before the recycling
	// Lease is set where the pool has isolation stop: the host serves an organization with this gateway only
	// so long after it sent the last observation with Renew that was acknowledged, by a clock of its own that
	// goes on while the machine sleeps. Zero: without an end.
	Lease Duration `json:"lease,omitempty"`
}

// Grant is the organization that a gateway serves.
type Grant struct {
	OrganizationID string    `json:"organization_id"`
	AllocationID   string    `json:"allocation_id"`
	Epoch          uint64    `json:"epoch"`
	Name           string    `json:"name"`
	Hostname       string    `json:"hostname"`
	Members        []Member  `json:"members,omitempty"`
	Projects       []Project `json:"projects,omitempty"`
	Version        uint64    `json:"version"` // rises when name, members or projects change
}

// VerifyRequest asks the agent to verify a served organization again, now, and to report the step
// "verify" with this nonce.
type VerifyRequest struct {
	Nonce          string `json:"nonce"`
	GatewayID      string `json:"gateway_id"`
	OrganizationID string `json:"organization_id"`
	Epoch          uint64 `json:"epoch"`
}

// Phases of a gateway as its agent sees it.
const (
	PhaseStarting  = "starting"  // process being started or not healthy yet, or its slot not live yet
	PhaseReady     = "ready"     // healthy, without organization, named by the live nginx generation
	PhaseServing   = "serving"   // activated, routed and verified for the reported epoch
	PhaseUnhealthy = "unhealthy" // ran before and does not answer or died; the agent is bringing it back
	PhaseFailed    = "failed"    // given up after too many tries; a new incarnation tries again
	PhaseGone      = "gone"      // process stopped, state wiped, slot removed
)

// GatewayReport is what an agent sees of one gateway. Incarnation is the one the process in question
// belongs to: a report of incarnation n says that everything of n-1 is stopped, unrouted and wiped.
type GatewayReport struct {
	GatewayID      string `json:"gateway_id"`
	Incarnation    uint64 `json:"incarnation"`
	Phase          string `json:"phase"`
	OrganizationID string `json:"organization_id,omitempty"`
	Epoch          uint64 `json:"epoch,omitempty"`
	BootID         string `json:"boot_id,omitempty"`
	PID            int    `json:"pid,omitempty"`
	Restarts       int    `json:"restarts,omitempty"`
	Code           string `json:"code,omitempty"` // stable code of a failure
	Message        string `json:"message,omitempty"`
	Undo           []Step `json:"undo,omitempty"` // unroute, deactivate, recycle of the incarnation before
}

// StepReport is one step of an allocation that an agent finished or failed.
type StepReport struct {
	AllocationID string `json:"allocation_id"`
	GatewayID    string `json:"gateway_id"`
	Epoch        uint64 `json:"epoch"`
	Nonce        string `json:"nonce,omitempty"` // of the VerifyRequest it answers
	Step         Step   `json:"step"`
}

// AgentEvent is something that happened on a host and belongs in the event feed.
type AgentEvent struct {
	Type           string    `json:"type"`
	At             time.Time `json:"at"`
	GatewayID      string    `json:"gateway_id,omitempty"`
	OrganizationID string    `json:"organization_id,omitempty"`
	Reason         string    `json:"reason"`
}

// HostReport is what an agent says of its host.
type HostReport struct {
	Address  string      `json:"address"`
	Capacity int         `json:"capacity"`
	Version  string      `json:"version"`
	Nginx    NginxStatus `json:"nginx"`
	Gossip   HostGossip  `json:"gossip,omitzero"`
}

// HostGossip is what an agent says of its own place in the gossip. Whoever is there under the host's name
// with another address or run is somebody else.
type HostGossip struct {
	Joined  bool   `json:"joined"`
	Address string `json:"address,omitempty"`
	Run     string `json:"run,omitempty"`     // of its gossip; another one after each start
	Problem string `json:"problem,omitempty"` // why it is not there
}

// Observation is the body of POST /v1/agent/observations. A full one names every gateway that exists on
// the host: a gateway that the coordinator wants and that is not named does not exist there.
type Observation struct {
	HostID   string          `json:"host_id"`
	Instance string          `json:"instance"` // random, of this run of the agent
	Full     bool            `json:"full,omitempty"`
	Renew    bool            `json:"renew,omitempty"`   // the answer must prove that the coordinator led after it had this: leases are counted from its sending
	Leaving  bool            `json:"leaving,omitempty"` // the last one: the machine is being switched off
	Host     *HostReport     `json:"host,omitempty"`    // in full ones and when it changed
	Gateways []GatewayReport `json:"gateways,omitempty"`
	Steps    []StepReport    `json:"steps,omitempty"`
	Events   []AgentEvent    `json:"events,omitempty"`
}

// Observed is the answer: the index after what was reported took effect.
type Observed struct {
	Index uint64 `json:"index"`
}
