package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// kept is how many generations stay on disk.
const kept = 5

// syncEachUpTo is the size of a generation, in files, up to which every file is synced by itself.
const syncEachUpTo = 24

// attempt is one generation on its way to be live.
type attempt struct {
	n        uint64
	files    tree
	digest   string
	rollback bool // the last live content under a new number

	master process
	begun  time.Time
	pushed bool // SIGHUP was sent: nginx may run it
	proven bool // nginx runs it and nothing else; only the journal may not know yet
}

// failure is why an attempt did not become live.
type failure struct {
	reason string
	// refused: nginx said no in a test. The same text will be refused again, unless a part is left out.
	refused bool
	// transient: it may go through later without any change (port taken, disk full, nginx died).
	transient bool
	err       error
}

func (f *failure) Error() string { return f.reason }
func (f *failure) Unwrap() error { return f.err }

func transient(err error, format string, args ...any) *failure {
	return &failure{reason: fmt.Sprintf(format, args...) + ": " + err.Error(), transient: true, err: err}
}

// stage writes generation n durably under its final name.
func stage(f fsx.FS, l layout, n uint64, files tree, digest string) error {
	if err := write(f, l, n, files, digest); err != nil {
		return err
	}
	if err := settle(f, l, n, files); err != nil {
		_ = f.RemoveAll("nginx.generation.clean", l.generation(n))
		return err
	}
	return nil
}

// write writes generation n under its final name, which nothing that is half written has unless the machine
// crashes before settle. Its manifest tells then; and neither journal nor pointer names it before.
func write(f fsx.FS, l layout, n uint64, files tree, digest string) error {
	temp := l.generation(n) + ".tmp"
	err := writeTree(f, "nginx.generation", temp, files)
	if err == nil {
		err = f.Write("nginx.generation.manifest", filepath.Join(temp, manifestName), manifestOf(files, digest).encode(), 0o600)
	}
	if err == nil {
		err = f.Rename("nginx.generation.rename", temp, l.generation(n))
	}
	if err != nil {
		_ = f.RemoveAll("nginx.generation.clean", temp)
		return fmt.Errorf("cannot write generation %d: %w", n, err)
	}
	return nil
}

// settle makes a written generation and its name durable.
func settle(f fsx.FS, l layout, n uint64, files tree) error {
	dir := l.generation(n)
	var err error
	if len(files) > syncEachUpTo {
		// One syncfs is cheaper than very many fsyncs, but it waits for everything that anybody has written
		// to the file system; a small generation does not.
		err = errors.Join(f.SyncFS("nginx.generation.durable", dir), f.SyncDir("nginx.generation.sync", l.generations()))
	} else {
		err = settleEach(f, l, dir, append(files.names(), manifestName))
	}
	if err != nil {
		return fmt.Errorf("cannot write generation %d: %w", n, err)
	}
	return nil
}

// settleEach syncs every file and directory of a generation by itself, at the same time: the file system makes
// them durable together.
func settleEach(f fsx.FS, l layout, dir string, names []string) error {
	errs := make([]error, len(names)+3)
	var group sync.WaitGroup // all end with their file
	for i, name := range names {
		group.Go(func() { errs[i] = f.SyncFile("nginx.generation.file", filepath.Join(dir, name)) })
	}
	last := errs[len(names):]
	group.Go(func() { last[0] = f.SyncDir("nginx.generation.sites", filepath.Join(dir, "sites")) })
	group.Go(func() { last[1] = f.SyncDir("nginx.generation.durable", dir) })
	group.Go(func() { last[2] = f.SyncDir("nginx.generation.sync", l.generations()) })
	group.Wait()
	return errors.Join(errs...)
}

// try takes one configuration through all steps. On failure the last live content serves, or the
// journal says what is still to be put back.
func (e *Engine) try(ctx context.Context, cfg Config, digest string) error {
	master, err := findMaster(e.l, e.opts.Binary)
	if err != nil {
		return transient(err, "cannot apply a configuration")
	}
	if master.stopped() {
		return transient(errWedged, "cannot apply a configuration")
	}
	if master.stray {
		return transient(errStray, "cannot apply a configuration")
	}
	a := &attempt{n: e.nextNumber(), digest: digest, master: master, begun: e.opts.Now()}
	a.files = e.r.render(a.n, cfg)
	e.change(func(st *state) { st.attempted = a.n })
	if err := e.prepare(ctx, a); err != nil {
		return err
	}
	unlock, err := fsx.Lock(ctx, e.l.applyLock())
	if err != nil {
		return transient(err, "another program prepares nginx")
	}
	defer unlock()
	err = e.push(ctx, a)
	if err == nil || a.proven {
		return err // a proven one that the disk did not take into the journal is finished later
	}
	return e.goBack(ctx, a, err)
}

// prepare writes a generation durably and has it tested; neither needs the other, so they go on beside each
// other. On failure nothing is left of it.
func (e *Engine) prepare(ctx context.Context, a *attempt) error {
	if err := write(e.fs, e.l, a.n, a.files, a.digest); err != nil {
		return transient(err, "the disk did not take it")
	}
	settled := make(chan error, 1)
	go func() { settled <- settle(e.fs, e.l, a.n, a.files) }() // received below
	err := e.test(ctx, a)
	if err == nil {
		err = e.preflight(a)
	}
	if lost := <-settled; lost != nil { // whatever nginx says of it
		err = transient(lost, "the disk did not take it")
	}
	if err != nil {
		return errors.Join(err, e.discard(a.n))
	}
	return nil
}

// nextNumber reserves a number that no file has ever borne.
func (e *Engine) nextNumber() uint64 {
	var n uint64
	e.change(func(st *state) {
		st.j.Last++
		n = st.j.Last
	})
	return n
}

// test lets nginx read the generation, with the limits of the running master.
func (e *Engine) test(ctx context.Context, a *attempt) error {
	if err := e.fs.Step("nginx.test"); err != nil {
		return transient(err, "cannot test the configuration")
	}
	return e.nginxTest(ctx, a.master, "generations/"+number(a.n)+"/http.conf")
}

// discard removes a generation that nginx has not seen.
func (e *Engine) discard(n uint64) error {
	return e.fs.RemoveAll("nginx.generation.discard", e.l.generation(n))
}

// push makes a staged generation the one that nginx loads, and proves it. The caller holds the lock that
// keeps Prepare away from the pointer.
func (e *Engine) push(ctx context.Context, a *attempt) error {
	// What nginx is about to read must be what was tested.
	if _, _, err := readGeneration(e.fs, e.l.generation(a.n)); err != nil {
		return transient(err, "the generation changed on disk")
	}
	j := e.snapshot().j
	j.Candidate, j.RollingBack = a.n, a.rollback
	if err := e.record("candidate", j); err != nil {
		return transient(err, "the disk did not take the plan")
	}
	fences, err := e.fences(a.n)
	if err != nil {
		return transient(err, "cannot set a fence")
	}
	old := hold(a.master) // before nginx can have read the new pointer, whoever tells it to
	defer old.release()
	if err := e.point(a.n); err != nil {
		return transient(err, "cannot move the pointer")
	}
	tail := tailFrom(e.l.errorLog())
	if err := e.fs.Step("nginx.hup"); err != nil {
		return transient(err, "cannot signal nginx")
	}
	a.pushed = true
	if err := a.master.signal(syscall.SIGHUP); err != nil {
		return transient(err, "cannot signal nginx")
	}
	if err := e.prove(ctx, a, fences, old, tail); err != nil {
		return err
	}
	a.proven = true
	return e.commit(a)
}

// record writes the journal and remembers it.
func (e *Engine) record(step string, j journal) error {
	if err := saveJournal(e.fs, e.l, step, j); err != nil {
		return err
	}
	e.change(func(st *state) { st.j = j })
	return nil
}

// point replaces the pointer file.
func (e *Engine) point(n uint64) error {
	return fsx.WriteAtomic(e.fs, "nginx.pointer", e.l.pointer(), pointerText(n), 0o600)
}

// fences gives every generation socket but that of n a second name. nginx removes the first name when it
// drops the socket; a connect to the second is refused only when the last process has closed it.
func (e *Engine) fences(n uint64) ([]string, error) {
	entries, err := e.fs.ReadDir("nginx.fence.list", e.l.run)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, entry := range entries {
		m := socketName.FindStringSubmatch(entry.Name())
		if m == nil {
			continue
		}
		other, ok := parseNumber(m[1])
		if !ok || other == n {
			continue
		}
		if m[2] == "sock" {
			err := e.fs.Link("nginx.fence.link", e.l.socket(other), e.l.fence(other))
			if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		if !slices.Contains(out, e.l.fence(other)) {
			out = append(out, e.l.fence(other))
		}
	}
	return out, nil
}

// deadline is how long a generation may take to be proven: above nginx's five tries to bind.
func (e *Engine) deadline() time.Duration {
	return max(5*time.Second, 3*e.snapshot().took)
}

// prove waits until the new generation answers on its own socket and nobody listens on the others any
// more. The first answer alone proves nothing: old and new workers accept side by side until the old ones are
// told to end, here or by the master.
func (e *Engine) prove(ctx context.Context, a *attempt, fences []string, old *predecessors, tail logTail) error {
	ctx, cancel := context.WithTimeout(ctx, e.deadline())
	defer cancel()
	explain := func(err error, what string) error {
		if reason, bind := verdict(tail.lines(a.master.pid)); reason != "" {
			return &failure{reason: reason, transient: bind, err: err}
		}
		if !a.master.alive() {
			return transient(errNoMaster, "nginx ended while it loaded generation %d", a.n)
		}
		if a.master.stopped() {
			return transient(errWedged, "generation %d was not loaded", a.n)
		}
		// A machine can be this slow: tried again later, not refused for good.
		return transient(err, "%s of generation %d in time", what, a.n)
	}
	if err := e.fs.Step("nginx.fence.answer"); err != nil {
		return transient(err, "cannot ask generation %d", a.n)
	}
	looked := time.Now()
	err := poll(ctx, func() (bool, error) {
		if e.answers(ctx, a.n, 250*time.Millisecond) {
			return true, nil
		}
		if time.Since(looked) > 20*time.Millisecond { // fail early, with nginx's reason
			looked = time.Now()
			if reason, _ := verdict(tail.lines(a.master.pid)); reason != "" || !a.master.alive() || a.master.stopped() {
				return false, errors.New("nginx gave up")
			}
		}
		return false, nil
	})
	if err != nil {
		return explain(err, "no answer")
	}
	if err := e.fs.Step("nginx.fence.refuse"); err != nil {
		return transient(err, "cannot ask the predecessor of generation %d", a.n)
	}
	retired := old == nil
	for _, fence := range fences {
		err := poll(ctx, func() (bool, error) {
			if !a.master.alive() {
				return false, errNoMaster
			}
			retired = retired || e.retire(old)
			return refuses(ctx, fence), nil
		})
		if err != nil {
			return explain(err, "the predecessor still accepts connections instead")
		}
	}
	if err := e.fs.Step("nginx.canary"); err != nil {
		return transient(err, "cannot try generation %d", a.n)
	}
	if err := e.canary(ctx, a.files); err != nil {
		var wrong *wrongAnswer
		if !errors.As(err, &wrong) {
			return transient(err, "cannot try generation %d", a.n)
		}
		return &failure{reason: fmt.Sprintf("generation %d answers wrongly: %v", a.n, err), err: err}
	}
	return nil
}

// commit records a proven generation and clears away what came before it.
func (e *Engine) commit(a *attempt) error {
	j := e.snapshot().j
	j.Live, j.Candidate, j.RollingBack = a.n, 0, false
	if err := e.record("live", j); err != nil {
		return transient(err, "generation %d is live, but the disk did not take it into the journal", a.n)
	}
	took := e.opts.Now().Sub(a.begun)
	e.change(func(st *state) {
		st.adopt(a.files, a.digest)
		st.proven, st.took, st.force, st.attempted = true, took, false, a.n
	})
	e.tidy()
	e.log.Info("generation is live", "generation", a.n, "rollback", a.rollback, "took", took)
	e.event(Event{Type: GenerationLive, Generation: a.n, Took: took})
	return nil
}

// tidy removes sockets of other generations and old generations. Failing costs only space until the
// next time.
func (e *Engine) tidy() {
	live := e.snapshot().j.Live
	if entries, err := e.fs.ReadDir("nginx.tidy.list", e.l.run); err == nil {
		for _, entry := range entries {
			m := socketName.FindStringSubmatch(entry.Name())
			if n, ok := parseNumber(first(m)); m != nil && ok && (n != live || m[2] == "fence") {
				_ = e.fs.Remove("nginx.tidy.socket", filepath.Join(e.l.run, entry.Name()))
			}
		}
	}
	numbers, err := existing(e.fs, e.l)
	if err != nil {
		e.log.Warn("cannot clear old generations", "error", err)
		return
	}
	older := slices.DeleteFunc(slices.Clone(numbers), func(n uint64) bool { return n >= live })
	for i, n := range numbers {
		// Beyond the live one lies only what was refused or rolled back.
		if i < len(older)-kept+1 || n > live {
			_ = e.fs.RemoveAll("nginx.tidy.generation", e.l.generation(n))
		}
	}
}

func first(m []string) string {
	if len(m) < 2 {
		return ""
	}
	return m[1]
}

// checkMain puts nginx.conf right: nginx reads it again at every SIGHUP, and what it says (a working
// directory that is missing, for one) can leave nginx without workers although every test passed.
func (e *Engine) checkMain(descriptors uint64) error {
	text := func(n uint64) []byte { return e.r.mainConf(e.l.pid(), e.l.errorLog(), "live.conf", n) }
	got, err := e.fs.ReadFile("nginx.main.read", e.l.mainConf())
	if err == nil && bytes.Equal(got, text(descriptorsIn(got))) {
		return nil
	}
	if err := fsx.WriteAtomic(e.fs, "nginx.main", e.l.mainConf(), text(descriptors), 0o600); err != nil {
		return fmt.Errorf("cannot write %s: %w", e.l.mainConf(), err)
	}
	e.log.Warn("nginx.conf was changed and has been put back")
	e.event(Event{Type: DriftRepaired, Part: "nginx.conf", Reason: "changed by somebody else"})
	return nil
}

// descriptorsIn is the number of open files that a nginx.conf was written for: nginx and the agent may run with
// different limits, and either writes it. All else follows from the configuration and this number.
func descriptorsIn(mainConf []byte) uint64 {
	for line := range strings.Lines(string(mainConf)) {
		if rest, ok := strings.CutPrefix(line, "worker_rlimit_nofile "); ok {
			n, err := strconv.ParseUint(strings.TrimSuffix(rest, ";\n"), 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// ownDescriptors is the hard limit on open files of this process, bounded to what nginx needs.
func ownDescriptors() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return min(limit.Max, 65536)
}

// missingDirs are the directories that nginx needs and does not make.
func (e *Engine) missingDirs() error {
	for _, dir := range e.l.dirs() {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			continue
		}
		if err := e.fs.MkdirAll("nginx.layout.mkdir", dir, 0o700); err != nil {
			return fmt.Errorf("cannot make directory %s: %w", dir, err)
		}
	}
	return nil
}
