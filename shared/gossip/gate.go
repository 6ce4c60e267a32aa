package gossip

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/serf/serf"
)

// gate says who may be a member, and what of an earlier run is believed.
type gate struct{ n *Node }

// errForeign is in the error of a member that belongs elsewhere.
var errForeign = errors.New("it belongs to the cluster")

// NotifyMerge is asked by the library about members before it believes in them. One of another cluster
// refuses a whole exchange with its pool; one that cannot be read is left out alone.
func (g gate) NotifyMerge(members []*serf.Member) error {
	n := g.n
	for _, m := range members {
		parsed, err := parse(*m, n.opts.Cluster)
		if err != nil {
			n.refusals.note(m.Name, err.Error())
			if len(members) == 1 || errors.Is(err, errForeign) {
				return fmt.Errorf("cannot take %s at %s:%d for a member: %w", m.Name, m.Addr, m.Port, err)
			}
			continue
		}
		n.meet(parsed)
	}
	return nil
}

// meet looks whether a name is claimed from two addresses. The library keeps the first as long as it lives;
// it may be the past of the second, whose end nobody has noticed yet.
func (n *Node) meet(m Member) {
	n.mu.Lock()
	self := m.id() == n.track.self
	known, ok := n.track.members[m.id()]
	taken := ok && known.member.Status == StatusAlive && known.member.Address != m.Address
	if self && m.Address != n.self {
		taken = true
		n.contested, n.claimant = time.Now(), m.Address
	}
	n.mu.Unlock()
	if taken && m.Status != StatusLeft {
		n.refusals.note(m.Address.String(), "it has the name of the live member "+m.id())
	}
}

const (
	snapshotFile = "gossip.snapshot"
	maxSnapshot  = 1 << 20
)

// snapshotWords begin the lines that the library writes.
var snapshotWords = []string{"alive:", "not-alive:", "clock:", "event-clock:", "query-clock:", "coordinate:", "leave", "#"}

// checkSnapshot mends the list of earlier members: it is a cache, and no reason not to start. Lines that are
// none are dropped, with the damaged file put aside.
func (n *Node) checkSnapshot(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var sound strings.Builder
	for line := range strings.Lines(string(data[:min(len(data), maxSnapshot)])) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if slices.Contains(snapshotWords, word) && strings.HasSuffix(line, "\n") {
			sound.WriteString(line)
		}
	}
	if err == nil && sound.Len() == len(data) {
		return nil
	}
	n.log.Warn("the list of earlier members is damaged and put aside", "file", path, "error", err)
	if err := os.Rename(path, path+".damaged"); err != nil {
		return fmt.Errorf("cannot put the damaged list of earlier members aside: %w", err)
	}
	return os.WriteFile(path, []byte(sound.String()), 0o600)
}
