//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// programs are those that hosts run.
var programs = []string{"demiurge-coordinator", "demiurge-agent", "demiurge-gateway"}

// clockVariable names the file that says by how many seconds a program's wall clock is wrong; testdata/clock reads it.
const clockVariable = "DEMIURGE_E2E_CLOCK"

// build builds the programs of a source tree into a directory. With clocks, the wall clock of each can be set: nothing
// else of Linux can do that to one program of a machine, so the standard library's own clock is changed.
func build(tree, to string, clocks bool) error {
	args := []string{"build", "-tags", "failpoints", "-o", to + "/"}
	if clocks {
		overlay := to + ".overlay"
		if err := writeOverlay(overlay); err != nil {
			return err
		}
		args = append(args, "-overlay", filepath.Join(overlay, "overlay.json"))
	}
	for _, p := range programs {
		args = append(args, "./cmd/"+p)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -buildvcs=false"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the programs of %s: %w\n%s", tree, err, out)
	}
	return nil
}

// writeOverlay writes what stands in the place of the package time's source: the same with a clock that can be set.
func writeOverlay(dir string) error {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("cannot find Go's own source: %w", err)
	}
	source := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		return err
	}
	const reads = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), reads) != 1 {
		return fmt.Errorf("%s of %s does not read the clock as this test knows it: look at Now there and mend writeOverlay", source, runtime.Version())
	}
	changed := strings.Replace(string(text), reads, reads+"\tsec += step.Load()\n", 1)
	clock, err := filepath.Abs("testdata/clock/step.go.txt")
	if err != nil {
		return err
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(source, "time.go"): filepath.Join(dir, "time.go"), filepath.Join(source, "step.go"): clock,
	}})
	return errors.Join(err, os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "time.go"), []byte(changed), 0o600),
		os.WriteFile(filepath.Join(dir, "overlay.json"), replace, 0o600))
}

// buildPrevious builds the programs of the latest earlier version whose data must still load: the coordinator's tests
// keep a fixture of each, which is named after the commit that made it.
func buildPrevious(to string) (commit string, err error) {
	fixtures, err := filepath.Glob("../../coordinator/testdata/previous/*/data.tar.gz")
	if err != nil || len(fixtures) == 0 {
		return "", fmt.Errorf("there is no fixture of a previous version: %w", err)
	}
	args := []string{"log", "--no-walk", "--format=%h"} // the latest first
	for _, f := range fixtures {
		args = append(args, filepath.Base(filepath.Dir(f)))
	}
	out, err := exec.Command("git", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cannot find the previous version in the history (a clone without it: git fetch --unshallow): %w\n%s", err, out)
	}
	commit = strings.Fields(string(out))[0]
	tree := to + ".tree"
	if err := os.MkdirAll(tree, 0o700); err != nil {
		return "", err
	}
	if out, err := exec.Command("bash", "-c", `set -o pipefail; git -C "$(git rev-parse --show-toplevel)" archive "$1" | tar -x -C "$2"`, "bash", commit, tree).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot take version %s out of the history: %w\n%s", commit, err, out)
	}
	return commit, build(tree, to, false)
}

// installed is the directory with the programs of a host.
func (c *cluster) installed(name string) string { return filepath.Join(c.dir, name+".bin") }

// install gives a host these programs. What runs goes on with those that it has.
func (c *cluster) install(name, from string) error {
	dir := c.installed(name)
	errs := []error{os.MkdirAll(dir, 0o700)}
	for _, p := range programs {
		next := filepath.Join(dir, p+".new")
		errs = append(errs, os.Link(filepath.Join(from, p), next), os.Rename(next, filepath.Join(dir, p)))
	}
	return errors.Join(errs...)
}

// upgrade comes before all others, for after it there is nothing left to upgrade: what follows goes on with the data
// that the previous version wrote.
var upgrade = breakage{family: "an upgrade", name: "today's programs in the place of the previous ones", begin: (*nemesis).upgrade}

// upgrade restarts one thing after the other with today's programs, in the order that docs/operations.md gives. It
// waits for each, as an operator does.
func (n *nemesis) upgrade() error {
	c := n.c
	for _, o := range append(slices.DeleteFunc(slices.Clone(c.nodes), func(o *node) bool { return o == n.leader }), n.leader) {
		if err := errors.Join(c.install(o.name, c.bin), o.End(), o.Start()); err != nil {
			return err
		}
		c.await(o.name+" with today's programs", func() error {
			leader, err := c.leader()
			if err != nil {
				return err
			}
			there, err := c.state(leader)
			if err != nil {
				return err
			}
			here, err := c.state(o)
			if err == nil && here.Index+100 < there.Index {
				err = fmt.Errorf("it is at index %d of %d", here.Index, there.Index)
			}
			return err
		})
	}
	for _, h := range c.hosts {
		if err := errors.Join(c.install(h.name, c.bin), h.agent.End(), h.agent.Start()); err != nil {
			return err
		}
		c.await("the agent of "+h.name+" with today's programs", func() error {
			_, err := h.metrics(c.ctx)
			return err
		})
	}
	return nil
}
