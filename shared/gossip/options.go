package gossip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Role is what a member of the pool is.
type Role string

// The roles. A member's name in the pool begins with its role, so a host's agent and a coordinator of the
// same name are two members.
const (
	RoleCoordinator Role = "coordinator"
	RoleAgent       Role = "agent"
)

// Profile names a set of timers. Shorter ones find a dead member sooner and cost more packets.
type Profile string

// The profiles, with the time from the end of a member to the moment the others know (median, two to five
// members).
const (
	ProfileDefault Profile = "default" // about 1.2 s
	ProfileSlow    Profile = "slow"    // about 2.3 s: overloaded machines
	ProfileDistant Profile = "distant" // about 6 s: the library's own timers, for lines with long delays
)

// timers are what a profile decides.
type timers struct {
	probe, timeout     time.Duration // between probes, and for an answer
	suspicion, most    int           // multipliers of the time to refute a suspicion
	gossip, pushPull   time.Duration
	stream             time.Duration // of one TCP exchange
	broadcast, linger  time.Duration // patience with a broadcast, and after a leave
	reconnect, rejoin  time.Duration // to failed members, and to seeds that are no members
	conflict, reclaims time.Duration // patience with a taken name; how long a name stays a dead member's
}

func (p Profile) timers() (timers, error) {
	const ms = time.Millisecond
	fast := timers{
		probe: 200 * ms, timeout: 100 * ms, suspicion: 4, most: 3, gossip: 50 * ms, pushPull: 15 * time.Second,
		stream: 3 * time.Second, broadcast: 2 * time.Second, linger: 500 * ms,
		reconnect: 2 * time.Second, rejoin: 10 * time.Second, conflict: 10 * time.Second, reclaims: 100 * ms,
	}
	switch p {
	case ProfileDefault, "":
		return fast, nil
	case ProfileSlow:
		slow := fast
		slow.probe, slow.timeout, slow.suspicion, slow.gossip = 500*ms, 200*ms, 3, 100*ms
		slow.conflict = 20 * time.Second
		return slow, nil
	case ProfileDistant:
		distant := fast
		distant.probe, distant.timeout, distant.most, distant.gossip = time.Second, 500*ms, 6, 200*ms
		distant.pushPull, distant.stream, distant.broadcast = 30*time.Second, 10*time.Second, 5*time.Second
		distant.linger, distant.reconnect, distant.conflict = time.Second, 10*time.Second, time.Minute
		return distant, nil
	}
	return timers{}, fmt.Errorf("cannot use gossip profile %q: it is one of default, slow, distant", p)
}

// Options configure a Node. They are copied by Start and never changed afterwards.
type Options struct {
	Role    Role
	Name    string  // unique among the members of this role, for the node's whole life; an agent's is its host id
	Host    id.Host // the machine; an agent's must be its name; empty for a coordinator on no known host
	Cluster string  // id of the cluster: 1 to 36 of [a-z0-9-]; members of another one are refused
	Version string  // of the program; cut to 32 bytes

	Bind      netip.AddrPort // TCP and UDP; port 0 takes a free one
	Advertise netip.AddrPort // what the others dial; default: Bind. Needed when Bind is all addresses

	Seeds   []string       // host:port of members to join through; may hold this node's own
	Allowed []netip.Prefix // where packets may come from; default: loopback if Bind is, else anywhere

	// Dir keeps the keyring and the list of members to come back to; it must exist. Empty: nothing
	// survives a restart.
	Dir string
	// Key begins the keyring when Dir has none yet. Afterwards the file counts, because keys are rotated.
	Key Key
	// Dev allows a pool without a key, on loopback addresses only.
	Dev bool

	Tags    map[string]string // published beside what is built in, such as addresses of other ports
	Profile Profile
	// TagInterval is the least average time between two changes of the published tags; default 1 s.
	TagInterval time.Duration
	Logger      hclog.Logger
}

// TooFast is the shortest TagInterval: each change costs every member a packet.
const tooFast = 50 * time.Millisecond

// normalize checks the options and fills the defaults in.
func (o *Options) normalize() error {
	if o.Role != RoleCoordinator && o.Role != RoleAgent {
		return fmt.Errorf("cannot start the gossip: role %q is not one of coordinator, agent", o.Role)
	}
	if _, err := id.ParseHost(o.Name); err != nil {
		return fmt.Errorf("cannot start the gossip: its name: %w", err)
	}
	if o.Role == RoleAgent && o.Host == "" {
		o.Host = id.Host(o.Name)
	}
	if o.Role == RoleAgent && string(o.Host) != o.Name {
		return fmt.Errorf("cannot start the gossip: an agent's name %q must be its host id %q, so that no host is there twice", o.Name, o.Host)
	}
	if !clusterForm(o.Cluster) {
		return fmt.Errorf("cannot start the gossip: cluster id %q is not 1 to 36 of [a-z0-9-]", o.Cluster)
	}
	if len(o.Version) > maxVersion {
		o.Version = o.Version[:maxVersion]
	}
	if err := o.checkAddresses(); err != nil {
		return err
	}
	if o.TagInterval == 0 {
		o.TagInterval = time.Second
	}
	if o.TagInterval < tooFast {
		return fmt.Errorf("cannot start the gossip: tags every %v: the least is %v", o.TagInterval, tooFast)
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	_, err := o.Profile.timers()
	return err
}

func (o *Options) checkAddresses() error {
	if !o.Bind.IsValid() {
		return errors.New("cannot start the gossip: it has no address to bind")
	}
	if o.Bind.Addr().IsUnspecified() && !o.Advertise.IsValid() {
		return fmt.Errorf("cannot start the gossip: bound to %s, it needs an address to advertise", o.Bind)
	}
	if o.Advertise.IsValid() && (o.Advertise.Addr().IsUnspecified() || o.Advertise.Port() == 0) {
		return fmt.Errorf("cannot start the gossip: nobody can dial the advertised address %s", o.Advertise)
	}
	loopback := o.Bind.Addr().IsLoopback() && (!o.Advertise.IsValid() || o.Advertise.Addr().IsLoopback())
	if o.Dev && !loopback {
		return fmt.Errorf("cannot start the gossip for development on %s: without a key only loopback addresses are used", o.Bind)
	}
	if len(o.Allowed) == 0 && loopback {
		o.Allowed = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	return CheckSeeds(o.Seeds)
}

// CheckSeeds refuses what is no address (host:port) of a member.
func CheckSeeds(seeds []string) error {
	for _, seed := range seeds {
		if _, _, err := net.SplitHostPort(seed); err != nil {
			return fmt.Errorf("cannot join the pool through %.100q: it is not host:port", seed)
		}
	}
	return nil
}

// poolName is what the library knows a member as.
func poolName(role Role, name string) string { return string(role) + "." + name }

// splitName is the reverse of poolName.
func splitName(s string) (role Role, name string, err error) {
	before, name, _ := strings.Cut(s, ".")
	role = Role(before)
	if role != RoleCoordinator && role != RoleAgent {
		return "", "", fmt.Errorf("%q does not begin with a role", s)
	}
	_, err = id.ParseHost(name)
	return role, name, err
}

func clusterForm(s string) bool {
	return s != "" && len(s) <= 36 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// config is what the library gets.
func (o *Options) config(t timers, keys *memberlist.Keyring) *serf.Config {
	list := memberlist.DefaultLANConfig()
	list.ProbeInterval, list.ProbeTimeout = t.probe, t.timeout
	list.SuspicionMult, list.SuspicionMaxTimeoutMult = t.suspicion, t.most
	list.GossipInterval, list.PushPullInterval, list.TCPTimeout = t.gossip, t.pushPull, t.stream
	list.DeadNodeReclaimTime = t.reclaims
	list.EnableCompression = false // saves little on messages this short, and what is not sent needs no limit
	list.RequireNodeNames = false
	list.BindAddr, list.BindPort = o.Bind.Addr().String(), int(o.Bind.Port())
	if o.Advertise.IsValid() {
		list.AdvertiseAddr, list.AdvertisePort = o.Advertise.Addr().String(), int(o.Advertise.Port())
	}
	list.Keyring = keys
	list.GossipVerifyIncoming, list.GossipVerifyOutgoing = true, true
	for _, p := range o.Allowed {
		list.CIDRsAllowed = append(list.CIDRsAllowed, net.IPNet{
			IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		})
	}
	conf := serf.DefaultConfig()
	conf.Init()
	conf.MemberlistConfig = list
	conf.NodeName = poolName(o.Role, o.Name)
	conf.ValidateNodeNames = true
	conf.BroadcastTimeout, conf.LeavePropagateDelay = t.broadcast, t.linger
	conf.ReconnectInterval = t.reconnect
	conf.QueryTimeoutMult = int(queryTime / t.gossip)
	conf.MinQueueDepth = 4096
	conf.UserEventSizeLimit = 0 // no commands ever go over gossip
	conf.DisableCoordinates = true
	// With nobody else to ask, the library's vote shuts both down; here the first one stays (Join).
	conf.EnableNameConflictResolution = false
	return conf
}

// queryTime is how long answers about keys are waited for in a pool of up to nine; it grows with the
// logarithm of the pool.
const queryTime = 3 * time.Second
