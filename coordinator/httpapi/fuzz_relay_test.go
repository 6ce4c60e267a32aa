package httpapi

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// FuzzRelay: whatever the leader sends on an assignment stream, and in whatever pieces, what fills its silence is a frame of
// the index of the latest line with nothing in it, or there is none; and only little of a line is kept.
func FuzzRelay(f *testing.F) {
	full, err := json.Marshal(api.AssignmentFrame{Index: 7, Full: true, Domain: "example.org"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(full, '\n'), uint(9))
	f.Add([]byte(`{"index":7}`+"\n"+`{"index":18446744073709551615,"ask":true}`+"\n"+`{"ind`), uint(3))
	f.Add([]byte(`{"index":7,"domain":"`+strings.Repeat("x", 200)), uint(20))
	f.Add([]byte(`{"index":18446744073709551616}`+"\n"), uint(1))
	f.Add([]byte(`{"index":"x","full":true}`+"\n"), uint(12))
	f.Add([]byte("\n\n"+`{"index":`+strings.Repeat("1", 100)+"}\n"), uint(64))
	f.Fuzz(func(t *testing.T, stream []byte, cut uint) {
		var whole, pieces beating
		whole.note(stream)
		for rest := stream; len(rest) > 0; {
			n := min(len(rest), 1+int(cut%100))
			pieces.note(rest[:n])
			rest = rest[n:]
		}
		if !bytes.Equal(whole.empty, pieces.empty) || !bytes.Equal(whole.head, pieces.head) || len(whole.head) > mostHead {
			t.Fatalf("in one piece %q and %q, in several %q and %q", whole.empty, whole.head, pieces.empty, pieces.head)
		}
		end := bytes.LastIndexByte(stream, '\n')
		if whole.empty == nil || end < 0 {
			if whole.empty != nil {
				t.Fatalf("before the end of a line %q would be sent", whole.empty)
			}
			return
		}
		var frame api.AssignmentFrame
		if err := json.Unmarshal(whole.empty, &frame); err != nil || !bytes.HasSuffix(whole.empty, []byte("}\n")) || bytes.Count(whole.empty, []byte("\n")) != 1 {
			t.Fatalf("%q would be sent: %v", whole.empty, err)
		}
		again, err := json.Marshal(api.AssignmentFrame{Index: frame.Index})
		if err != nil || string(again) != strings.TrimSpace(string(whole.empty)) {
			t.Fatalf("%q would be sent, want %s, %v", whole.empty, again, err)
		}
		last := stream[bytes.LastIndexByte(stream[:end], '\n')+1 : end]
		var sent api.AssignmentFrame
		if bytes.Count(bytes.ToLower(last), []byte(`index"`)) == 1 && !bytes.Contains(last, []byte(`\u`)) && json.Unmarshal(last, &sent) == nil && sent.Index != frame.Index {
			t.Fatalf("after %q %q would be sent", last, whole.empty)
		}
	})
}
