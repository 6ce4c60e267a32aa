//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// settle is how long routes and names may differ from a state that does not change any more.
const settle = 30 * time.Second

// look takes a snapshot through a coordinator. Only live allocations are in it, unless all are wanted.
func (c *cluster) look(n *node, begun time.Time, all bool) (check.Snapshot, error) {
	ctx, cancel := within(5 * time.Second)
	defer cancel()
	s := check.Snapshot{}
	var err error
	if s.Allocations, err = n.api.ListAllocations(ctx, client.AllocationFilter{Live: !all}, client.Consistency("consistent")); err != nil {
		return s, err
	}
	s.Time = time.Now()
	s.At = s.Time.Sub(begun)
	return s, nil
}

// quiet waits until nothing happens any more and all coordinators agree on it, and looks at everything. Routes and
// names get settle after that to follow.
func (c *cluster) quiet(r *check.Run) {
	c.t.Helper()
	var since time.Time
	c.await("quiet", func() error {
		for _, n := range c.nodes { // one that ended itself because of its disk is started again by systemd
			if err := n.Start(); err != nil {
				return err
			}
		}
		leader, err := c.leader()
		if err != nil {
			return err
		}
		if r.After, err = c.whole(leader, r.Begun); err != nil {
			return err
		}
		if since.IsZero() {
			since = time.Now()
		}
		ctx, cancel := within(patience)
		defer cancel()
		r.Answers, r.Names = c.answers(ctx), c.names(ctx)
		if r.States, err = c.states(); err != nil {
			return err
		}
		if slices.ContainsFunc(r.States, func(s check.NodeState) bool { return s.Index != r.After.Index }) {
			return fmt.Errorf("indexes differ from %d: %+v", r.After.Index, r.States)
		}
		if wrong := check.Unsettled(*r); len(wrong) > 0 && time.Since(since) < settle {
			return errors.New(wrong[0].String())
		}
		return nil
	})
	r.After.Quiet = true
}

// used is the least that each program is seen to use within some seconds when quiet: connections end by and by. Those of a
// partition do so late, so while it is more than before, the look goes on for settle.
func (c *cluster) used(before []check.Usage) []check.Usage {
	c.t.Helper()
	for _, n := range c.nodes {
		n.http.CloseIdleConnections()
	}
	var least []check.Usage
	for begun := time.Now(); ; waitFor(c.ctx, 100*time.Millisecond) {
		var now []check.Usage
		c.await("what the programs use", func() (err error) { // a busy machine may keep one from saying it in time
			now, err = c.using()
			return err
		})
		if least == nil {
			least = now
		}
		for i, u := range now {
			if u.Files+u.Goroutines < least[i].Files+least[i].Goroutines {
				least[i] = u
			}
		}
		gone := time.Since(begun)
		if gone > settle || gone > 2*time.Second && len(check.Grown(check.Run{UsedBefore: before, UsedAfter: least})) == 0 {
			return least
		}
	}
}

// using is what each program uses now.
func (c *cluster) using() ([]check.Usage, error) {
	var out []check.Usage
	note := func(kind, data string, p *lab.Program, metrics []byte, err error) error {
		if err != nil {
			return err
		}
		u := check.Usage{Program: p.Name, Kind: kind}
		if u.Goroutines, err = goroutines(metrics); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		u.Files, err = p.Files()
		u.Stored = stored(data)
		out = append(out, u)
		return err
	}
	for _, n := range c.nodes {
		metrics, err := c.fetch(n, "/metrics")
		if err = note("coordinator", n.dir, n.Program, metrics, err); err != nil {
			return nil, err
		}
	}
	for _, h := range c.hosts {
		metrics, err := h.metrics(c.ctx)
		if err = note("agent", h.dir, h.agent, metrics, err); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// stored counts the files below a directory, in which programs are at work.
func stored(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error { // what is gone is not there
		if err == nil {
			n++
		}
		return nil
	})
	return n
}

// whole looks at everything at one index, and fails while something is on its way.
func (c *cluster) whole(n *node, begun time.Time) (check.Snapshot, error) {
	before, err := c.state(n)
	if err != nil {
		return check.Snapshot{}, err
	}
	look, err := c.look(n, begun, true)
	if err != nil {
		return look, err
	}
	ctx, cancel := within(10 * time.Second)
	defer cancel()
	if look.Pools, err = n.api.ListPools(ctx); err != nil {
		return look, err
	}
	if look.Gateways, err = n.api.ListGateways(ctx, client.GatewayFilter{}); err != nil {
		return look, err
	}
	if look.Hosts, err = n.api.ListHosts(ctx); err != nil {
		return look, err
	}
	after, err := c.state(n)
	if err != nil {
		return look, err
	}
	if look.Index = after.Index; before.Index != after.Index {
		return look, fmt.Errorf("it goes on: indexes %d and %d", before.Index, after.Index)
	}
	present := 0
	for _, g := range look.Gateways {
		switch g.State {
		case api.GatewayReady, api.GatewayAllocated:
			present++
		case "terminated":
		default:
			return look, fmt.Errorf("gateway %s is %s: %s", g.GatewayID, g.State, g.Message)
		}
	}
	if present != gateways {
		return look, fmt.Errorf("%d gateways", present)
	}
	for _, a := range look.Allocations {
		if a.EndedAt == nil && a.State != api.AllocationActive {
			return look, fmt.Errorf("allocation %s is %s", a.AllocationID, a.State)
		}
	}
	return look, nil
}

// states asks each coordinator for the digest of its own state.
func (c *cluster) states() ([]check.NodeState, error) {
	var out []check.NodeState
	for _, n := range c.nodes {
		s, err := c.state(n)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (c *cluster) state(n *node) (check.NodeState, error) {
	body, err := c.fetch(n, "/v1/operator/state?consistency=stale")
	if err != nil {
		return check.NodeState{}, err
	}
	var s api.NodeState
	err = json.Unmarshal(body, &s)
	return check.NodeState{Node: n.name, Index: s.Index, Hash: s.Hash}, err
}

// goroutines is how many the metrics of a program say that it has.
func goroutines(metrics []byte) (int, error) {
	for line := range strings.Lines(string(metrics)) {
		if value, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("the metrics do not say how many goroutines there are")
}
