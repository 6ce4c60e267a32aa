package nginx

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// formatVersion is the version of the layout below. A data directory of the version before is brought up
// to date while nginx does not run; every other one is refused.
const (
	formatVersion = "3"
	formatBefore  = "2" // routes lay in the data directory
)

// layout names every file of the engine. The tree is described in DESIGN.md.
type layout struct {
	data, run string
}

func (l layout) version() string    { return l.data + "/VERSION" }
func (l layout) mainConf() string   { return l.data + "/nginx.conf" }
func (l layout) pointer() string    { return l.data + "/live.conf" }
func (l layout) journal() string    { return l.data + "/journal" }
func (l layout) quarantine() string { return l.data + "/quarantine" }
func (l layout) routes() string     { return l.run + "/routes" }
func (l layout) slotFile() string   { return l.run + "/slot" }
func (l layout) boot() string       { return l.run + "/boot" }
func (l layout) certs() string      { return l.data + "/certs" }
func (l layout) logs() string       { return l.data + "/log" }
func (l layout) errorLog() string   { return l.data + "/log/error.log" }
func (l layout) accessLog() string  { return l.data + "/log/access.log" }
func (l layout) temp() string       { return l.data + "/temp" }
func (l layout) scratch() string    { return l.data + "/scratch" }
func (l layout) pid() string        { return l.run + "/nginx.pid" }
func (l layout) applyLock() string  { return l.run + "/apply.lock" }
func (l layout) ownerLock() string  { return l.run + "/engine.lock" }

func (l layout) generations() string { return l.data + "/generations" }

func (l layout) generation(n uint64) string { return l.generations() + "/" + number(n) }
func (l layout) socket(n uint64) string     { return l.run + "/gen-" + number(n) + ".sock" }
func (l layout) fence(n uint64) string      { return l.run + "/gen-" + number(n) + ".fence" }

func (l layout) route(o id.Organization) string { return l.routes() + "/" + string(o) }

// slot is what an organization's route leads to. It is another name of one empty file: its path is the
// message. It lies beside the routes, so that nginx resolves no more names.
func (l layout) slot(t Target) string { return l.routes() + "/" + link(t) }

func (l layout) certificate(o id.Organization) string { return l.certs() + "/" + string(o) + ".pem" }

// dirs are made at every start.
func (l layout) dirs() []string {
	return []string{l.generations(), l.quarantine(), l.routes(), l.certs(), l.logs(), l.temp()}
}

// base32 are the characters of a gateway's random part.
const base32 = "abcdefghijklmnopqrstuvwxyz234567"

// upstreamName is the gateway's upstream. nginx compares a name with every other one of its length, for
// each block that it reads and for each request, so names have 32 lengths: the last character says which.
func upstreamName(g id.Gateway) string {
	return string(g) + strings.Repeat("-", max(0, strings.IndexByte(base32, g[len(g)-1])))
}

// link is the content of a route's symbolic link. nginx reads the upstream from it.
func link(t Target) string { return upstreamName(t.Gateway) + "." + t.Epoch.String() }

// parseLink is the inverse of link; anything else is not a route of ours.
func parseLink(s string) (Target, bool) {
	upstream, epoch, found := strings.Cut(s, ".")
	if !found {
		return Target{}, false
	}
	g, err := id.ParseGateway(strings.TrimRight(upstream, "-"))
	if err != nil {
		return Target{}, false
	}
	e, err := id.ParseEpoch(epoch)
	t := Target{g, e}
	return t, err == nil && link(t) == s
}

// number prints a generation as it stands in paths.
func number(n uint64) string { return fmt.Sprintf("%06d", n) }

func parseNumber(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && n > 0 && number(n) == s
}

var socketName = regexp.MustCompile(`^gen-([0-9]{6,})\.(sock|fence)$`)

// pointerText is the whole content of the pointer file. The path is relative to nginx.conf.
func pointerText(n uint64) []byte {
	return []byte("include generations/" + number(n) + "/http.conf;\n")
}

func parsePointer(b []byte) (uint64, bool) {
	rest, ok := strings.CutPrefix(string(b), "include generations/")
	num, ok2 := strings.CutSuffix(rest, "/http.conf;\n")
	n, ok3 := parseNumber(num)
	return n, ok && ok2 && ok3
}

// checkVersion refuses a directory that another version of the layout wrote. The version before can be
// brought up to date, but not under a running nginx, which reads the routes where they were.
func (l layout) checkVersion(binary string) error {
	b, err := os.ReadFile(l.version())
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", l.version(), err)
	}
	before, err := l.parseVersion(b)
	if err != nil || !before {
		return err
	}
	if master, err := findMaster(l, binary); err == nil {
		return fmt.Errorf("cannot use directory %s: nginx (pid %d) still runs with format %s of it and this program writes format %s; restart nginx (systemctl restart demiurge-nginx)",
			filepath.Clean(l.data), master.pid, formatBefore, formatVersion)
	}
	return nil
}

// parseVersion reads the text of the file of the version: this one, or the one before.
func (l layout) parseVersion(b []byte) (before bool, err error) {
	switch string(b) {
	case formatVersion + "\n":
		return false, nil
	case formatBefore + "\n":
		return true, nil
	}
	return false, fmt.Errorf("cannot use directory %s: it has format %.20q and this program writes format %s; run the program that wrote it, or empty the directory",
		filepath.Clean(l.data), strings.TrimSuffix(string(b), "\n"), formatVersion)
}
