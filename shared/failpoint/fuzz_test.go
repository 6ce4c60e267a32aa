package failpoint_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

// FuzzParse: what is taken as a failpoint can be reached, a number of times, and is written and read as the same; what is
// not is refused by its variable: else a test would pass without its fault.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"nginx.hup", "nginx.hup:3", "a:+1", "a:01", "a:1:2", "a b", "a\n", ":1", "a:9223372036854775808", "a=eio", "a=300ms", "a=-1s", "=eio", "a=1e9h", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if label, n, err := failpoint.Parse(s); err != nil {
			if !strings.Contains(err.Error(), failpoint.Variable) || len(err.Error()) > 500 {
				t.Fatalf("refused with %v", err)
			}
		} else if !possible(label) || n < 1 {
			t.Fatalf("%q is read as %q, %d", s, label, n)
		} else if again, _, err := failpoint.Parse(label); err != nil || again != label {
			t.Fatalf("%q is read as %q, and that as %q, %v", s, label, again, err)
		}
		fault, err := failpoint.ParseFault(s)
		switch {
		case err != nil:
			if !strings.Contains(err.Error(), failpoint.FullVariable) || len(err.Error()) > 500 {
				t.Fatalf("refused with %v", err)
			}
		case !possible(fault.Label) || !strings.HasPrefix(s, fault.Label):
			t.Fatalf("%q is read as %+v", s, fault)
		case fault.Delay < 0 || fault.Err != nil && fault.Err != syscall.ENOSPC && fault.Err != syscall.EIO || fault.Err != nil && fault.Delay != 0:
			t.Fatalf("%q is read as %+v", s, fault)
		}
	})
}

func possible(label string) bool { return label != "" && !strings.ContainsAny(label, ":= \t\n\x00") }
