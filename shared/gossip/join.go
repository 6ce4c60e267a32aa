package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/serf/serf"
)

// ErrNameTaken is in the error of Join when a live member has this node's role and name. The first one
// stays; this node has to be stopped, or get a name of its own.
var ErrNameTaken = errors.New("another live member has this name")

// Join makes this node a member through its seeds. It tries until one of them answers or ctx ends. Without
// other seeds than itself it is a pool of its own and returns at once.
func (n *Node) Join(ctx context.Context) error {
	var taken time.Time // since when the name is
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		seeds := n.others() // they may change meanwhile
		if len(seeds) == 0 {
			return nil
		}
		began := time.Now()
		answered, err := n.library(ctx, seeds)
		claimant, contested := n.contestedSince(began)
		switch {
		case answered > 0 && !contested:
			return nil
		case answered > 0:
			// It may be this node's own past at another address, which the pool does not know to be dead yet.
			if taken.IsZero() {
				taken = began
				n.log.Warn("the pool has a member of this name at another address", "name", n.opts.Name, "address", claimant)
			}
			if time.Since(taken) >= n.timers.conflict {
				return fmt.Errorf("cannot join the pool as %s: %w at %s", poolName(n.opts.Role, n.opts.Name), ErrNameTaken, claimant)
			}
			pause = 100 * time.Millisecond
		default:
			n.log.Info("no seed answers yet", "seeds", seeds, "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot join the pool through %v: %w", seeds, errors.Join(ctx.Err(), err))
		case <-n.loops:
			return errors.New("cannot join the pool: the node is stopping")
		case <-time.After(pause):
		}
	}
}

// library has the library join. It takes no context, so it goes on when ctx ends first; Stop waits for it.
func (n *Node) library(ctx context.Context, seeds []string) (answered int, err error) {
	if !n.begin() {
		return 0, errors.New("the node is stopping")
	}
	type result struct {
		answered int
		err      error
	}
	done := make(chan result, 1)
	go func() { // waited for by shutdown
		defer n.joins.Done()
		answered, err := n.serf.Join(seeds, true)
		done <- result{answered, err}
	}()
	select {
	case r := <-done:
		return r.answered, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// begin counts one more thing under way in the library, unless the node is stopping.
func (n *Node) begin() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopping {
		return false
	}
	n.joins.Add(1)
	return true
}

func (n *Node) contestedSince(began time.Time) (netip.AddrPort, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.claimant, !n.contested.Before(began)
}

// SetSeeds replaces the members that this node joins through, from the next attempt on.
func (n *Node) SetSeeds(seeds []string) error {
	if err := CheckSeeds(seeds); err != nil {
		return err
	}
	n.mu.Lock()
	n.seeds = slices.Clone(seeds)
	n.mu.Unlock()
	return nil
}

// others are the seeds without this node.
func (n *Node) others() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, seed := range n.seeds {
		if seed != n.self.String() {
			out = append(out, seed)
		}
	}
	return out
}

// rejoin asks, one at a time, the seeds that are no live members: two halves of a pool that forgot each
// other find together again.
func (n *Node) rejoin(ctx context.Context) {
	tick := time.NewTicker(n.timers.rejoin)
	defer tick.Stop()
	for at := 0; ; at++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		seeds := n.others()
		if len(seeds) == 0 {
			continue
		}
		seed := seeds[at%len(seeds)]
		if n.joined() && !n.isMember(seed) {
			_, _ = n.library(ctx, []string{seed})
		}
	}
}

// joined reports whether there was anybody else, ever: before that, joining is Join's.
func (n *Node) joined() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.track.members) > 1
}

// isMember reports whether a seed's address is a live member's. That of a name is not known.
func (n *Node) isMember(seed string) bool {
	if host, _, err := net.SplitHostPort(seed); err != nil || net.ParseIP(host) == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, had := range n.track.members {
		if had.member.Status == StatusAlive && had.member.Address.String() == seed {
			return true
		}
	}
	return false
}

// Leave tells the pool that this node goes on purpose, and waits until the word is out. The node answers
// no more afterwards and can only be stopped. Stop without Leave is right for a restart.
func (n *Node) Leave(ctx context.Context) error {
	if !n.begin() {
		return errors.New("cannot leave the pool: the node is stopping")
	}
	done := make(chan error, 1)
	go func() { // waited for by shutdown; the library bounds its own waits
		defer n.joins.Done()
		done <- n.serf.Leave()
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("cannot leave the pool: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot say in time that this node leaves the pool: %w", ctx.Err())
	}
}

// Forget drops a failed or left member from the pool, for good: an operator's word that it does not come
// back. A live one is not dropped.
func (n *Node) Forget(ctx context.Context, role Role, name string) error {
	n.mu.Lock()
	had, known := n.track.members[poolName(role, name)]
	alive := known && had.member.Status == StatusAlive
	n.mu.Unlock()
	switch {
	case !known:
		return fmt.Errorf("cannot forget %s %s: the pool does not know it", role, name)
	case alive:
		return fmt.Errorf("cannot forget %s %s: it is alive; stop it first", role, name)
	case !n.begin():
		return errors.New("cannot forget a member: the node is stopping")
	}
	done := make(chan error, 1)
	go func() { // waited for by shutdown
		defer n.joins.Done()
		done <- n.serf.RemoveFailedNodePrune(poolName(role, name))
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop closes the sockets without a word to the pool, which takes the node for failed. It ends everything
// that Start began.
func (n *Node) Stop(ctx context.Context) error {
	n.mu.Lock()
	first := !n.stopping
	n.stopping = true
	n.mu.Unlock()
	if first {
		close(n.loops)
	}
	return n.stack.Stop(ctx)
}

// shutdown ends the library. Dials and connections end first, so that nothing under way has long to go; a
// leave is always waited for, because the library does not bear to be closed within one.
func (n *Node) shutdown(context.Context) error {
	if n.serf.State() != serf.SerfLeaving {
		n.transport.abort()
	}
	n.joins.Wait()
	return n.serf.Shutdown()
}
