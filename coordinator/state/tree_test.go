package state

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

// treeKey is short, so that many are beginnings of each other, or long with a long common beginning.
func treeKey(r *rand.Rand) string {
	if r.IntN(4) == 0 {
		return strings.Repeat("long-", 1+r.IntN(3)) + string(rune('a'+r.IntN(8)))
	}
	key := make([]byte, 1+r.IntN(4))
	for i := range key {
		key[i] = "ab\x00\xff"[r.IntN(4)]
	}
	return string(key)
}

func checkTree(t *testing.T, what string, x *tree[*int], want map[string]*int) {
	t.Helper()
	var records []*int
	for _, key := range slices.Sorted(maps.Keys(want)) {
		records = append(records, want[key])
		if got := x.get(nil, key); got != want[key] {
			t.Fatalf("%s: %q is %v, want %v", what, key, got, want[key])
		}
	}
	if got := slices.Collect(x.all(nil, "")); !slices.Equal(got, records) {
		t.Fatalf("%s: %d records in order, want %d", what, len(got), len(records))
	}
	for _, prefix := range []string{"", "a", "ab", "b\x00", "\xff", "long-long-", "long-long-c", "lo", "none"} {
		records = nil
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if strings.HasPrefix(key, prefix) {
				records = append(records, want[key])
			}
		}
		if got := slices.Collect(x.all(nil, prefix)); !slices.Equal(got, records) {
			t.Fatalf("%s: %d records below %q, want %d", what, len(got), prefix, len(records))
		}
		records = nil
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if key > prefix {
				records = append(records, want[key])
			}
		}
		if got := slices.Collect(x.after(nil, prefix)); !slices.Equal(got, records) {
			t.Fatalf("%s: %d records after %q, want %d", what, len(got), prefix, len(records))
		}
		if _, there := want[prefix]; !there && x.get(nil, prefix) != nil {
			t.Fatalf("%s: %q is there", what, prefix)
		}
	}
}

// TestTreeIsAMap compares every version of a tree, also the old ones, with what a map says. Half of the
// transactions are given up.
func TestTreeIsAMap(t *testing.T) {
	t.Run("with signals of their own", func(t *testing.T) { treeIsAMap(t, newTree[*int]) })
	t.Run("sharing signals", func(t *testing.T) { treeIsAMap(t, newQuietTree[*int]) })
}

func treeIsAMap(t *testing.T, newTree func() tree[*int]) {
	type version struct {
		tree tree[*int]
		want map[string]*int
		ws   map[string]WatchSet
	}
	fired := func(ws WatchSet) bool {
		for c := range ws { // the order does not matter: there is one
			select {
			case <-c:
				return true
			default:
			}
		}
		return false
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		now := version{tree: newTree(), want: map[string]*int{}, ws: map[string]WatchSet{}}
		var versions []version
		for range 60 {
			next := version{tree: now.tree, want: maps.Clone(now.want), ws: map[string]WatchSet{}}
			next.tree.begin(&owner{})
			changed := map[string]bool{}
			for range r.IntN(12) {
				key := treeKey(r)
				switch r.IntN(5) {
				case 0, 1:
					next.tree.remove(key)
					changed[key] = changed[key] || next.want[key] != nil
					delete(next.want, key)
				case 2, 3:
					next.want[key] = new(int)
					next.tree.put(key, next.want[key])
					changed[key] = true
				default: // a range sees what was there when it began
					before := slices.Collect(next.tree.all(nil, ""))
					var seen []*int
					for record := range next.tree.all(nil, "") {
						seen = append(seen, record)
						next.tree.put(key, record)
						next.want[key] = record
						changed[key] = true
					}
					if !slices.Equal(seen, before) {
						t.Fatalf("seed %d: a range saw its own changes", seed)
					}
				}
			}
			checkTree(t, "in a transaction", &next.tree, next.want)
			if r.IntN(2) == 0 {
				continue
			}
			for range 5 {
				key := treeKey(r)
				now.ws[key] = WatchSet{}
				now.tree.get(now.ws[key], key)
			}
			next.tree.publish()
			next.tree.notify()
			for key, ws := range now.ws {
				if changed[key] && !fired(ws) && now.want[key] != next.want[key] {
					t.Fatalf("seed %d: %q changed from %v to %v and its watch did not fire", seed, key, now.want[key], next.want[key])
				}
				if now.want[key] != nil && !changed[key] && fired(ws) && !now.tree.home.sharing {
					t.Fatalf("seed %d: %q did not change and its watch fired", seed, key)
				}
			}
			versions = append(versions, now)
			now = next
		}
		for _, v := range versions {
			checkTree(t, "an old version", &v.tree, v.want)
		}
	}
}

// TestTreeReadsNothingBefore: what comes after a key is found without a look at anything before it, so that the last page of
// a list costs what the first one does. Everything before the key is replaced by a record that would show.
func TestTreeReadsNothingBefore(t *testing.T) {
	seen := new(int)
	r := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		x := newTree[*int]()
		x.begin(&owner{})
		keys := map[string]bool{}
		for range 200 {
			keys[treeKey(r)] = true
		}
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			x.put(key, new(int))
		}
		for _, after := range slices.Sorted(maps.Keys(keys)) {
			left := slices.Collect(x.after(nil, after))
			n := replaceBefore(x.root, after, &node[*int]{leaf: &leaf[*int]{key: "\xff", record: seen}})
			if slices.Contains(slices.Collect(x.after(nil, after)), seen) || !slices.Equal(slices.Collect(x.after(nil, after)), left) {
				t.Fatalf("what comes before %q was looked at", after)
			}
			if all := slices.Collect(x.all(nil, "")); n > 0 && !slices.Contains(all, seen) {
				t.Fatalf("nothing before %q was replaced", after)
			}
		}
	}
}

// replaceBefore replaces what comes before a key, and the key's own record, and tells how many nodes that were.
func replaceBefore(n *node[*int], key string, by *node[*int]) (replaced int) {
	if n.leaf != nil {
		n.leaf, replaced = by.leaf, 1
	}
	if key = key[len(n.prefix):]; key == "" {
		return replaced
	}
	i, _ := n.edge(key[0])
	for j := range i {
		n.edges[j].node = by
		replaced++
	}
	return replaced + replaceBefore(n.edges[i].node, key, by)
}

// TestTreeWatchesOfOldVersions: who begins to wait on an old version is told at once of what is no longer so.
func TestTreeWatchesOfOldVersions(t *testing.T) {
	t.Run("with signals of their own", func(t *testing.T) { watchOldVersion(t, newTree[*int]()) })
	t.Run("sharing signals", func(t *testing.T) { watchOldVersion(t, newQuietTree[*int]()) })
}

func watchOldVersion(t *testing.T, old tree[*int]) {
	old.begin(&owner{})
	old.put("stays", new(int))
	old.put("goes", new(int))
	old.publish()
	old.notify()
	next := old
	next.begin(&owner{})
	next.remove("goes")
	next.put("comes", new(int))
	next.publish()
	next.notify()
	for key, want := range map[string]bool{"goes": true, "comes": true, "stays": false} {
		ws := WatchSet{}
		old.get(ws, key)
		for c := range ws {
			select {
			case <-c:
				if !want && !old.home.sharing {
					t.Errorf("%s: the watch fired", key)
				}
			default:
				if want {
					t.Errorf("%s: the watch did not fire", key)
				}
			}
		}
	}
	ws := WatchSet{}
	old.all(ws, "")
	for c := range ws {
		<-c
	}
}

// TestTreeWakesEveryone: no reader that waits for the next change misses it, whenever it begins.
func TestTreeWakesEveryone(t *testing.T) {
	s := New()
	const last = 300
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for {
				ws := WatchSet{}
				v := s.View()
				o := v.Organization(ws, "o")
				if n%2 == 0 {
					ws = WatchSet{}
					v.Organizations(ws)
				}
				if o != nil && o.ModifyIndex == last {
					return
				}
				ws.Watch(nil)
			}
		})
	}
	for index := range uint64(last) {
		x := s.Begin()
		x.Entry(Origin{Index: index + 1})
		if o := x.Organization(nil, "o"); o != nil && index%3 == 0 && index+1 != last {
			x.RemoveOrganization(o)
		} else {
			x.PutOrganization(Organization{ID: "o"})
		}
		x.Commit()
	}
	wg.Wait()
}
