// Package health tells whether this host is fit to serve. Assess is the decision, pure; Monitor samples the
// host, asks it, and publishes what changed in the tags of the gossip.
package health

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// Publisher takes a digest to the pool. It never blocks, and bounds the rate by itself.
type Publisher interface {
	SetDigest(gossip.Digest) error
}

// Serving is what the rest of the agent knows of the host's work.
type Serving struct {
	Generation  uint64            // of the live nginx configuration
	NginxOK     bool              // it runs and serves its newest generation
	Gateways    map[string]uint32 // by state (api.Gateway…)
	RouteDigest uint64
}

// Machine is what the system says of the host.
type Machine struct {
	CPUs        int
	Load        float64 // runnable processes, average of the last minute
	LongLoad    float64 // of the last five minutes
	DiskFree    uint64  // bytes that this program may still use
	DiskSize    uint64
	DiskUnknown bool // the system does not say
	LoadUnknown bool
}

// Limits of fitness.
type Limits struct {
	DiskFree    uint64 // bytes; less is too little
	DiskPercent uint64 // of the disk's size; less is too little, if it is less than DiskFree too
	LoadPerCPU  float64
}

// DefaultLimits leave the agent room for state and logs, and the host time to answer.
func DefaultLimits() Limits {
	return Limits{DiskFree: 512 << 20, DiskPercent: 5, LoadPerCPU: 8}
}

// Assess makes the digest of a host. What is not known is no problem: a host is not unfit because it runs
// where the system does not say. now is the problems of the last time: a problem ends only when its cause
// is well away from the limit, so that a host at the limit does not change its mind all the time.
func Assess(s Serving, m Machine, l Limits, before []gossip.Problem) gossip.Digest {
	d := gossip.Digest{Generation: s.Generation, Gateways: s.Gateways, RouteDigest: s.RouteDigest}
	had := func(p gossip.Problem) bool {
		for _, b := range before {
			if b == p {
				return true
			}
		}
		return false
	}
	if !m.DiskUnknown {
		d.DiskFreeMiB = uint32(min(m.DiskFree>>20, 1<<32-1))
		least := min(l.DiskFree, m.DiskSize/100*l.DiskPercent)
		if had(gossip.ProblemDisk) {
			least += least / 4
		}
		if m.DiskFree < least {
			d.Problems = append(d.Problems, gossip.ProblemDisk)
		}
	}
	if !m.LoadUnknown && m.CPUs > 0 {
		d.LoadPercent = uint32(min(m.Load*100/float64(m.CPUs), 1<<31))
		most := l.LoadPerCPU
		if had(gossip.ProblemLoad) {
			most *= 0.75
		}
		if m.LongLoad/float64(m.CPUs) > most {
			d.Problems = append(d.Problems, gossip.ProblemLoad)
		}
	}
	if !s.NginxOK {
		d.Problems = append(d.Problems, gossip.ProblemNginx)
	}
	return d
}

// Options configure a Monitor. Root is for tests; the other fields are needed.
type Options struct {
	DataDir   string         // whose disk is looked at
	Serving   func() Serving // must be quick and must not block
	Publisher Publisher
	Limits    Limits
	Every     time.Duration // between two looks at the host
	Root      string        // of the file system in which proc is found; default "/"
	Logger    hclog.Logger
}

// Monitor looks at the host at a steady rate.
type Monitor struct {
	opts   Options
	last   gossip.Digest
	sent   bool
	nudged chan struct{}
}

// New makes a Monitor.
func New(opts Options) *Monitor {
	if opts.Root == "" {
		opts.Root = "/"
	}
	return &Monitor{opts: opts, nudged: make(chan struct{}, 1)}
}

// Nudge has the monitor look now, because something changed. It never blocks.
func (m *Monitor) Nudge() {
	select {
	case m.nudged <- struct{}{}:
	default:
	}
}

// Run publishes what it sees until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	tick := time.NewTicker(m.opts.Every)
	defer tick.Stop()
	for {
		m.look()
		select {
		case <-ctx.Done():
			return
		case <-m.nudged:
		case <-tick.C:
		}
	}
}

// look samples once and publishes what is worth a packet to every member.
func (m *Monitor) look() {
	d := Assess(m.opts.Serving(), m.sample(), m.opts.Limits, m.last.Problems)
	if m.sent && !Differs(m.last, d) {
		return
	}
	if err := m.opts.Publisher.SetDigest(d); err != nil {
		m.opts.Logger.Error("cannot publish the health of this host", "error", err)
		return
	}
	if len(d.Problems) > 0 && fmt.Sprint(d.Problems) != fmt.Sprint(m.last.Problems) {
		m.opts.Logger.Warn("this host is not fit to serve", "problems", d.Problems)
	}
	m.last, m.sent = d, true
}

// Differs reports whether the change from one digest to the next is worth telling. Load and disk move all
// the time: less than a tenth, or 25 % of a CPU, or 256 MiB, is not.
func Differs(a, b gossip.Digest) bool {
	if apart(a.LoadPercent, b.LoadPercent, 25) || apart(a.DiskFreeMiB, b.DiskFreeMiB, 256) {
		return true
	}
	a.LoadPercent, a.DiskFreeMiB = b.LoadPercent, b.DiskFreeMiB
	x, errX := a.Encode()
	y, errY := b.Encode()
	return x != y || (errX == nil) != (errY == nil)
}

func apart(a, b, least uint32) bool {
	far := max(a, b) - min(a, b)
	return far >= least && far >= max(a, b)/10
}

// sample asks the system.
func (m *Monitor) sample() Machine {
	out := Machine{CPUs: runtime.NumCPU(), LoadUnknown: true, DiskUnknown: true}
	var disk unix.Statfs_t
	if err := unix.Statfs(m.opts.DataDir, &disk); err == nil {
		out.DiskUnknown = false
		out.DiskFree, out.DiskSize = disk.Bavail*uint64(disk.Bsize), disk.Blocks*uint64(disk.Bsize)
	} else {
		m.opts.Logger.Debug("cannot see how full the disk is", "directory", m.opts.DataDir, "error", err)
	}
	data, err := os.ReadFile(filepath.Join(m.opts.Root, "proc/loadavg"))
	if err == nil {
		out.Load, out.LongLoad, err = parseLoad(data)
	}
	if err != nil {
		m.opts.Logger.Debug("cannot see the load", "error", err)
		return out
	}
	out.LoadUnknown = false
	return out
}

// mostLoad is above every number of processes that a machine can have (proc(5), pid_max).
const mostLoad = 1 << 22

// parseLoad reads /proc/loadavg (proc(5)): averages over 1, 5 and 15 minutes come first.
func parseLoad(data []byte) (one, five float64, err error) {
	fields := bytes.Fields(data)
	if len(fields) < 3 {
		return 0, 0, fmt.Errorf("cannot read the load from %.100q", data)
	}
	if one, err = strconv.ParseFloat(string(fields[0]), 64); err == nil {
		five, err = strconv.ParseFloat(string(fields[1]), 64)
	}
	if err != nil || !(one >= 0 && one <= mostLoad && five >= 0 && five <= mostLoad) {
		return 0, 0, fmt.Errorf("cannot read the load from %.100q", data)
	}
	return one, five, nil
}
