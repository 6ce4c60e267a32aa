package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

// errFenced answers every write after the node has fenced itself.
var errFenced = errors.New("the node has fenced itself because of its disk")

// watchSlices is how often the watchdog looks during one write time-out. A write is stalled when that many
// looks in a row saw it, so a process that was stopped for a while (and whose clock went on) uses up
// one look, not the whole time-out.
const watchSlices = 8

// guard stands between the library and the disk. It fences the node at the first write that fails or
// stalls, checksums every log entry, and measures log writes.
type guard struct {
	store   Store
	timeout time.Duration
	onFence func(reason string) // called once, on the goroutine that found the fault

	fenced   chan struct{} // closed when the node has fenced itself
	fence1   sync.Once
	released chan struct{} // closed when the node closes: lets go what the fence holds
	release1 sync.Once
	took     latencies

	mu     sync.Mutex
	writes map[*write]struct{} // being done now
	stored uint64              // log writes finished, for the canary
}

// write is one write being done.
type write struct {
	what string
	seen int // looks of the watchdog; guarded by guard.mu
}

func newGuard(store Store, timeout time.Duration, onFence func(string)) *guard {
	return &guard{
		store: store, timeout: timeout, onFence: onFence,
		fenced: make(chan struct{}), released: make(chan struct{}),
		writes: map[*write]struct{}{},
	}
}

// watch looks for stalled writes until stop is closed.
func (g *guard) watch(stop <-chan struct{}) {
	tick := time.NewTicker(g.timeout / watchSlices)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if what := g.stalled(); what != "" {
				g.fence(fmt.Sprintf("%s did not finish within %s", what, g.timeout))
			}
		case <-stop:
			return
		}
	}
}

func (g *guard) stalled() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	for w := range g.writes {
		if w.seen++; w.seen > watchSlices {
			return w.what
		}
	}
	return ""
}

func (g *guard) fence(reason string) {
	g.fence1.Do(func() {
		close(g.fenced)
		g.onFence(reason)
	})
}

func (g *guard) isFenced() bool {
	select {
	case <-g.fenced:
		return true
	default:
		return false
	}
}

// letGo frees the goroutines that the fence parked. Called once the library is told to shut down.
func (g *guard) letGo() { g.release1.Do(func() { close(g.released) }) }

// do runs one write. A write that returns after the fence fell is reported as failed, whatever it did:
// nothing may be acknowledged on its strength. Before and after it are failpoints: <label>.before and .after;
// a write that fails at <label>.fsync has happened all the same, as one whose sync failed may have.
func (g *guard) do(label, what string, fn func() error) error {
	if g.isFenced() {
		return errFenced
	}
	w := &write{what: what}
	g.mu.Lock()
	g.writes[w] = struct{}{}
	g.mu.Unlock()
	failpoint.Hit(label + ".before")
	err := failpoint.Fail(label)
	if err == nil {
		err = fn()
	}
	if err == nil {
		err = failpoint.Fail(label + ".fsync")
	}
	failpoint.Hit(label + ".after")
	g.mu.Lock()
	delete(g.writes, w)
	g.mu.Unlock()
	if g.isFenced() {
		return errFenced
	}
	if err != nil {
		g.fence(fmt.Sprintf("%s failed: %v", what, err))
	}
	return err
}

// StoreLog implements raft.LogStore.
func (g *guard) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. On the leader it adds each entry's checksum, which the followers
// get with the entry; on a follower it refuses an entry that does not match the one it came with.
func (g *guard) StoreLogs(logs []*raft.Log) error {
	for _, l := range logs {
		if len(l.Extensions) == 0 {
			l.Extensions = checksum(l)
		} else if err := verify(l); err != nil {
			// Not this node's disk: the next attempt of the leader may arrive whole.
			return fmt.Errorf("cannot accept log entry %d: %w on its way here", l.Index, err)
		}
	}
	start := time.Now()
	err := g.do("raft.log", "a log write", func() error { return g.store.StoreLogs(logs) })
	if err == nil {
		g.took.add(time.Since(start))
		g.mu.Lock()
		g.stored++
		g.mu.Unlock()
	}
	return err
}

// storedCount is the number of log writes that succeeded.
func (g *guard) storedCount() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stored
}

// GetLog implements raft.LogStore. An entry that does not read back as it was written fences the node:
// it must neither be applied nor sent to another one.
func (g *guard) GetLog(index uint64, log *raft.Log) error {
	if err := g.store.GetLog(index, log); err != nil {
		return err
	}
	if err := verify(log); err != nil {
		err = fmt.Errorf("cannot read log entry %d: %w on the disk; empty this node's data directory and let it join again, or restore a snapshot", index, err)
		g.fence(err.Error())
		return err
	}
	return nil
}

// FirstIndex implements raft.LogStore.
func (g *guard) FirstIndex() (uint64, error) { return g.store.FirstIndex() }

// LastIndex implements raft.LogStore.
func (g *guard) LastIndex() (uint64, error) { return g.store.LastIndex() }

// DeleteRange implements raft.LogStore.
func (g *guard) DeleteRange(low, high uint64) error {
	return g.do("raft.truncate", "a log truncation", func() error { return g.store.DeleteRange(low, high) })
}

// IsMonotonic implements raft.MonotonicLogStore.
func (g *guard) IsMonotonic() bool { return g.store.IsMonotonic() }

// Close closes the disk below.
func (g *guard) Close() error { return g.store.Close() }

const extensionVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the extension of an entry: a version byte and the CRC-32C of everything that matters in it.
func checksum(l *raft.Log) []byte {
	var head [17]byte
	binary.LittleEndian.PutUint64(head[0:], l.Index)
	binary.LittleEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	sum := crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, l.Data)
	return binary.LittleEndian.AppendUint32([]byte{extensionVersion}, sum)
}

var errDamaged = errors.New("it was damaged")

func verify(l *raft.Log) error {
	if string(l.Extensions) != string(checksum(l)) {
		return errDamaged
	}
	return nil
}

// scan reads the whole log, so that a damaged one is refused with a clear text before the library, which
// panics on it, is started.
func (g *guard) scan() error {
	first, err := g.FirstIndex()
	if err != nil {
		return fmt.Errorf("cannot read the log: %w", err)
	}
	last, err := g.LastIndex()
	if err != nil {
		return fmt.Errorf("cannot read the log: %w", err)
	}
	for i := first; i > 0 && i <= last; i++ {
		var l raft.Log
		if err := g.GetLog(i, &l); err != nil {
			return err
		}
	}
	return nil
}

var _ io.Closer = (*guard)(nil)
