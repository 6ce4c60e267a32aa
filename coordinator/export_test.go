package coordinator

import (
	"context"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// Runner is the allocator, for benchmarks that leave HTTP out.
func (c *Coordinator) Runner() *allocator.Runner { return c.runner }

// Receiver is where agents' calls arrive, for benchmarks that leave HTTP out.
func (c *Coordinator) Receiver() *agentlink.Receiver { return c.receiver }

// RotateCA has an overlap that is shorter than the API allows.
func (c *Coordinator) RotateCA(ctx context.Context, overlap time.Duration) error {
	_, err := operator{c, &c.rotation}.RotateCA(ctx, command.Meta{At: time.Now(), Actor: "test"}, overlap)
	return err
}

// LogWrites tells how long the latest writes of the log took, with their fsync.
func (c *Coordinator) LogWrites() (p50, p99 time.Duration) {
	p50, p99, _ = c.node.FsyncStats()
	return p50, p99
}

// BeginRotation leaves a rotation of the gossip key half-way, as the end of the leader does: everybody has both keys, and
// only the other coordinator uses the new one.
func (c *Coordinator) BeginRotation(ctx context.Context, other *Coordinator) error {
	old, next := c.gossip.Keyring()[0], gossip.NewKey()
	say := signed{c.propose, command.Meta{At: time.Now(), Actor: "test"}}
	if err := c.trust.PutKeyring(ctx, say, []string{old.Text(), next.Text()}); err != nil {
		return err
	}
	if _, err := c.gossip.InstallKey(ctx, next); err != nil {
		return err
	}
	return other.gossip.TakeKeys([]gossip.Key{next, old})
}
