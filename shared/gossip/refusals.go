package gossip

import (
	"bytes"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Refusal is what this node kept out: packets that no key of the pool opens, members of another cluster,
// a second member under a name that is taken.
type Refusal struct {
	From   string // member's name, or address
	Reason string
	Count  uint64
	First  time.Time
	Last   time.Time
}

// maxRefusals bounds what is remembered: anybody can send packets.
const maxRefusals = 64

// refusals counts what was kept out, by whom and why, and logs the first of each.
type refusals struct {
	log hclog.Logger

	mu    sync.Mutex
	known map[[2]string]*Refusal // guarded by mu
}

func newRefusals(log hclog.Logger) *refusals {
	return &refusals{log: log, known: map[[2]string]*Refusal{}}
}

// note counts one. An address counts without its port, which is another one for each connection.
func (r *refusals) note(from, reason string) {
	now := time.Now()
	key := [2]string{from, reason}
	r.mu.Lock()
	had, ok := r.known[key]
	if !ok {
		if len(r.known) >= maxRefusals {
			r.dropOldest()
		}
		had = &Refusal{From: from, Reason: reason, First: now}
		r.known[key] = had
	}
	had.Count++
	had.Last = now
	r.mu.Unlock()
	if !ok {
		r.log.Warn("gossip refused", "from", from, "reason", reason)
	}
}

// dropOldest makes room; the caller holds mu.
func (r *refusals) dropOldest() {
	var oldest [2]string
	var at time.Time
	for key, had := range r.known {
		if at.IsZero() || had.Last.Before(at) {
			oldest, at = key, had.Last
		}
	}
	delete(r.known, oldest)
}

// list gives all, the latest first.
func (r *refusals) list() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Refusal, 0, len(r.known))
	for _, had := range r.known {
		out = append(out, *had)
	}
	slices.SortFunc(out, func(a, b Refusal) int { return b.Last.Compare(a.Last) })
	return out
}

// hostOf is an address without its port.
func hostOf(a net.Addr) string {
	if a == nil {
		return "unknown"
	}
	return withoutPort(a.String())
}

func withoutPort(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return s
}

// ReasonKey is the reason of a Refusal whose sender has no key of the pool, or none at all.
const ReasonKey = "no key of this pool opens what it sent"

// The library tells of what it cannot decrypt only in its log. A test with the real library keeps these
// expressions true.
var (
	undecryptable = regexp.MustCompile(`(?i)decrypt|encryption is configured|no installed keys`)
	origin        = regexp.MustCompile(`from=(\S+)`)
	level         = regexp.MustCompile(`^\[(TRACE|DEBUG|INFO|WARN|ERR|ERROR)\] *`)
)

// logSink takes the library's log lines: levels become hclog's, one step lower than the library thinks
// for what is the daily life of a pool.
type logSink struct {
	log      hclog.Logger
	refusals *refusals
}

// Write takes one line.
func (s logSink) Write(p []byte) (int, error) {
	line := string(bytes.TrimSpace(p))
	found := level.FindString(line)
	text := strings.TrimPrefix(line, found)
	text = strings.TrimPrefix(strings.TrimPrefix(text, "serf: "), "memberlist: ")
	if undecryptable.MatchString(text) {
		if from := origin.FindStringSubmatch(text); from != nil {
			s.refusals.note(withoutPort(from[1]), ReasonKey)
		}
	}
	switch strings.Trim(found, "[] ") {
	case "ERR", "ERROR":
		s.log.Warn("gossip library", "says", text)
	case "WARN":
		s.log.Info("gossip library", "says", text)
	case "INFO":
		s.log.Debug("gossip library", "says", text)
	default:
		s.log.Trace("gossip library", "says", text)
	}
	return len(p), nil
}
