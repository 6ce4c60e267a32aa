package state

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// fill gives every field below a value of its own that is not zero.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(packedTimes[*n%len(packedTimes)]))
		return
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), n)
		fill(t, v.Index(1), n)
	case v.Kind() == reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{fmt.Sprint("key", *n): "value"}))
	case v.Kind() == reflect.String:
		v.SetString(fmt.Sprint("word", *n))
	case v.CanInt():
		v.SetInt(int64(*n) << (*n % 40))
	case v.CanUint():
		v.SetUint(uint64(*n) << (*n % 50))
	case v.CanFloat():
		v.SetFloat(1 / float64(*n))
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	default:
		t.Fatalf("no value for a %s", v.Type())
	}
}

var packedTimes = []time.Time{
	time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), time.Date(2026, 1, 2, 3, 4, 5, 999_999_999, time.UTC),
	{},
	time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 1, time.UTC),
	time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 2*3600)), time.Date(1, 1, 1, 0, 0, 0, 0, time.FixedZone("", -3600)),
}

// TestPackedAllocationsAreWhole: what comes back is what went in, to the bytes that go into a snapshot. A field that
// packing does not know shows here.
func TestPackedAllocationsAreWhole(t *testing.T) {
	all := []Allocation{{}, {ID: "al-a", Journal: []command.Step{}, Metadata: map[string]string{}, Moves: []Moved{}, Explanation: Explanation{Candidates: []Candidate{}}}}
	for n := range len(packedTimes) {
		var a Allocation
		fill(t, reflect.ValueOf(&a).Elem(), &n)
		all = append(all, a)
		a.Pool, a.State, a.Journal[0].Step, a.Failure.Message = "default", AllocationReleased, "recycle", "\xff\"é"
		a.Epoch, a.TTL = 1<<64-1, -1
		all = append(all, a)
	}
	for i, want := range all {
		packed := pack(&want)
		got := packed.unpack()
		if packed.id() != string(want.ID) || !packed.endedAt().Equal(want.EndedAt) {
			t.Errorf("%d: %q ended at %v, want %q and %v", i, packed.id(), packed.endedAt(), want.ID, want.EndedAt)
		}
		wantJSON, err := json.Marshal(&want)
		if err != nil {
			t.Fatal(err)
		}
		if gotJSON, err := json.Marshal(got); err != nil || string(gotJSON) != string(wantJSON) {
			t.Errorf("%d: %s (%v)\nwant %s", i, gotJSON, err, wantJSON)
		}
	}
}

// TestSealedEventsAreWhole is the same for events.
func TestSealedEventsAreWhole(t *testing.T) {
	var events [chunkEvents]Event
	for i := range events {
		n := i
		fill(t, reflect.ValueOf(&events[i]).Elem(), &n)
		events[i].At, events[i].Seq = packedTimes[i%6], i
		if i%3 == 0 {
			events[i].Reason = ""
		}
	}
	sealed := chunk{sealed: seal(&events)}
	for i, want := range events {
		if got := sealed.at(i); got != want || sealed.idAt(i) != want.ID() {
			t.Fatalf("%d: %+v at %v, want %+v", i, got, sealed.idAt(i), want)
		}
	}
	for _, change := range []func(){
		func() { events[7].At = packedTimes[6] }, // it would come back in UTC
		func() { events[7].At, events[7].Seq = packedTimes[0], 1<<31 },
		func() { events[7].Seq = -1<<31 - 1 },
	} {
		if change(); seal(&events) != nil {
			t.Errorf("%+v was sealed", events[7])
		}
	}
}

// endedAllocation is one as an ordinary allocation ends, with strings of its own.
func endedAllocation(n int) Allocation {
	at := packedTimes[0].Add(time.Duration(n) * time.Second)
	a := Allocation{
		ID: id.Allocation(fmt.Sprintf("al-%016d", n)), Organization: id.NewOrganization(), Gateway: id.NewGateway(), Host: "h1", Pool: "default",
		State: AllocationReleased, CreatedAt: at, EndedAt: at.Add(time.Minute),
		Explanation: Explanation{Candidates: make([]Candidate, 8)},
	}
	for _, step := range []string{"reserve", "activate", "route", "verify", "confirm", "unroute", "state", "recycle"} {
		a.Journal = append(a.Journal, command.Step{Step: step, State: "done", StartedAt: at, EndedAt: at.Add(time.Millisecond)})
	}
	return a
}

// TestEndedAllocationsAreFewObjects: the collector marks every object that is kept, and history is most of what is.
func TestEndedAllocationsAreFewObjects(t *testing.T) {
	const many = 2000
	s := New()
	measure := func() (objects, bytes int) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapObjects), int(m.HeapAlloc)
	}
	objects, bytes := measure()
	for n := range many {
		x := s.Begin()
		x.Entry(Origin{Index: uint64(n + 1)})
		a := endedAllocation(n)
		x.keep(nil, &a)
		for range 8 {
			x.Emit(Event{Type: "allocation." + string(a.State), Organization: a.Organization, Allocation: a.ID, Gateway: a.Gateway})
		}
		x.Commit()
	}
	o, b := measure()
	if o, b = (o-objects)/many, (b-bytes)/many; o > 6 || b > 1700 {
		t.Errorf("an ended allocation and its events keep %d objects and %d bytes", o, b)
	}
	runtime.KeepAlive(s)
}

// TestAllocationsBeforeAndAfterTheirEnd: an allocation is found all the same, in its place, and who waits for it is told
// of its end and of its removal.
func TestAllocationsBeforeAndAfterTheirEnd(t *testing.T) {
	s := New()
	write := func(index uint64, change func(*Txn)) {
		x := s.Begin()
		x.Entry(Origin{Index: index, At: packedTimes[0]})
		change(x)
		x.Commit()
	}
	write(1, func(x *Txn) {
		for n := range 6 {
			a := endedAllocation(n)
			if n%2 == 0 {
				a.State, a.EndedAt = AllocationActive, time.Time{}
			}
			x.PutAllocation(a, "")
		}
	})
	ids := func() (all []int) {
		for a := range s.View().Allocations(nil) {
			var n int
			if _, err := fmt.Sscanf(string(a.ID), "al-%d", &n); err != nil {
				t.Fatal(err)
			}
			all = append(all, n)
		}
		return all
	}
	if got := ids(); !slices.Equal(got, []int{0, 1, 2, 3, 4, 5}) {
		t.Fatalf("allocations %v", got)
	}
	unended := 0
	for a := range s.View().UnendedAllocations(nil) {
		if unended++; !a.State.Live() {
			t.Errorf("%s is %s", a.ID, a.State)
		}
	}
	if unended != 3 {
		t.Errorf("%d unended ones", unended)
	}
	told := func(what string, ws WatchSet) {
		t.Helper()
		for c := range ws { // one of them is enough
			select {
			case <-c:
				return
			default:
			}
		}
		t.Errorf("nobody is told that %s", what)
	}
	of, one := endedAllocation(4), endedAllocation(3)
	ends, goes, whole := WatchSet{}, WatchSet{}, WatchSet{}
	v := s.View()
	if a := v.Allocation(ends, of.ID); a == nil || a.State != AllocationActive {
		t.Fatalf("%+v", a)
	}
	if a := v.Allocation(goes, one.ID); a == nil || a.State != AllocationReleased || len(a.Journal) != 8 {
		t.Fatalf("%+v", a)
	}
	v.Allocations(whole)
	write(2, func(x *Txn) { x.PutAllocation(of, "") })
	told("it ended", ends)
	told("one of all ended", whole)
	if got, want := s.View().EndedBefore(one.EndedAt.Add(time.Nanosecond)), []id.Allocation{endedAllocation(1).ID, one.ID}; !slices.Equal(got, want) {
		t.Errorf("%v ended before, want %v", got, want)
	}
	if a := s.View().Allocation(nil, of.ID); a == nil || a.State != AllocationReleased || s.View().LiveAllocation(nil, of.Organization) != nil {
		t.Errorf("after its end: %+v", a)
	}
	write(3, func(x *Txn) { x.RemoveAllocation(one.ID) })
	told("it was removed", goes)
	if got := ids(); !slices.Equal(got, []int{0, 1, 2, 4, 5}) {
		t.Errorf("allocations %v", got)
	}
	if a := v.Allocation(nil, of.ID); a == nil || a.State != AllocationActive {
		t.Errorf("in the view of before: %+v", a)
	}
}
