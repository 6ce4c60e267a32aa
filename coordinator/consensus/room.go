package consensus

import (
	"context"
	"fmt"
	"time"
)

// Room is the space on the file system of the data directory, in bytes.
type Room struct {
	Free  uint64
	Floor uint64 // below it nothing that can wait should be written
	Low   bool
}

// String is for messages: "300 MiB free, floor 512 MiB".
func (r Room) String() string {
	return fmt.Sprintf("%d MiB free, floor %d MiB", r.Free>>20, r.Floor>>20)
}

// roomInterval is how often the space is measured. A log that takes 100 MiB/s stays far from the end of the
// default floor within it.
const roomInterval = time.Second

// next judges a new measurement. The way back is an eighth longer than the way in, so that a disk at its
// floor does not change its mind with every snapshot.
func (r Room) next(free, total, minFree uint64) Room {
	floor := min(minFree, total/20)
	back := floor
	if r.Low {
		back += floor / 8
	}
	return Room{Free: free, Floor: floor, Low: free < back}
}

// Room is the latest measurement. A full disk fences the node, and at worst all of them at once; whoever
// lets work in asks here first, while there still is room to end what is there.
func (n *Node) Room() Room { return *n.roomNow.Load() }

// Storage is Room for gauges.
func (n *Node) Storage() (free, floor uint64) {
	r := n.Room()
	return r.Free, r.Floor
}

// measure looks at the file system once. What cannot be measured is as it was: a disk that is gone shows
// itself at the next write.
func (n *Node) measure() {
	free, total, err := n.opts.Free(n.dir.path)
	if err != nil {
		n.log.Warn("cannot measure the space of the data directory", "error", err)
		return
	}
	before := n.Room()
	now := before.next(free, total, n.opts.MinFree)
	n.roomNow.Store(&now)
	switch {
	case now.Low && !before.Low:
		n.log.Error("the disk of the data directory is nearly full: new work is refused until there is room", "dir", n.dir.path, "free_mib", now.Free>>20, "floor_mib", now.Floor>>20)
	case before.Low && !now.Low:
		n.log.Info("the disk of the data directory has room again", "dir", n.dir.path, "free_mib", now.Free>>20)
	}
}

// watchRoom measures until ctx is done.
func (n *Node) watchRoom(ctx context.Context) {
	tick := time.NewTicker(roomInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.measure()
		case <-ctx.Done():
			return
		}
	}
}
