package systemtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// liarVariable makes this program a gateway that lies, see liar_test.go.
const liarVariable = "SYSTEMTEST_LIAR"

func TestMain(m *testing.M) {
	if os.Getenv(liarVariable) != "" {
		os.Exit(lie())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "dmbin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		programs.dir = dir
		// Another user must be able to run the programs, and this one as a gateway.
		if err := os.Chmod(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// flavor is one way to build the programs.
type flavor string

const (
	raced      flavor = "race"       // a data race anywhere fails the test
	crowded    flavor = "crowd"      // the same with plain gateways: 1,000 recyclings start 1,000 of them
	crashing   flavor = "failpoints" // can be killed at a label
	plain      flavor = "plain"      // as users have them, to measure
	goFlagsEnv        = "GOFLAGS"

	asUsersHave = "-trimpath" // and without C
)

// programs are built once, when a test first wants them.
var programs = builds{built: map[flavor]func() (string, error){}}

type builds struct {
	mu    sync.Mutex
	dir   string
	built map[flavor]func() (string, error)
}

// of is the directory with the programs of a flavor.
func (b *builds) of(t testing.TB, f flavor) string {
	t.Helper()
	b.mu.Lock()
	once, ok := b.built[f]
	if !ok {
		once = sync.OnceValues(func() (string, error) { return b.build(f) })
		b.built[f] = once
	}
	b.mu.Unlock()
	dir, err := once()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func (b *builds) build(f flavor) (string, error) {
	dir := filepath.Join(b.dir, string(f))
	all := []string{"demiurge", "demiurge-agent", "demiurge-coordinator", "demiurge-gateway"}
	switch f {
	case crashing:
		return dir, goBuild(dir, all, "-tags", string(crashing))
	case plain:
		return dir, goBuild(dir, all, asUsersHave)
	case crowded:
		return dir, errors.Join(goBuild(dir, all[:3], "-race"), goBuild(dir, all[3:]))
	}
	return dir, goBuild(dir, all, "-race")
}

func goBuild(dir string, names []string, flags ...string) error {
	args := append([]string{"build", "-o", dir + "/"}, flags...)
	for _, name := range names {
		args = append(args, "../"+name)
	}
	cmd := exec.Command("go", args...)
	// A checkout may belong to another user, and then its revision cannot be read. Nothing here needs it.
	cmd.Env = append(os.Environ(), goFlagsEnv+"="+strings.TrimSpace(os.Getenv(goFlagsEnv)+" -buildvcs=false"))
	if slices.Contains(flags, asUsersHave) {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0") // as make build has it
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the programs: %w\n%s", err, out)
	}
	return nil
}
