package failpoint_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		value, label string
		n            int
		ok           bool
	}{
		{"nginx.hup", "nginx.hup", 1, true},
		{"nginx.hup:3", "nginx.hup", 3, true},
		{"", "", 0, false},
		{":2", "", 0, false},
		{"nginx.hup:0", "", 0, false},
		{"nginx.hup:x", "", 0, false},
		{"nginx.hup:", "", 0, false},
		{"nginx hup", "", 0, false},
		{"nginx.hup=eio", "", 0, false},
	} {
		label, n, err := failpoint.Parse(c.value)
		if (err == nil) != c.ok || label != c.label || n != c.n {
			t.Errorf("Parse(%q) = %q, %d, %v", c.value, label, n, err)
		}
	}
}

func TestParseFault(t *testing.T) {
	for _, c := range []struct {
		word string
		want failpoint.Fault
		ok   bool
	}{
		{"raft.log", failpoint.Fault{Label: "raft.log", Err: syscall.ENOSPC}, true},
		{"raft.log=eio", failpoint.Fault{Label: "raft.log", Err: syscall.EIO}, true},
		{"raft.log=300ms", failpoint.Fault{Label: "raft.log", Delay: 300 * time.Millisecond}, true},
		{"raft.log=", failpoint.Fault{}, false},
		{"raft.log=-1s", failpoint.Fault{}, false},
		{"raft.log=eof", failpoint.Fault{}, false},
		{"raft.log:2", failpoint.Fault{}, false},
		{"=eio", failpoint.Fault{}, false}, // it would be every step
	} {
		got, err := failpoint.ParseFault(c.word)
		if (err == nil) != c.ok || c.ok && got != c.want {
			t.Errorf("ParseFault(%q) = %+v, %v", c.word, got, err)
		}
	}
}
