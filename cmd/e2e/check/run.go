package check

import (
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// Kind is what a client asked for.
type Kind string

// The kinds of operation.
const (
	Start   Kind = "start"
	Batch   Kind = "batch"
	Release Kind = "release"
	Get     Kind = "get"      // the live allocation of an organization, read with consistency
	SetStep Kind = "set_step" // of the pool
	GetStep Kind = "get_step" // read with consistency
	Migrate Kind = "migrate"  // the live allocation of an organization to another host
	Cordon  Kind = "cordon"   // a host: nothing new begins there
	Drain   Kind = "drain"    // a host: it is cordoned, and what it serves moves elsewhere
	// Uncordon ends both.
	Uncordon Kind = "uncordon"
	ended    Kind = "ended" // the cluster ended an allocation by itself
	left     Kind = "left"  // the cluster took an allocation off a gateway
	moved    Kind = "moved" // the cluster gave an allocation another gateway
)

// Outcome is what a client knows of its operation.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Refused Outcome = "refused" // answered with a code, which says that nothing happened
	Unknown Outcome = "unknown" // no answer: it may have happened, and may still
)

// Operation is one thing that a client asked for, with all tries of it: they carry one idempotency key.
type Operation struct {
	ID      int           `json:"id"`
	Kind    Kind          `json:"kind"`
	Key     string        `json:"key,omitempty"`
	Nodes   []string      `json:"nodes"`  // who was asked, in order
	Call    time.Duration `json:"call"`   // since the beginning of the run
	Return  time.Duration `json:"return"` // of the answer, or when the client gave up
	Outcome Outcome       `json:"outcome"`
	Code    string        `json:"code,omitempty"` // of the refusal, or of the last one before giving up
	Items   []Item        `json:"items,omitempty"`
	Step    int           `json:"step,omitempty"` // of the pool; no two operations set it to the same
	Host    string        `json:"host,omitempty"`
	// Index is of the log: where the step was set, where the host was cordoned at the latest, or what was known before
	// it was asked to be uncordoned.
	Index uint64 `json:"index,omitempty"`
	// Again marks a repetition of an answered operation with its key: the answer is to be that of the first,
	// whatever happened since.
	Again bool `json:"again,omitempty"`
}

// Item is what an operation is about, and what was answered. A batch has several.
type Item struct {
	Organization string `json:"organization"`
	Allocation   string `json:"allocation,omitempty"`
	Gateway      string `json:"gateway,omitempty"`
	Epoch        uint64 `json:"epoch,omitempty"`
	State        string `json:"state,omitempty"`
	Code         string `json:"code,omitempty"` // of a refusal within a batch
	// late: nobody saw the gateway that the allocation began with, for it was moved from there at once. The epoch is that
	// of the move.
	late bool
}

// Snapshot is a look at the whole cluster.
type Snapshot struct {
	At          time.Duration    `json:"at"`
	Time        time.Time        `json:"time"`
	Quiet       bool             `json:"quiet"` // nobody asked for anything any more, and all faults were taken back
	Index       uint64           `json:"index"`
	Allocations []api.Allocation `json:"allocations"` // with those that have ended
	Gateways    []api.Gateway    `json:"gateways"`
	Pools       []api.Pool       `json:"pools"`           // when quiet, at the index of the gateways
	Hosts       []api.Host       `json:"hosts,omitempty"` // when quiet
}

// NodeState is what one coordinator holds, in short.
type NodeState struct {
	Node  string `json:"node"`
	Index uint64 `json:"index"`
	Hash  string `json:"hash"`
}

// Usage is what one program uses of its machine.
type Usage struct {
	Program    string `json:"program"`
	Kind       string `json:"kind,omitempty"` // programs of one kind may change their parts: any coordinator may lead
	Goroutines int    `json:"goroutines"`
	Files      int    `json:"files"`            // that it has open
	Stored     int    `json:"stored,omitempty"` // files in its data directory
}

// Fault is something that was broken on purpose.
type Fault struct {
	Name string        `json:"name"`
	At   time.Duration `json:"at"` // when it began
	// Clocks are the steps by which it may set the clocks of programs. They differ by more than a run is long.
	Clocks []time.Duration `json:"clocks,omitempty"`
}

// Answer is what the web server of a host answered for an organization.
type Answer struct {
	Host         string `json:"host"`
	Organization string `json:"organization"`
	Status       int    `json:"status"` // 0: no answer
	Gateway      string `json:"gateway,omitempty"`
	Epoch        uint64 `json:"epoch,omitempty"`
	Served       string `json:"served,omitempty"` // the organization that the gateway says it serves
	Error        string `json:"error,omitempty"`
}

// Name is what a coordinator's DNS server answered for an organization.
type Name struct {
	Node         string   `json:"node"`
	Organization string   `json:"organization"`
	Addresses    []string `json:"addresses,omitempty"`
	Error        string   `json:"error,omitempty"` // it gave no answer
}

// Run is one run, from one quiet moment to the next: the clients begin when all is quiet, and what they began
// has ended when it is quiet again. So the pool as a whole is known at both ends.
type Run struct {
	Seed       uint64      `json:"seed"`
	Begun      time.Time   `json:"begun"`
	Faults     []Fault     `json:"faults,omitempty"`
	Before     Snapshot    `json:"before"`
	After      Snapshot    `json:"after"`
	Operations []Operation `json:"operations,omitempty"`
	Samples    []Snapshot  `json:"samples,omitempty"`
	States     []NodeState `json:"states,omitempty"`  // of all coordinators, when quiet
	Answers    []Answer    `json:"answers,omitempty"` // of every host for every organization, when quiet
	Names      []Name      `json:"names,omitempty"`   // of every coordinator for every organization, when quiet
	UsedBefore []Usage     `json:"used_before,omitempty"`
	UsedAfter  []Usage     `json:"used_after,omitempty"`
	// Reports are violations that somebody saw in the act, such as an agent that was to serve one
	// organization with two gateways.
	Reports []string `json:"reports,omitempty"`
}
