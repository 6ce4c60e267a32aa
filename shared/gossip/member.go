package gossip

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Status is what the pool thinks of a member.
type Status string

// The statuses. Failed is a suspicion for everybody outside this package: the member stopped answering
// probes, its own and those of others, and did not deny it. Only a second signal makes a host lost.
const (
	StatusAlive  Status = "alive"
	StatusFailed Status = "failed"
	StatusLeft   Status = "left" // on purpose
)

// Member is one member of the pool, as this node knows it.
type Member struct {
	Role    Role
	Name    string
	Host    id.Host // empty: a coordinator on no known host
	Address netip.AddrPort
	Status  Status
	Since   time.Time // when this node saw it take its status
	Flaps   int       // how often this start of it failed and came back within FlapWindow
	Self    bool      // it is this node

	Version string            // of its program
	Run     string            // differs from start to start
	Keys    []Fingerprint     // that it has on its disk, the one in use first; none: gossip without key
	Tags    map[string]string // beside the built-in ones
	Digest  Digest
	// DigestError says why Digest is empty: "none" before the first, or that a newer version wrote it.
	DigestError string
}

// id names a member in the pool.
func (m Member) id() string { return poolName(m.Role, m.Name) }

const (
	maxVersion = 32
	maxTags    = memberlist.MetaMaxSize // of all tags of a member, encoded
)

// The keys of the tags on the wire. They are for ever: older members read them.
const (
	tagCluster = "c"
	tagHost    = "h" // a coordinator's; an agent's is its name
	tagVersion = "v"
	tagRun     = "b"
	tagKeys    = "k"
	tagDigest  = "d"
	tagExtra   = "x." // begins the key of a tag given by the user of the package
)

// newRun makes what tells one start from the next.
func newRun() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// tags are what a node publishes of itself.
type tags struct {
	opts   *Options
	run    string
	keys   []Fingerprint
	digest string
	extra  map[string]string
}

// encode gives the tags for the library, or an error if they are too long together.
func (t tags) encode() (map[string]string, error) {
	out := map[string]string{tagCluster: t.opts.Cluster, tagRun: t.run}
	set := func(key, value string) {
		if value != "" {
			out[key] = value
		}
	}
	if t.opts.Role == RoleCoordinator {
		set(tagHost, string(t.opts.Host))
	}
	set(tagVersion, t.opts.Version)
	set(tagDigest, t.digest)
	var prints []string
	for _, p := range t.keys {
		prints = append(prints, string(p))
	}
	set(tagKeys, strings.Join(prints, ","))
	for key, value := range t.extra {
		out[tagExtra+key] = value
	}
	if n := encodedSize(out); n > maxTags {
		return nil, fmt.Errorf("cannot publish tags of %d bytes: the most is %d", n, maxTags)
	}
	return out, nil
}

// encodedSize is an upper bound of what the library makes of tags: a mark, a map, and strings with up to
// three bytes of length each.
func encodedSize(m map[string]string) int {
	n := 1 + 3
	for k, v := range m {
		n += header(k) + len(k) + header(v) + len(v)
	}
	return n
}

func header(s string) int {
	if len(s) < 32 {
		return 1
	}
	return 3
}

// parse makes a Member of what the library knows. It fails on a member that is none of this cluster's.
func parse(m serf.Member, cluster string) (Member, error) {
	role, name, err := splitName(m.Name)
	if err != nil {
		return Member{}, err
	}
	if got := m.Tags[tagCluster]; got != cluster {
		if !clusterForm(got) {
			return Member{}, fmt.Errorf("it says no cluster id")
		}
		return Member{}, fmt.Errorf("%w %s, this is %s", errForeign, got, cluster)
	}
	out := Member{Role: role, Name: name, Version: m.Tags[tagVersion], Run: m.Tags[tagRun], Status: statusOf(m.Status)}
	if out.Address, err = address(m.Addr, m.Port); err != nil {
		return Member{}, err
	}
	if len(out.Version) > maxVersion || len(out.Run) > 2*maxVersion {
		return Member{}, fmt.Errorf("its version or run is too long")
	}
	host := m.Tags[tagHost]
	if role == RoleAgent {
		host = name
	}
	if host != "" {
		if out.Host, err = id.ParseHost(host); err != nil {
			return Member{}, err
		}
	}
	if out.Keys, err = parsePrints(m.Tags[tagKeys]); err != nil {
		return Member{}, err
	}
	out.Digest, out.DigestError = readDigest(m.Tags[tagDigest])
	for key, value := range m.Tags {
		if extra, ok := strings.CutPrefix(key, tagExtra); ok {
			if out.Tags == nil {
				out.Tags = map[string]string{}
			}
			out.Tags[extra] = value
		}
	}
	return out, nil
}

// readDigest bears what it cannot read: a host is no less alive because its agent is newer.
func readDigest(s string) (Digest, string) {
	if s == "" {
		return Digest{}, "none"
	}
	d, err := ParseDigest(s)
	if err != nil {
		return Digest{}, err.Error()
	}
	return d, ""
}

func parsePrints(s string) ([]Fingerprint, error) {
	if s == "" {
		return nil, nil
	}
	var out []Fingerprint
	for _, p := range strings.Split(s, ",") {
		if b, err := hex.DecodeString(p); err != nil || len(b) != 4 || len(out) == maxKeys {
			return nil, fmt.Errorf("its list of keys %q is none", s)
		}
		out = append(out, Fingerprint(p))
	}
	return out, nil
}

func address(ip net.IP, port uint16) (netip.AddrPort, error) {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || port == 0 {
		return netip.AddrPort{}, fmt.Errorf("its address %v port %d is none", ip, port)
	}
	return netip.AddrPortFrom(a.Unmap(), port), nil
}

// statusOf translates the library's status. One who is leaving still serves until it has left.
func statusOf(s serf.MemberStatus) Status {
	switch s {
	case serf.StatusFailed:
		return StatusFailed
	case serf.StatusLeft:
		return StatusLeft
	}
	return StatusAlive
}

// clone keeps callers from sharing maps and slices with this package.
func (m Member) clone() Member {
	m.Keys = append([]Fingerprint(nil), m.Keys...)
	m.Tags = maps.Clone(m.Tags)
	m.Digest.Gateways = maps.Clone(m.Digest.Gateways)
	m.Digest.Problems = append([]Problem(nil), m.Digest.Problems...)
	return m
}
