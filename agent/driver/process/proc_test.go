package process

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/id"
)

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
