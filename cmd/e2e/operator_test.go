//go:build e2e

package e2e

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/shared/client"
)

// operate does what an operator does to hosts, one after the other, until ctx ends: it cordons or drains one and lets
// it be used again. It leaves no host cordoned.
func (l *load) operate(ctx context.Context) {
	rng := rand.New(rand.NewPCG(l.seed, 5))
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(rng.Int64N(int64(most-least)))
	}
	for {
		waitFor(ctx, between(time.Second, 5*time.Second))
		if ctx.Err() != nil {
			return
		}
		hosts := len(l.c.hosts) + len(l.c.agents)
		op := check.Operation{Kind: check.Cordon, Outcome: check.Unknown}
		if rng.IntN(2) == 0 {
			op.Kind = check.Drain
		}
		if i := rng.IntN(hosts); i < len(l.c.hosts) {
			op.Host = l.c.hosts[i].name
		} else {
			op.Host = l.c.agents[i-len(l.c.hosts)].name
		}
		l.ask(l.numbered(op), rng.IntN(len(l.c.nodes)))
		waitFor(ctx, between(200*time.Millisecond, 2*time.Second))
		op.Kind, op.Index = check.Uncordon, l.c.index()
		l.ask(l.numbered(op), rng.IntN(len(l.c.nodes)))
	}
}

// numbered puts an operation that is not chosen by the load among the others.
func (l *load) numbered(op check.Operation) check.Operation {
	l.mu.Lock()
	defer l.mu.Unlock()
	op.ID = len(l.operations)
	l.operations = append(l.operations, op)
	return op
}

// index is one that the log has reached, as far as anybody tells; 0 where nobody does.
func (c *cluster) index() uint64 {
	var index uint64
	for _, n := range c.nodes {
		ctx, cancel := within(time.Second)
		if st, err := n.api.Status(ctx, client.Consistency("stale")); err == nil {
			index = max(index, st.Applied)
		}
		cancel()
	}
	return index
}

// handle does something to a host.
func handle(ctx context.Context, n *node, op *check.Operation) error {
	switch op.Kind {
	case check.Cordon:
		h, err := n.api.CordonHost(ctx, op.Host)
		op.Index = h.Index
		return err
	case check.Drain:
		h, err := n.api.DrainHost(ctx, op.Host, client.Drain{})
		op.Index = h.Index
		return err
	case check.Uncordon:
		_, err := n.api.UncordonHost(ctx, op.Host)
		return err
	}
	return errors.New("nobody knows how to " + string(op.Kind) + " a host")
}
