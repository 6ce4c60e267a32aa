package journal_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

func disk(t testing.TB, dir string) *fsxtest.Faulty {
	t.Helper()
	real, err := fsx.NewOS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = real.Close() })
	return fsxtest.New(real)
}

func open(t testing.TB, f fsx.FS, path string) *journal.Journal {
	t.Helper()
	j, err := journal.Open(journal.Options{Path: path, FS: f, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func entries(t testing.TB, j *journal.Journal) map[id.Gateway]journal.Entry {
	t.Helper()
	list, err := j.Entries()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[id.Gateway]journal.Entry)
	for _, e := range list {
		out[e.Gateway.Gateway] = e
	}
	return out
}

func sample(n uint64) *journal.Gateway {
	g := &journal.Gateway{
		Gateway: "gw-aaaaaaaaaa", Incarnation: n, Used: true, Restarts: 2, Epoch: 9,
		Wanted:  journal.Wanted{Target: api.TargetRun, Incarnation: n, Pool: "default", Limits: api.Limits{BodyBytes: 5}},
		Process: &driver.Process{Gateway: "gw-aaaaaaaaaa", PID: 7, StartTime: 8, MachineBoot: "b"},
		Grant:   &journal.Grant{Organization: "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11", Allocation: "al-aaaaaaaaaaaaaaaa", Epoch: 9, Version: 3, Served: true},
		Change:  steps.New("activate", "route"),
	}
	g.Change.Steps[0].Status = steps.Doing
	return g
}

func TestWhatIsPutIsThereAfterReopening(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j := open(t, disk(t, dir), path)
	body := &api.Activate{OrganizationID: "o", Epoch: 9, Members: []api.Member{{UserID: "ada", Role: "owner"}}}
	must(t, j.PutGrant(sample(1), &api.Activate{OrganizationID: "o", Epoch: 9}))
	must(t, j.PutBody("gw-aaaaaaaaaa", body))
	must(t, j.Put(&journal.Gateway{Gateway: "gw-bbbbbbbbbb", Incarnation: 1}))
	must(t, j.Put(sample(4)))
	must(t, j.Remove("gw-bbbbbbbbbb"))
	must(t, j.Remove("gw-cccccccccc"))
	must(t, j.Sync(context.Background()))
	// The agent is killed: no Close.
	again := open(t, disk(t, dir), path)
	got := entries(t, again)
	if len(got) != 1 || !reflect.DeepEqual(got["gw-aaaaaaaaaa"].Gateway, *sample(4)) || !reflect.DeepEqual(got["gw-aaaaaaaaaa"].Body, body) {
		t.Fatalf("got %+v", got)
	}
	must(t, again.DropBody("gw-aaaaaaaaaa"))
	must(t, again.DropBody("gw-aaaaaaaaaa"))
	if e := entries(t, again)["gw-aaaaaaaaaa"]; e.Body != nil || e.Grant == nil {
		t.Fatalf("got %+v", e)
	}
	must(t, again.Close())
	must(t, again.Close())
	if err := again.Put(sample(5)); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("Put after Close: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the journal may be read by others: %v %v", info.Mode(), err)
	}
}

// TestAGrantIsNeverWithoutItsBody cuts a grant that was being written: its body comes first.
func TestAGrantIsNeverWithoutItsBody(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	f := disk(t, dir)
	j := open(t, f, path)
	must(t, j.PutGrant(sample(1), &api.Activate{OrganizationID: "o", Epoch: 9}))
	f.Fail("journal.append", syscall.ENOSPC)
	f.Fail("journal.rewrite.write", syscall.ENOSPC)
	if err := j.PutGrant(sample(2), &api.Activate{OrganizationID: "p", Epoch: 10}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a full disk: %v", err)
	}
	if e := entries(t, j)["gw-aaaaaaaaaa"]; e.Incarnation != 1 || e.Body == nil || e.Body.OrganizationID != "o" {
		t.Fatalf("what could not be written is remembered: %+v", e)
	}
	f.Fail("journal.append", nil)
	f.Fail("journal.rewrite.write", nil)
	must(t, j.Put(&journal.Gateway{Gateway: "gw-bbbbbbbbbb", Incarnation: 1}))
	must(t, j.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	for cut := len(whole); cut > 0; cut -= 7 {
		must(t, os.WriteFile(path, whole[:cut], 0o600))
		j := open(t, disk(t, dir), path)
		if e, ok := entries(t, j)["gw-aaaaaaaaaa"]; ok && e.Body == nil {
			t.Fatalf("cut after %d of %d bytes: a grant without a body", cut, len(whole))
		}
		must(t, j.Close())
	}
}

// TestATornEndIsCut cuts the file in and around every part: what was whole before is there, and the
// journal works.
func TestATornEndIsCut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j := open(t, disk(t, dir), path)
	must(t, j.Put(sample(1)))
	must(t, j.Close())
	first, err := os.ReadFile(path)
	must(t, err)
	j = open(t, disk(t, dir), path)
	must(t, j.Put(sample(2)))
	must(t, j.Close())
	both, err := os.ReadFile(path)
	must(t, err)
	for cut := len(both); cut >= 0; cut-- {
		edge := cut < 40 || cut > len(both)-3 || cut > len(first)-3 && cut < len(first)+12
		if !edge && cut%17 != 0 {
			continue
		}
		must(t, os.WriteFile(path, both[:cut], 0o600))
		f := disk(t, dir)
		j := open(t, f, path)
		got := entries(t, j)["gw-aaaaaaaaaa"].Incarnation
		want := uint64(0)
		if cut >= len(first) {
			want = 1
		}
		if cut == len(both) {
			want = 2
		}
		if got != want {
			t.Fatalf("cut after %d of %d bytes: incarnation %d, want %d", cut, len(both), got, want)
		}
		must(t, j.Put(sample(3)))
		must(t, j.Close())
		if got := entries(t, open(t, f, path))["gw-aaaaaaaaaa"].Incarnation; got != 3 {
			t.Fatalf("cut after %d bytes: a record written then is %d", cut, got)
		}
	}
}

func TestAFlippedBitEndsTheJournalThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j := open(t, disk(t, dir), path)
	must(t, j.Put(sample(1)))
	must(t, j.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	for i := range whole {
		if i > 60 && i%7 != 0 {
			continue
		}
		broken := append([]byte(nil), whole...)
		broken[i] ^= 0x10
		must(t, os.WriteFile(path, broken, 0o600))
		j, err := journal.Open(journal.Options{Path: path, FS: disk(t, dir), Logger: hclog.NewNullLogger()})
		if i < len("demiurge agent journal 1\n") {
			if err == nil || !strings.Contains(err.Error(), "move it away") {
				t.Fatalf("a file with another beginning was taken: %v", err)
			}
			continue
		}
		must(t, err)
		if got := entries(t, j); len(got) != 0 {
			t.Fatalf("bit %d flipped and still read: %+v", i, got)
		}
		must(t, j.Close())
	}
}

// TestCrashAtEveryStep: whatever step the crash comes at, the journal opens with the old or the new state.
func TestCrashAtEveryStep(t *testing.T) {
	run := func(f *fsxtest.Faulty, path string) (put uint64) {
		j, err := journal.Open(journal.Options{Path: path, FS: f, Logger: hclog.NewNullLogger()})
		if err != nil {
			return 0
		}
		for n := uint64(1); n <= 3; n++ {
			if j.Put(sample(n)) != nil {
				return put
			}
			put = n
			if j.Sync(context.Background()) != nil {
				return put
			}
		}
		return put
	}
	first := t.TempDir()
	f := disk(t, first)
	f.Record()
	run(f, filepath.Join(first, "journal"))
	points := f.Points()
	if len(points) < 8 {
		t.Fatalf("only %v", points)
	}
	for _, p := range points {
		dir := t.TempDir()
		path := filepath.Join(dir, "journal")
		f := disk(t, dir)
		f.CrashAt(p)
		put := run(f, path)
		got := entries(t, open(t, disk(t, dir), path))["gw-aaaaaaaaaa"].Incarnation
		if got != put {
			t.Errorf("crash at %+v: incarnation %d, and %d was put", p, got, put)
		}
	}
}

func TestAFailedWriteIsNotRememberedAndNotTrusted(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	f := disk(t, dir)
	j := open(t, f, path)
	must(t, j.Put(sample(1)))
	for _, label := range []string{"journal.append", "journal.rewrite.write"} {
		f.Fail(label, syscall.ENOSPC) // the second: writing anew fails as well
		if err := j.Put(sample(2)); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "cannot") {
			t.Fatalf("on a full disk: %v", err)
		}
		if got := entries(t, j)["gw-aaaaaaaaaa"].Incarnation; got != 1 {
			t.Fatalf("remembered incarnation %d", got)
		}
	}
	f.Fail("journal.append", nil)
	f.Fail("journal.rewrite.write", nil)
	must(t, j.Put(sample(3)))
	f.Fail("journal.sync", syscall.EIO)
	must(t, j.Put(sample(4)))
	if err := j.Sync(context.Background()); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Sync: %v", err)
	}
	// What a failed fsync left is not known, so the file is written anew and needs no other fsync.
	f.Record()
	must(t, j.Sync(context.Background()))
	if p := f.Points(); len(p) == 0 || p[0].Label != "journal.rewrite.write" {
		t.Fatalf("after a failed sync: %v", p)
	}
	if got := entries(t, open(t, disk(t, dir), path))["gw-aaaaaaaaaa"].Incarnation; got != 4 {
		t.Fatalf("incarnation %d", got)
	}
}

func TestTheFileIsCompacted(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j := open(t, disk(t, dir), path)
	g := sample(1)
	g.Message = strings.Repeat("x", 4000)
	for n := range 2000 { // 8 MB of records of one gateway
		g.Restarts = n
		must(t, j.Put(g))
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Size() > 2<<20 {
		t.Fatalf("%d bytes", info.Size())
	}
	if got := entries(t, open(t, disk(t, dir), path))["gw-aaaaaaaaaa"].Restarts; got != 1999 {
		t.Fatalf("restarts %d", got)
	}
}

func TestManyWritersShareSyncs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	f := disk(t, dir)
	j := open(t, f, path)
	f.Record()
	const writers, each = 20, 20
	var wg sync.WaitGroup
	for range writers {
		g := id.NewGateway()
		wg.Go(func() {
			for n := range each {
				if err := j.Put(&journal.Gateway{Gateway: g, Incarnation: uint64(n + 1)}); err != nil {
					t.Error(err)
				}
				if err := j.Sync(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for g, e := range entries(t, open(t, disk(t, dir), path)) {
		if e.Incarnation != each {
			t.Errorf("%s has incarnation %d", g, e.Incarnation)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	must(t, j.Sync(ctx)) // nothing is left to sync
	must(t, j.Put(sample(1)))
	if err := j.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("Sync with a context that is over: %v", err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func BenchmarkPutAndSync(b *testing.B) {
	dir := b.TempDir()
	j := open(b, disk(b, dir), filepath.Join(dir, "journal"))
	for n := range b.N {
		must(b, j.Put(sample(uint64(n+1))))
		must(b, j.Sync(context.Background()))
	}
}
