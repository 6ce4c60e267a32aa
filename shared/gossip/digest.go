package gossip

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// Digest is the health of a host in a few bytes: what every coordinator should know of it without asking.
// It decides nothing by itself; what counts is what the agent reports.
type Digest struct {
	Generation  uint64            // of the live nginx configuration
	Gateways    map[string]uint32 // how many in each state (api.Gateway…); none: left out
	RouteDigest uint64            // changes with any route of the host
	LoadPercent uint32            // runnable processes of the last minute per CPU, in percent
	DiskFreeMiB uint32            // where the agent keeps its data
	Problems    []Problem         // why the host is not fit to serve; sorted; none: it is
}

// Problem is a reason why a host is not fit to serve.
type Problem string

// The problems. Letters are for ever; new ones are only appended.
const (
	ProblemDisk  Problem = "disk"  // too little space for state and logs
	ProblemLoad  Problem = "load"  // far more runnable processes than CPUs, for minutes
	ProblemNginx Problem = "nginx" // not running, or not serving its newest generation
)

// letters of the short form: append-only, never reused.
var (
	stateLetters = map[byte]string{
		'p': api.GatewayPending, 's': api.GatewayStarting, 'r': api.GatewayReady, 'v': api.GatewayReserved,
		'a': api.GatewayAllocated, 'd': api.GatewayDraining, 'c': api.GatewayRecycling, 'u': api.GatewayUnhealthy,
		'l': api.GatewayLost, 'n': api.GatewayReconciling, 'f': api.GatewayFailed, 'q': api.GatewayQuarantined,
		't': api.GatewayTerminating, 'e': api.GatewayTerminated,
	}
	problemLetters = map[byte]Problem{'d': ProblemDisk, 'l': ProblemLoad, 'n': ProblemNginx}
)

// digestVersion begins every digest. A reader of another version says that it cannot read it.
const digestVersion = "1"

// maxDigest bounds a digest so that the tags of a member, all together, fit into their 512 bytes.
const maxDigest = 256

// Encode gives the short form: "1;g42;p-r3a12;t00000000000000ff;l35;d10240;x".
func (d Digest) Encode() (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s;g%d;p", digestVersion, d.Generation)
	known := 0
	for _, letter := range sortedKeys(stateLetters) {
		n, ok := d.Gateways[stateLetters[letter]]
		if ok {
			known++
		}
		if n > 0 {
			fmt.Fprintf(&b, "%c%d", letter, n)
		}
	}
	if known != len(d.Gateways) {
		return "", fmt.Errorf("cannot write a digest with gateways in an unknown state: %v", d.Gateways)
	}
	fmt.Fprintf(&b, ";t%016x;l%d;d%d;x", d.RouteDigest, d.LoadPercent, d.DiskFreeMiB)
	problems := 0
	for _, letter := range sortedKeys(problemLetters) {
		if slices.Contains(d.Problems, problemLetters[letter]) {
			problems++
			b.WriteByte(letter)
		}
	}
	if problems != len(d.Problems) {
		return "", fmt.Errorf("cannot write a digest with unknown or repeated problems: %v", d.Problems)
	}
	if b.Len() > maxDigest {
		return "", fmt.Errorf("cannot write a digest of %d bytes: the most is %d", b.Len(), maxDigest)
	}
	return b.String(), nil
}

// ParseDigest reads the short form. A digest has one form only: what Encode would not write is refused.
func ParseDigest(s string) (Digest, error) {
	if len(s) > maxDigest {
		return Digest{}, fmt.Errorf("cannot read a digest of %d bytes: the most is %d", len(s), maxDigest)
	}
	parts := strings.Split(s, ";")
	if parts[0] != digestVersion {
		return Digest{}, fmt.Errorf("cannot read a digest of version %q", parts[0])
	}
	marks := []string{"g", "p", "t", "l", "d", "x"}
	if len(parts) != 1+len(marks) {
		return Digest{}, fmt.Errorf("cannot read the digest %q: it has %d parts", s, len(parts))
	}
	var d Digest
	var err error
	for i, mark := range marks {
		value, ok := strings.CutPrefix(parts[1+i], mark)
		if !ok {
			return Digest{}, fmt.Errorf("cannot read the digest %q: part %q does not begin with %s", s, parts[1+i], mark)
		}
		if err = d.take(mark, value); err != nil {
			return Digest{}, fmt.Errorf("cannot read the digest %q: part %q: %w", s, parts[1+i], err)
		}
	}
	if again, err := d.Encode(); err != nil || again != s {
		return Digest{}, fmt.Errorf("cannot read the digest %q: it should be written %q", s, again)
	}
	return d, nil
}

// take reads one part.
func (d *Digest) take(mark, value string) (err error) {
	switch mark {
	case "g":
		d.Generation, err = strconv.ParseUint(value, 10, 64)
	case "t":
		d.RouteDigest, err = strconv.ParseUint(value, 16, 64)
	case "l":
		d.LoadPercent, err = parse32(value)
	case "d":
		d.DiskFreeMiB, err = parse32(value)
	case "p":
		d.Gateways, err = parseCounts(value)
	case "x":
		for i := range len(value) {
			p, ok := problemLetters[value[i]]
			if !ok {
				return fmt.Errorf("unknown problem %q", value[i])
			}
			d.Problems = append(d.Problems, p)
		}
	}
	return err
}

func parse32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

func parseCounts(s string) (map[string]uint32, error) {
	var counts map[string]uint32
	for s != "" {
		state, ok := stateLetters[s[0]]
		if !ok {
			return nil, fmt.Errorf("unknown state %q", s[0])
		}
		end := 1
		for end < len(s) && s[end] >= '0' && s[end] <= '9' {
			end++
		}
		n, err := parse32(s[1:end])
		if err != nil {
			return nil, err
		}
		if counts == nil {
			counts = map[string]uint32{}
		}
		counts[state] = n
		s = s[end:]
	}
	return counts, nil
}

func sortedKeys[V any](m map[byte]V) []byte {
	keys := make([]byte, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
