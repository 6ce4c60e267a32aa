package state

import (
	"hash/maphash"
	"iter"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"
)

// tree is an ordered map from strings to records, of which every version stays as it was: a radix tree whose
// nodes are copied when they are written, at most once in a transaction. It is what go-memdb has inside,
// without a channel in every node, without a memory of the changed nodes and without encoding keys; that is
// most of what an allocation costs the state machine.
type tree[T any] struct {
	root  *node[T]
	home  *home[T]
	owner *owner // of the nodes that may be written; nil: this version is published

	replaced []*leaf[T] // leaves of earlier versions that are no longer there
	added    []string   // keys that were not there
}

// owner marks the nodes that a transaction made. Its address is what counts.
type owner struct{ _ byte }

type node[T any] struct {
	owner  *owner
	prefix string // of what is below, as it continues the parent's
	leaf   *leaf[T]
	edges  []edge[T] // sorted by label, the first byte of the node's prefix
}

type edge[T any] struct {
	label byte
	node  *node[T]
}

type leaf[T any] struct {
	key    string
	record T
	watch  signal
}

// home is what all versions of a tree share.
type home[T any] struct {
	current atomic.Pointer[node[T]] // of the version that was published last
	whole   signal                  // closes when anything changes
	missing [missingSignals]signal  // by hash of the key: closes when one of these keys comes
	seed    maphash.Seed
	// sharing: those who wait for records that are there share the signals, too. It is for records that are many
	// and hardly change: a channel for each that was ever waited for would stay as long as they do.
	sharing bool
}

// missingSignals is how many signals those who wait for records that are not there share.
const missingSignals = 1024

// signal is a channel that is made when somebody waits for it.
type signal struct{ channel atomic.Pointer[chan struct{}] }

// over is the channel of what has changed already.
var over = func() *chan struct{} {
	c := make(chan struct{})
	close(c)
	return &c
}()

func (s *signal) wait() <-chan struct{} {
	for {
		if c := s.channel.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		s.channel.CompareAndSwap(nil, &c)
	}
}

// fire closes the channel. Who waits afterwards gets next, nil being a new channel.
func (s *signal) fire(next *chan struct{}) {
	if s.channel.Load() == nil && next == nil {
		return
	}
	if c := s.channel.Swap(next); c != nil && c != over {
		close(*c)
	}
}

func newTree[T any]() tree[T] { return tree[T]{home: &home[T]{seed: maphash.MakeSeed()}} }

// newQuietTree is newTree for records that hardly change.
func newQuietTree[T any]() tree[T] {
	t := newTree[T]()
	t.home.sharing = true
	return t
}

// begin makes a published version the beginning of a transaction's.
func (t *tree[T]) begin(o *owner) { t.owner = o }

// publish ends the transaction: from here on this version is the newest one.
func (t *tree[T]) publish() {
	t.owner = nil
	t.home.current.Store(t.root)
}

// notify wakes those who wait for what has changed. It comes after everything was published.
func (t *tree[T]) notify() {
	if len(t.replaced) == 0 && len(t.added) == 0 {
		return
	}
	for _, l := range t.replaced {
		if t.home.sharing {
			t.home.signalOf(l.key).fire(nil)
		} else {
			l.watch.fire(over)
		}
	}
	for _, key := range t.added {
		t.home.signalOf(key).fire(nil)
	}
	t.replaced, t.added = nil, nil
	t.home.whole.fire(nil)
}

func (h *home[T]) signalOf(key string) *signal {
	return &h.missing[maphash.String(h.seed, key)%missingSignals]
}

// get looks a key up; the zero value when it is not there.
func (t *tree[T]) get(ws memdb.WatchSet, key string) (record T) {
	l := t.root.find(key)
	if ws != nil {
		ws.Add(t.watch(l, key))
	}
	if l != nil {
		record = l.record
	}
	return record
}

func (t *tree[T]) watch(l *leaf[T], key string) <-chan struct{} {
	if l != nil && !t.home.sharing {
		return l.watch.wait()
	}
	wait := t.home.signalOf(key).wait()
	if t.home.current.Load().find(key) != l { // it came or went between this version and now
		return *over
	}
	return wait
}

// all ranges over the records whose keys begin with prefix, by key. The records may be changed meanwhile,
// the range is of what was there before.
func (t *tree[T]) all(ws memdb.WatchSet, prefix string) iter.Seq[T] {
	return t.ranging(ws, func(yield func(T) bool) { t.root.below(prefix).walk(yield) })
}

// after is all for the records whose keys come after one, which need not be there. Those before cost nothing.
func (t *tree[T]) after(ws memdb.WatchSet, key string) iter.Seq[T] {
	return t.ranging(ws, func(yield func(T) bool) { t.root.walkAfter(key, yield) })
}

// ranging watches the whole tree and lets a walk through this version of it be.
func (t *tree[T]) ranging(ws memdb.WatchSet, walk iter.Seq[T]) iter.Seq[T] {
	if ws != nil {
		wait := t.home.whole.wait()
		if t.home.current.Load() != t.root {
			wait = *over
		}
		ws.Add(wait)
	}
	return func(yield func(T) bool) {
		if t.owner != nil {
			t.owner = &owner{}
		}
		walk(yield)
	}
}

func (n *node[T]) find(key string) *leaf[T] {
	for n != nil && strings.HasPrefix(key, n.prefix) {
		key = key[len(n.prefix):]
		if key == "" {
			return n.leaf
		}
		i, found := n.edge(key[0])
		if !found {
			return nil
		}
		n = n.edges[i].node
	}
	return nil
}

// below gives the node that has all keys with a prefix and no others.
func (n *node[T]) below(prefix string) *node[T] {
	for n != nil && !strings.HasPrefix(n.prefix, prefix) {
		if !strings.HasPrefix(prefix, n.prefix) {
			return nil
		}
		prefix = prefix[len(n.prefix):]
		i, found := n.edge(prefix[0])
		if !found {
			return nil
		}
		n = n.edges[i].node
	}
	return n
}

func (n *node[T]) walk(yield func(T) bool) bool {
	if n == nil {
		return true
	}
	if n.leaf != nil && !yield(n.leaf.record) {
		return false
	}
	for _, e := range n.edges {
		if !e.node.walk(yield) {
			return false
		}
	}
	return true
}

// walkAfter is walk for what comes after key, which is what is left of it here.
func (n *node[T]) walkAfter(key string, yield func(T) bool) bool {
	if n == nil {
		return true
	}
	c := common(n.prefix, key)
	switch {
	case c < len(n.prefix) && (c == len(key) || n.prefix[c] > key[c]):
		return n.walk(yield)
	case c < len(n.prefix):
		return true
	}
	rest, key := n.edges, key[c:]
	if key != "" {
		i, found := n.edge(key[0])
		if found && !n.edges[i].node.walkAfter(key, yield) {
			return false
		}
		if found {
			i++
		}
		rest = rest[i:]
	}
	for _, e := range rest {
		if !e.node.walk(yield) {
			return false
		}
	}
	return true
}

// edge is where the edge of a label is or belongs.
func (n *node[T]) edge(label byte) (int, bool) {
	lo, hi := 0, len(n.edges)
	for lo < hi {
		if mid := (lo + hi) / 2; n.edges[mid].label < label {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(n.edges) && n.edges[lo].label == label
}

// put stores a record.
func (t *tree[T]) put(key string, record T) {
	t.root = t.putBelow(t.root, key, &leaf[T]{key: key, record: record})
}

func (t *tree[T]) putBelow(n *node[T], rest string, l *leaf[T]) *node[T] {
	if n == nil {
		t.added = append(t.added, l.key)
		return &node[T]{owner: t.owner, prefix: rest, leaf: l}
	}
	n = t.writable(n)
	if c := common(n.prefix, rest); c < len(n.prefix) { // it branches off inside the prefix
		above := &node[T]{owner: t.owner, prefix: n.prefix[:c], edges: []edge[T]{{n.prefix[c], n}}}
		n.prefix = n.prefix[c:]
		n = above
	}
	rest = rest[len(n.prefix):]
	if rest == "" {
		t.lost(n.leaf, l.key)
		n.leaf = l
		return n
	}
	i, found := n.edge(rest[0])
	if found {
		n.edges[i].node = t.putBelow(n.edges[i].node, rest, l)
	} else {
		n.edges = slices.Insert(n.edges, i, edge[T]{rest[0], t.putBelow(nil, rest, l)})
	}
	return n
}

// lost notes that the leaf of a key is replaced; nil: that the key is new.
func (t *tree[T]) lost(old *leaf[T], key string) {
	if old != nil {
		t.replaced = append(t.replaced, old)
	} else {
		t.added = append(t.added, key)
	}
}

// remove takes a record out.
func (t *tree[T]) remove(key string) {
	if l := t.root.find(key); l != nil {
		t.replaced = append(t.replaced, l)
		t.root = t.removeBelow(t.root, key)
	}
}

func (t *tree[T]) removeBelow(n *node[T], rest string) *node[T] {
	n = t.writable(n)
	rest = rest[len(n.prefix):]
	if rest == "" {
		n.leaf = nil
	} else {
		i, _ := n.edge(rest[0])
		if next := t.removeBelow(n.edges[i].node, rest); next != nil {
			n.edges[i].node = next
		} else {
			n.edges = slices.Delete(n.edges, i, i+1)
		}
	}
	switch {
	case n.leaf != nil || len(n.edges) > 1:
		return n
	case len(n.edges) == 0:
		return nil
	}
	only := t.writable(n.edges[0].node)
	only.prefix = n.prefix + only.prefix
	return only
}

// writable gives a node that this transaction may write.
func (t *tree[T]) writable(n *node[T]) *node[T] {
	if n.owner == t.owner {
		return n
	}
	return &node[T]{owner: t.owner, prefix: n.prefix, leaf: n.leaf, edges: slices.Clone(n.edges)}
}

// common is how long the common beginning of two strings is.
func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
