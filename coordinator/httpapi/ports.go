package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
)

// Allocations starts and ends allocations. Errors are faults for the caller.
type Allocations interface {
	// Start returns when the allocation is served (or reserved, as asked), or after its undo.
	Start(ctx context.Context, req allocator.StartRequest) (allocator.StartResult, error)
	// StartBatch answers one outcome per organization, in order.
	StartBatch(ctx context.Context, req allocator.BatchRequest) ([]allocator.BatchOutcome, error)
	// Release returns when the allocation has ended and its gateway is recycled. Releasing what has
	// ended is no error.
	Release(ctx context.Context, req allocator.ReleaseRequest) error
	// Migrate returns when another gateway serves the allocation, or with what kept it where it is.
	Migrate(ctx context.Context, req allocator.MigrateRequest) error
	// Phase is what the leader knows of an unfinished allocation beyond the log: the state of the API it
	// is in and the steps so far. ok is false when it knows nothing more.
	Phase(a id.Allocation) (phase string, steps []command.Step, ok bool)
}

// Agents speaks with the agents of the hosts.
type Agents interface {
	// Stream sends assignment frames until ctx is done or send fails. The agent is at address, without its port.
	Stream(ctx context.Context, host id.Host, instance, address string, send func(api.AssignmentFrame) error) error
	// RelayedStream is Stream through a coordinator that fills silence by itself.
	RelayedStream(ctx context.Context, host id.Host, instance, address string, send func(api.AssignmentFrame) error) error
	// Observe takes a report in and returns the index after which it is in effect.
	Observe(ctx context.Context, host id.Host, o api.Observation) (uint64, error)
	// Ephemeral is what the host's agent said last and is not in the log.
	Ephemeral(host id.Host) (nginx api.NginxStatus, lastSeen time.Time, connected bool)
	// Gossip is what the host's agent says of its own place in the gossip; zero: nothing.
	Gossip(host id.Host) api.HostGossip
	// Ahead is an epoch that the host has reported and that is above everything in the state; 0: there is none.
	Ahead(host id.Host) id.Epoch
	// Copied tells where the agent that speaks for the host is, and another one that is refused; empty: there is none.
	Copied(host id.Host) (first, second string)
}

// Proposer puts a command into the log and returns after it was applied here. An error that is not a
// fault means that the outcome is not known.
type Proposer interface {
	Propose(ctx context.Context, c command.Command) (command.Result, uint64, error)
}

// Cluster is this coordinator's place among the coordinators.
type Cluster interface {
	IsLeader() bool
	// Reign is done when this coordinator no longer leads; at once when it does not.
	Reign() context.Context
	// Leader is the leader as far as known here; empty when there is none.
	Leader() (nodeID, address string)
	// LeaderChanged is closed at the next change of what Leader or IsLeader tell.
	LeaderChanged() <-chan struct{}
	Peers() []api.Peer
	// Unreached are the coordinators that do not take the log from this one, which leads, with the cause.
	Unreached() map[string]error
	// Progress is the term, and the newest index that is applied here.
	Progress() (term, applied uint64)
	// Barrier returns when everything that was in the log before is applied here.
	Barrier(ctx context.Context) error
	// StorageLow says how little room is left for the log, in words; "" while there is enough.
	StorageLow() string
	// VerifyLeader asks a majority whether this coordinator still leads.
	VerifyLeader(ctx context.Context) error
}

// Trust is the cluster's CA and what a program that joins has to know.
type Trust interface {
	// Pin names the CA that signs now.
	Pin() pki.Pin
	// Issue makes a certificate for a signing request. It answers the certificate and whom to trust, PEM.
	Issue(request string, role pki.Role, name string, now time.Time) (certificate, ca string, err error)
	// Cluster is where the others are and, as far as the role needs them, the secrets of the cluster.
	Cluster(role pki.Role) api.JoinCluster
}

// Users tells who a platform user is.
type Users interface {
	// Verify tells who a signed token was made for. It does not wait. Why a token is refused is for the log.
	Verify(token string) (usertoken.User, error)
	// Problems tells what is wrong with the keys of issuers, by the issuer's name.
	Problems() map[string]string
}

// Events follows the event feed.
type Events interface {
	// Follow hands the events after an id to send, in order, as they happen; send gets an empty batch at
	// least every heartbeat, and truncated when events before the batch are no longer kept. It returns
	// when ctx is done (nil) or with send's error.
	Follow(ctx context.Context, after state.EventID, heartbeat time.Duration, send func(batch []state.Event, truncated bool) error) error
}

// Metrics counts requests and serves all metrics.
type Metrics interface {
	http.Handler
	// Request counts one answered request.
	Request(route string, status int, took time.Duration)
	// Refused counts a request that was not let in.
	Refused(code fault.Code)
	// Rates sums up the allocations that this coordinator saw.
	Rates() api.Rate
}
