package coordinator

import (
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/agentlink"
	"github.com/demiurge-platform/demiurge/coordinator/allocator"
)

// Runner is the allocator, for benchmarks that leave HTTP out.
func (c *Coordinator) Runner() *allocator.Runner { return c.runner }

// Receiver is where agents' calls arrive, for benchmarks that leave HTTP out.
func (c *Coordinator) Receiver() *agentlink.Receiver { return c.receiver }

// LogWrites tells how long the latest writes of the log took, with their fsync.
func (c *Coordinator) LogWrites() (p50, p99 time.Duration) {
	p50, p99, _ = c.node.FsyncStats()
	return p50, p99
}
