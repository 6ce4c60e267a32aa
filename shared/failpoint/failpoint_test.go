package failpoint_test

import (
	"testing"

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
	} {
		label, n, err := failpoint.Parse(c.value)
		if (err == nil) != c.ok || label != c.label || n != c.n {
			t.Errorf("Parse(%q) = %q, %d, %v", c.value, label, n, err)
		}
	}
}
