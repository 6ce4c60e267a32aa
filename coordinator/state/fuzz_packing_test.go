package state

import (
	"encoding/json"
	"strings"
	"testing"
)

// FuzzPacked: an allocation that has ended, and an event, come out of the form in which they are kept as they went in, to the
// bytes that go into a snapshot.
func FuzzPacked(f *testing.F) {
	for n := range 3 {
		a := endedAllocation(n)
		a.Metadata = map[string]string{"k": strings.Repeat("v", 200)}
		raw, err := json.Marshal(&a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	for _, s := range []string{
		`{"ended_at":"9999-12-31T23:59:59.999999999-23:59","created_at":"0000-01-01T00:00:00Z","pool":"default","state":"released","epoch":18446744073709551615,"metadata":{},"journal":[],"moves":[{}]}`,
		`{"index":1,"seq":-9223372036854775808,"at":"2026-01-02T03:04:05Z","type":"a.b","host":"h1","before":"\u0000"}`,
		`{"index":18446744073709551615,"seq":2147483648,"at":"0001-01-01T00:00:00Z"}`, `{"explanation":{"candidates":[{"load":-0.0},{"load":1e308}]}}`, "null",
	} {
		f.Add([]byte(s))
	}
	same := func(t *testing.T, in, out any) {
		t.Helper()
		a, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := json.Marshal(out); err != nil || string(a) != string(b) {
			t.Fatalf("%s\ncomes back as %s, %v", a, b, err)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var a Allocation
		if json.Unmarshal(raw, &a) == nil {
			packed := pack(&a)
			same(t, &a, packed.unpack())
			if packed.id() != string(a.ID) || !packed.endedAt().Equal(a.EndedAt) {
				t.Fatalf("%q ended at %v, want %q and %v", packed.id(), packed.endedAt(), a.ID, a.EndedAt)
			}
		}
		var events [chunkEvents]Event
		if json.Unmarshal(raw, &events[1]) != nil {
			return
		}
		events[2].Reason, events[2].Before, events[chunkEvents-1] = events[1].Before, events[1].Reason, events[1]
		if sealed := seal(&events); sealed != nil {
			for _, i := range []int{0, 1, 2, chunkEvents - 1} {
				got := (&chunk{sealed: sealed}).at(i)
				same(t, &events[i], &got)
			}
		}
	})
}
