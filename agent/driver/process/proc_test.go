package process

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/id"
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

// FuzzMark: whatever a process has in its environment, it is taken for a gateway of ours only if it says so of itself
// and of a socket below our run directory.
func FuzzMark(f *testing.F) {
	const runDir = "/run/d"
	mark := func(gateway, listen string) string {
		return driver.EnvGateway + "=" + gateway + "\x00" + driver.EnvListen + "=" + listen + "\x00"
	}
	for _, s := range []string{
		mark("gw-aaaaaaaaaa", "/run/d/gw-aaaaaaaaaa/http.sock"), "A=b\x00" + mark("gw-aaaaaaaaaa", "/run/d/x"), mark("gw-aaaaaaaaaa", "/run/d/../x"), mark("gw-aaaaaaaaaa", "/run/dd/x"),
		mark("gw-aaaaaaaaaa", "fd:3"), mark("../../x", "/run/d/x"), mark("gw-aaaaaaaaaa", "/run/d/x") + mark("", "/x"), "X" + mark("gw-aaaaaaaaaa", "/run/d/x"), mark("gw-aaaaaaaaaa\n", "/run/d/x"),
		driver.EnvGateway + "=gw-aaaaaaaaaa\x00", driver.EnvListen + "=/run/d/x", "\x00\x00=", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, environ []byte) {
		gateway := markOf(environ, runDir)
		if gateway == "" {
			return
		}
		says := func(name string, is func(value string) bool) bool {
			return slices.ContainsFunc(strings.Split(string(environ), "\x00"), func(entry string) bool {
				value, ok := strings.CutPrefix(entry, name+"=")
				return ok && is(value)
			})
		}
		if _, err := id.ParseGateway(string(gateway)); err != nil || !says(driver.EnvGateway, func(v string) bool { return v == string(gateway) }) ||
			!says(driver.EnvListen, func(v string) bool { return strings.HasPrefix(filepath.Clean(v), runDir+"/") }) {
			t.Fatalf("%q is taken for gateway %q", environ, gateway)
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
