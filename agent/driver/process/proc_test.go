package process

import (
	"os"
	"testing"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 1000 200"
	for name, tt := range map[string]struct {
		text string
		ok   bool
	}{
		"plain":                          {"42 (sleep)" + rest, true},
		"spaces in the name":             {"42 (a b c)" + rest, true},
		"a name that looks like the end": {"42 (x) R 9 9 9 (y))" + rest, true},
		"cut off":                        {"42 (sleep) S 1 42", false},
		"no name":                        {"42 sleep" + rest, false},
		"empty":                          {"", false},
		"no number":                      {"42 (sleep) S 1 42 x 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 1000 200", false},
		"no time":                        {"42 (sleep) S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 -1 1000 200", false},
	} {
		got, err := parseStat(42, []byte(tt.text))
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
		if want := (stat{pid: 42, state: 'S', session: 43, start: 123456}); tt.ok && got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	own, err := readStat(os.Getpid())
	if err != nil || !own.running() || own.start == 0 {
		t.Errorf("own: %+v, %v", own, err)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (sleep) S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 1000 200"))
	f.Add([]byte("42 (()) Z"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(42, b); err == nil && s.state == 0 {
			t.Errorf("no state: %+v", s)
		}
	})
}

func TestBelow(t *testing.T) {
	for path, want := range map[string]bool{
		"/run/d/gw.sock": true, "/run/d/a/gw.sock": true, "/run/d": false, "/run/dd/gw.sock": false, "/run/d/../gw.sock": false, "gw.sock": false, "": false, "/": false,
	} {
		if got := below("/run/d", path); got != want {
			t.Errorf("below(%q) = %v", path, got)
		}
	}
}
