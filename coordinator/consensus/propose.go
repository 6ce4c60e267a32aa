package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

// MaxProposal is the largest command Propose takes, in bytes.
const MaxProposal = 1 << 20

// ErrUnknown means that a proposal may or may not take effect, now or later: leadership was lost, the node
// stopped, or the caller gave up while it was in flight. Find out from the state, by request id; never
// report it as failed.
var ErrUnknown = errors.New("the outcome of the command is unknown")

// Propose appends a command to the log and waits until this node's FSM has applied it. It returns what the
// FSM answered and the command's index. Concurrent callers share disk writes. data belongs to the node
// from now on, whatever comes back.
//
// An error with code no_leader or too_large says that the command was not taken and never will be. An
// error that is ErrUnknown leaves it open.
func (n *Node) Propose(ctx context.Context, data []byte) (result any, index uint64, err error) {
	if len(data) > MaxProposal {
		return nil, 0, fault.New(fault.TooLarge, "cannot propose a command of %d bytes: the most is %d", len(data), MaxProposal)
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, n.noLeader(err, "the caller gave up before the command was proposed")
	}
	if !n.IsLeader() {
		return nil, 0, n.noLeader(nil, "this coordinator does not lead")
	}
	p := &proposal{data: data, done: make(chan error, 1)}
	err = n.submit(ctx, p)
	switch {
	case err == nil:
		return p.result, p.index, nil
	case notTaken(err):
		return nil, 0, n.noLeader(err, "this coordinator could not take the command")
	default:
		return nil, 0, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}

// Barrier waits until this node, which must lead, has applied everything proposed so far.
func (n *Node) Barrier(ctx context.Context) error {
	return n.asLeader(ctx, "finish the barrier", func() error { return n.raft.Barrier(n.opts.WriteTimeout).Error() })
}

// VerifyLeader asks a majority whether this node still leads.
func (n *Node) VerifyLeader(ctx context.Context) error {
	return n.asLeader(ctx, "confirm that it leads", func() error { return n.raft.VerifyLeader().Error() })
}

// asLeader runs a call that has no lasting effect when it fails, or one that can be repeated.
func (n *Node) asLeader(ctx context.Context, what string, call func() error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	if !n.IsLeader() {
		return n.noLeader(nil, "this coordinator does not lead")
	}
	err := n.await(ctx, call)
	switch {
	case err == nil:
		return nil
	case notTaken(err), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, errFenced):
		return n.noLeader(err, "this coordinator could not "+what)
	default:
		return fmt.Errorf("cannot %s: %w", what, err)
	}
}

// errClosing refuses calls once Close has begun.
var errClosing = errors.New("the Raft node is closing")

// notTaken reports whether the library answered without having put anything into its log.
func notTaken(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress) || errors.Is(err, errClosing)
}

// noLeader says that another coordinator must be asked, or this one later.
func (n *Node) noLeader(cause error, message string) error {
	_, election, _, err := n.opts.Profile.timers()
	if err != nil {
		election = time.Second
	}
	e := fault.Wrap(fault.NoLeader, cause, "%s; retry, or ask the coordinator that leads", message)
	e.RetryAfter = election
	return e
}

// await runs a call into the library, which knows no contexts, until it answers, ctx ends or the node
// fences itself. Close waits for calls that nobody waits for any more.
func (n *Node) await(ctx context.Context, call func() error) error {
	if err := n.begin(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // waited for by Close
		defer n.pending.Done()
		done <- call()
	}()
	return n.outcome(ctx, done)
}

// begin counts a call into the library in that Close has to wait for.
func (n *Node) begin() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closing {
		return errClosing
	}
	n.pending.Add(1)
	return nil
}

func (n *Node) outcome(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.guard.fenced:
		return errFenced
	}
}
