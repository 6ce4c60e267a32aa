package consensus

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// FuzzVersion: whatever stands in VERSION, it names a node and this program's format, and is written and read as the same,
// or it is refused with what to do; a newer format is never taken for damage, whatever else it says.
func FuzzVersion(f *testing.F) {
	for _, s := range []string{
		`{"format":1,"node_id":"c1"}` + "\n", `{"format":2,"node_id":"c1","cluster":"x"}`, `{"format":2,"node_id":{}}`, `{"format":1}`, `{"format":-1,"node_id":"c1"}`,
		`{"format":1,"node_id":"c1"}}`, `{"format":1e3,"node_id":"\ud800"}`, "null", "[]", "", "\x00",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := parseVersion(raw)
		if err != nil {
			var says struct {
				Format json.RawMessage `json:"format"`
			}
			newer := json.Unmarshal(raw, &says) == nil && string(says.Format) == "2"
			if !strings.Contains(err.Error(), "; r") || len(err.Error()) > 500 || newer && !strings.Contains(err.Error(), "run the program version that wrote it") {
				t.Fatalf("%q is refused with %v", raw, err)
			}
			return
		}
		text, err := json.Marshal(v)
		if err != nil || v.Format != formatVersion || v.NodeID == "" {
			t.Fatalf("%q is read as %+v, %v", raw, v, err)
		}
		if again, err := parseVersion(text); err != nil || again != v {
			t.Fatalf("%q is read as %+v, and that as %+v, %v", raw, v, again, err)
		}
	})
}

// FuzzMark: what is taken as the mark of an orderly close says where the log ended: else a damaged mark would pass for a
// damaged log.
func FuzzMark(f *testing.F) {
	for _, s := range []string{`{"last_index":7}` + "\n", `{"last_index":0}`, `{}`, "null", `{"last_index":null}`, `{"last_index":-1}`, `{"last_index":1}{"last_index":2}`, ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		last, err := parseMark(raw)
		if err != nil {
			return
		}
		if !strings.Contains(strings.ToLower(string(raw)), "index") && !strings.Contains(string(raw), `\u`) {
			t.Fatalf("%q is read as %d", raw, last)
		}
		text, err := json.Marshal(mark{&last})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseMark(text); err != nil || again != last {
			t.Fatalf("%q is read as %d, and that as %d, %v", raw, last, again, err)
		}
	})
}

// FuzzVote: whatever stands in the record of the last vote, it is a vote that is written as the same record, or an error
// that says what to do; and the half of a vote that came before a crash changes nothing.
func FuzzVote(f *testing.F) {
	f.Add([]byte(nil), uint64(1))
	f.Add([]byte("\x07\x00\x00\x00\x00\x00\x00\x00c1"), uint64(8))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), uint64(0))
	f.Add([]byte("short"), uint64(1))
	f.Fuzz(func(t *testing.T, record []byte, next uint64) {
		store := newMemory()
		if err := store.Set([]byte(keyVote), record); err != nil {
			t.Fatal(err)
		}
		restarted := func() *stable { return &stable{guard: newGuard(store, time.Second, func(string) {})} }
		s := restarted()
		if err := s.SetUint64([]byte(keyVoteTerm), next); err != nil {
			t.Fatal(err)
		}
		term, err := s.GetUint64([]byte(keyVoteTerm))
		candidate, err2 := s.Get([]byte(keyVoteCand))
		if (err == nil) != (err2 == nil) {
			t.Fatalf("%q is a vote of term %d (%v) for %q (%v)", record, term, err, candidate, err2)
		}
		if err != nil {
			if !strings.Contains(err.Error(), "the last vote") || !strings.Contains(err.Error(), remedyDamaged) {
				t.Fatalf("%q is refused with %v", record, err)
			}
			return
		}
		if len(record) == 0 && term == 0 && candidate == nil {
			return // none yet
		}
		s = restarted()
		if err := s.SetUint64([]byte(keyVoteTerm), term); err != nil {
			t.Fatal(err)
		}
		if err := s.Set([]byte(keyVoteCand), candidate); err != nil {
			t.Fatal(err)
		}
		if again, err := store.Get([]byte(keyVote)); err != nil || string(again) != string(record) {
			t.Fatalf("%q is a vote of term %d for %q, and that is %q, %v", record, term, candidate, again, err)
		}
	})
}
