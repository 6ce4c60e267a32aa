package systemtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/failpoint"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// disk is a way to have a disk full.
type disk struct {
	fill func(t *testing.T, part string) // of "agent" or "coordinator"
	free func(t *testing.T, part string)
}

// diskSteps are the steps of each part that need space.
var diskSteps = map[string]string{
	"agent":       "journal. reconcile.statedir nginx.generation. nginx.journal. nginx.pointer. nginx.route.slot nginx.route.symlink",
	"coordinator": "raft.log",
}

// TestDiskFull makes the steps that need space fail as a full disk does, which works everywhere. Where this
// user may mount a file system it also fills a real one.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	t.Run("steps", func(t *testing.T) {
		full := filepath.Join(t.TempDir(), "full")
		s := start(t, setup{flavor: crashing, gateways: 2, env: []string{failpoint.FullVariable + "=" + full}})
		s.fullDisks(t, disk{
			fill: func(t *testing.T, part string) {
				if err := os.WriteFile(full, []byte(diskSteps[part]), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			free: func(t *testing.T, _ string) {
				if err := os.Remove(full); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
	t.Run("mounted", func(t *testing.T) {
		dir := shortDir(t)
		if err := mount(t, dir, "agent", "size=16m"); err != nil {
			t.Logf("no file system can be mounted here (%v): the steps above stand for it", err)
			return
		}
		if err := mount(t, dir, "coordinator", "size=300m"); err != nil {
			t.Fatal(err)
		}
		// Mounted directories are something that demiurge dev did not make: this says that they are its own.
		if err := os.WriteFile(filepath.Join(dir, "demiurge-dev"), []byte("demiurge dev 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := start(t, setup{flavor: crashing, gateways: 2, dir: dir})
		s.fullDisks(t, disk{
			fill: func(t *testing.T, part string) {
				fillUp(t, filepath.Join(dir, part, "ballast"))
				if part == "coordinator" { // its log's next entries have their space already
					s.kill(s.pid("coordinator-1"))
				}
			},
			free: func(t *testing.T, part string) {
				if err := os.Remove(filepath.Join(dir, part, "ballast")); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}

// mount puts a small file system in the place of a directory.
func mount(t *testing.T, dir, part, size string) error {
	t.Helper()
	path := filepath.Join(dir, part)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, size+",mode=0700"); err != nil {
		return err
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, 0); err != nil {
			t.Error(err)
		}
	})
	return nil
}

// fillUp writes a file until nothing more fits.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// fullDisks fills the disk of the agent and of the coordinator. What is served stays, what is asked for is
// refused and undone, and all is well when there is space again.
func (s *system) fullDisks(t *testing.T, d disk) {
	orgs := s.organizations(2)
	anchor, other := s.allocate(orgs[0], ""), orgs[1]
	s.waitWhole(orgs...)
	t.Run("agent", func(t *testing.T) {
		s := s.on(t)
		d.fill(t, "agent")
		_, _, err := s.client.Start(t.Context(), api.StartAllocation{OrganizationID: other})
		wantFault(t, err, fault.Internal, "free space")
		s.mustServe(anchor)
		if m := s.unrefused(other); m != "" {
			t.Error(m)
		}
		d.free(t, "agent")
		s.works(other)
	})
	t.Run("coordinator", func(t *testing.T) {
		s := s.on(t)
		from := len(s.logs()["log/coordinator-1.log"])
		d.fill(t, "coordinator")
		_, _, err := s.client.Start(t.Context(), api.StartAllocation{OrganizationID: other})
		if f := (*fault.Error)(nil); err == nil || errors.As(err, &f) && f.Code != fault.NoLeader {
			t.Errorf("the start was answered with %v", err)
		}
		waitTrue(t, "the coordinator to say what is wrong", func() bool {
			said := s.logs()["log/coordinator-1.log"][from:]
			return strings.Contains(said, "disk is full") || strings.Contains(said, "no space left on device")
		})
		s.mustServe(anchor)
		d.free(t, "coordinator")
		s.works(other)
	})
	s.mustServe(anchor)
	if a, err := s.client.OrganizationAllocation(t.Context(), anchor.OrganizationID); err != nil || a.AllocationID != anchor.AllocationID || a.Epoch != anchor.Epoch {
		t.Errorf("the allocation is %+v, %v; it was %+v", a, err, anchor)
	}
}

// works waits until the system is whole and fails the test unless an organization can be started then.
func (s *system) works(organization string) {
	s.t.Helper()
	s.waitWhole(organization)
	a := s.allocate(organization, "")
	s.mustServe(a)
	s.release(a)
	s.waitWhole(organization)
}
