package consensus

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Profile names a set of Raft timers. Shorter timers find a dead leader sooner and mistake a starved one
// for dead more often.
type Profile string

// The profiles, as heartbeat / election / leader lease.
const (
	ProfileDefault Profile = "default" // 500/500/250 ms: calm on shared cores
	ProfileFast    Profile = "fast"    // 250/250/125 ms: needs cores of its own
	ProfileSlow    Profile = "slow"    // 1000/1000/500 ms: overloaded or distant machines
)

// timers gives heartbeat, election and lease time-outs.
func (p Profile) timers() (heartbeat, election, lease time.Duration, err error) {
	switch p {
	case ProfileDefault, "":
		return 500 * time.Millisecond, 500 * time.Millisecond, 250 * time.Millisecond, nil
	case ProfileFast:
		return 250 * time.Millisecond, 250 * time.Millisecond, 125 * time.Millisecond, nil
	case ProfileSlow:
		return time.Second, time.Second, 500 * time.Millisecond, nil
	}
	return 0, 0, 0, fmt.Errorf("cannot use Raft profile %q: it is one of default, fast, slow", p)
}

// Peer is one member of the Raft cluster.
type Peer struct {
	ID      string // the node's id, for its whole life
	Address string // host:port that the other members dial
	Voter   bool   // filled by Stats; every peer given to Options votes
}

// Streams accepts connections of other members and makes connections to them.
type Streams interface {
	net.Listener
	Dial(address string, timeout time.Duration) (net.Conn, error)
}

// Store is what the node keeps on its disk besides snapshots: the log, the term and the vote.
type Store interface {
	raft.LogStore
	raft.MonotonicLogStore
	raft.StableStore
	io.Closer
}

// Options configure a Node. They are copied by Open and never changed afterwards.
type Options struct {
	NodeID string // required; must be the one the directory was made with
	Dir    string // required; made if missing; one node, one running process

	// How the members reach this node. Exactly one of Listen, Listener, Stream and Transport.
	Listen    string         // TCP address to bind
	Listener  net.Listener   // an open listener, plain TCP
	Stream    Streams        // an own stream layer, such as mutual TLS
	Transport raft.Transport // a whole transport, for tests in memory; must support pre-vote
	Advertise string         // host:port for the other members; default: the listener's address

	Profile Profile

	// Bootstrap makes a new cluster when the directory holds none yet: of Peers, or of this node alone.
	// It is ignored on a directory with state. Without it an empty node waits until a leader adds it.
	Bootstrap bool
	Peers     []Peer // first voters, this node among them; the same list on each of them

	// FSM is applied to. A raft.BatchingFSM gets whole batches.
	FSM raft.FSM
	// CheckSnapshot reads the payload of a snapshot to its end and says whether FSM could restore it,
	// without changing FSM. RestoreSnapshot asks it first, because the library ends the process when
	// FSM.Restore fails. Nil: only the envelope is checked.
	CheckSnapshot func(io.Reader) error
	// ConvertSnapshot is CheckSnapshot for a state machine that does not restore all of a snapshot as it is:
	// it reads the payload to its end and writes what takes its place. Recover asks it too. Nil: the payload itself.
	ConvertSnapshot func(in io.Reader, out io.Writer) error

	Logger hclog.Logger // default: silent

	// Fence is called once, on a goroutine of its own, when the disk stalls or a write to it fails. The
	// transport is closed by then and nothing is acknowledged any more. It should end the process, and not
	// by Close, which may have to wait for the disk. Nil: the reason is only logged.
	Fence func(reason string)

	// LeaderChanged is called after this node came to know another leader, or that there is none. It must return
	// at once. Several changes may be told of once. Nil: nobody is told.
	LeaderChanged func()

	WriteTimeout      time.Duration // a log write that takes longer fences; default 2 s
	SegmentSize       int           // bytes of one pre-allocated log file; default 4 MiB
	SnapshotThreshold uint64        // entries between snapshots; default 16,384
	TrailingLogs      uint64        // entries kept behind a snapshot for slow followers; default 10,240

	// MinFree is the floor of Room, in bytes, unless a twentieth of the file system is less; default 512 MiB.
	MinFree uint64
	// Free measures a file system: bytes that are free, and its size. Nil in production: the real one.
	Free func(path string) (free, total uint64, err error)

	// WrapStore puts a layer between the node and its disk, to inject faults. Nil in production.
	WrapStore func(Store) Store
}

const (
	defaultWriteTimeout = 2 * time.Second
	defaultSegmentSize  = 4 << 20
	minSegmentSize      = 64 << 10
	defaultThreshold    = 16384
	defaultTrailing     = 10240
	defaultMinFree      = 512 << 20
)

// normalize checks the options and fills the defaults in.
func (o *Options) normalize() error {
	if o.NodeID == "" {
		return errors.New("cannot open the Raft node: it has no node id")
	}
	if o.Dir == "" {
		return errors.New("cannot open the Raft node: it has no data directory")
	}
	if o.FSM == nil {
		return errors.New("cannot open the Raft node: it has no state machine")
	}
	ways := 0
	for _, given := range []bool{o.Listen != "", o.Listener != nil, o.Stream != nil, o.Transport != nil} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return errors.New("cannot open the Raft node: exactly one of Listen, Listener, Stream and Transport must be given")
	}
	if _, _, _, err := o.Profile.timers(); err != nil {
		return err
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = defaultWriteTimeout
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = defaultSegmentSize
	}
	if o.SegmentSize < minSegmentSize {
		return fmt.Errorf("cannot use log files of %d bytes: the least is %d", o.SegmentSize, minSegmentSize)
	}
	if o.SnapshotThreshold == 0 {
		o.SnapshotThreshold = defaultThreshold
	}
	if o.TrailingLogs == 0 {
		o.TrailingLogs = defaultTrailing
	}
	if o.MinFree == 0 {
		o.MinFree = defaultMinFree
	}
	if o.Free == nil {
		o.Free = fileSystem
	}
	if o.LeaderChanged == nil {
		o.LeaderChanged = func() {}
	}
	return o.checkPeers()
}

func (o *Options) checkPeers() error {
	o.Peers = slices.Clone(o.Peers)
	seen := map[string]bool{}
	self := false
	for _, p := range o.Peers {
		if p.ID == "" || p.Address == "" {
			return fmt.Errorf("cannot use peer %q at %q: it needs an id and an address", p.ID, p.Address)
		}
		if seen["id "+p.ID] || seen["address "+p.Address] {
			return fmt.Errorf("cannot use peer %q at %q: another peer has the same id or address", p.ID, p.Address)
		}
		seen["id "+p.ID], seen["address "+p.Address] = true, true
		self = self || p.ID == o.NodeID
	}
	if len(o.Peers) > 0 && !self {
		return fmt.Errorf("cannot use the list of peers: node %q itself is missing from it", o.NodeID)
	}
	return nil
}
