package nginx

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Engine owns the nginx directory of one host. Open makes one, Run drives it, and while it lives no
// other engine can have the directory. All methods are safe for concurrent use.
type Engine struct {
	opts   Options
	l      layout
	r      renderer
	fs     fsx.FS
	log    hclog.Logger
	routes *routes
	web    *listenerClient
	wake   chan struct{} // holds one token when the apply loop has something to look at
	close  func()        // gives files and locks back, once
	waits  sync.Once     // to say that old workers cannot be told to end

	mu sync.Mutex // guards st; never held during I/O
	st state
}

// state is what callers ask for. The apply loop is its only writer, but for desired and condition.
type state struct {
	desired    *Config // nil until SetConfig
	serial     uint64  // rises with every SetConfig
	j          journal // as on disk, or as it will be when the disk takes it
	digest     string  // of the live generation
	live       tree    // its files as they were proven, whatever happens to them on disk
	base       string  // URL of a listener of the live generation
	slots      map[id.Gateway]Slot
	proven     bool   // the live generation has answered during this engine's life
	force      bool   // the live generation's files are damaged: write a new one even if nothing changed
	attempted  uint64 // the generation that the desired configuration last became
	condition  string
	master     process // the one seen last; its pid is 0 until one was seen
	draining   int
	lastError  string
	quarantine map[string]quarantined
	took       time.Duration // of the last proven generation
	changed    chan struct{} // closed and replaced whenever something above changes
}

// Open takes the directory over: it makes what is missing, repairs what a crash has left and reads
// which generation was proven and which routes exist. It does not need nginx to run.
func Open(opts Options) (*Engine, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := opts.prepareDirs(); err != nil {
		return nil, err
	}
	l := layout{data: opts.DataDir, run: opts.RunDir}
	if err := l.checkVersion(opts.Binary); err != nil {
		return nil, err
	}
	unlock, err := fsx.TryLock(l.ownerLock())
	if err != nil {
		return nil, fmt.Errorf("cannot use directory %s: another agent has it: %w", l.data, err)
	}
	files := opts.FS
	closeFiles := func() {}
	if files == nil {
		o, err := fsx.NewOS(l.data, l.run)
		if err != nil {
			unlock()
			return nil, err
		}
		files, closeFiles = o, func() { _ = o.Close() }
	}
	e := &Engine{
		opts: opts, l: l, r: renderer{opts, l}, fs: files, log: opts.Logger,
		routes: newRoutes(files, l), web: newListenerClient(opts), wake: make(chan struct{}, 1),
		st: state{condition: api.NginxDown, quarantine: map[string]quarantined{}, changed: make(chan struct{})},
	}
	e.close = sync.OnceFunc(func() {
		e.web.close()
		closeFiles()
		unlock()
	})
	if err := e.recoverFiles(); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// Close gives the directory back. Run does it too when it ends; after it only reads of memory work.
func (e *Engine) Close() error {
	e.close()
	return nil
}

// recoverFiles is the part of start-up that needs no nginx.
func (e *Engine) recoverFiles() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	unlock, err := fsx.Lock(ctx, e.l.applyLock())
	if err != nil {
		return err
	}
	defer unlock()
	j, err := establish(e.fs, e.l, e.r)
	if err != nil {
		return err
	}
	files, m, err := readGeneration(e.fs, e.l.generation(j.Live))
	if err != nil {
		return err
	}
	e.st.j = j
	e.st.adopt(files, m.digest)
	if e.st.quarantine, err = loadQuarantine(e.fs, e.l); err != nil {
		return err
	}
	return e.routes.load()
}

// adopt takes over what the live generation says.
func (st *state) adopt(files tree, digest string) {
	st.live, st.digest, st.slots = files, digest, map[id.Gateway]Slot{}
	for _, s := range parseSlots(files) {
		st.slots[s.Gateway] = s
	}
	if ls := listeners(files); len(ls) > 0 {
		st.base = ls[0].base()
	}
}

// establish makes the layout, removes leftovers and makes sure that the journal names a whole
// generation as live. Both Open and Prepare begin with it; it changes neither pointer nor nginx.
func establish(f fsx.FS, l layout, r renderer) (journal, error) {
	if err := bringUpToDate(f, l); err != nil {
		return journal{}, err
	}
	for _, dir := range l.dirs() {
		if err := f.MkdirAll("nginx.layout.mkdir", dir, 0o700); err != nil {
			return journal{}, fmt.Errorf("cannot make directory %s: %w; is the disk full or the directory not writable?", dir, err)
		}
	}
	for _, dir := range []string{l.data, l.quarantine()} {
		if err := fsx.RemoveTemps(f, "nginx.leftovers", dir); err != nil {
			return journal{}, fmt.Errorf("cannot clear leftovers in %s: %w", dir, err)
		}
	}
	if err := forgetOtherBoot(f, l); err != nil {
		return journal{}, err
	}
	if err := recordVersion(f, l); err != nil {
		return journal{}, err
	}
	j, found, err := loadJournal(f, l)
	if err != nil {
		found = false // damaged: what is proven is on disk, see below
	}
	numbers, err := existing(f, l)
	if err != nil {
		return journal{}, err
	}
	for _, n := range numbers {
		j.Last = max(j.Last, n)
	}
	if found {
		if _, _, err := readGeneration(f, l.generation(j.Live)); err == nil {
			return j, nil
		}
	}
	return fallback(f, l, r, j, numbers)
}

// fallback finds a whole generation when the journal or the live generation is damaged or there is none
// yet: the pointer's, else the newest whole one, else a new one without gateways.
func fallback(f fsx.FS, l layout, r renderer, j journal, numbers []uint64) (journal, error) {
	next := journal{Last: j.Last, Rejected: j.Rejected}
	candidates := numbers
	if b, err := f.ReadFile("nginx.pointer.read", l.pointer()); err == nil {
		if n, ok := parsePointer(b); ok {
			candidates = append(candidates, n)
		}
	}
	for i := len(candidates) - 1; i >= 0 && next.Live == 0; i-- {
		if _, _, err := readGeneration(f, l.generation(candidates[i])); err == nil {
			next.Live = candidates[i]
		}
	}
	if next.Live == 0 {
		return begin(f, l, r, next)
	}
	return next, saveJournal(f, l, "initial", next)
}

// begin makes a generation without gateways the live one. The agent gives it what is wanted.
func begin(f fsx.FS, l layout, r renderer, j journal) (journal, error) {
	n := j.Last + 1
	if err := stage(f, l, n, r.render(n, Config{}), r.digest(Config{})); err != nil {
		return journal{}, err
	}
	next := journal{Live: n, Last: n, Rejected: j.Rejected}
	return next, saveJournal(f, l, "initial", next)
}

// existing lists the numbers that files bear, in rising order, and removes half-written generations.
func existing(f fsx.FS, l layout) ([]uint64, error) {
	entries, err := f.ReadDir("nginx.generations.list", l.generations())
	if err != nil {
		return nil, fmt.Errorf("cannot list generations: %w", err)
	}
	var out []uint64
	for _, entry := range entries {
		if n, ok := parseNumber(entry.Name()); ok {
			out = append(out, n)
		} else if err := f.RemoveAll("nginx.leftovers.generation", filepath.Join(l.generations(), entry.Name())); err != nil {
			return nil, fmt.Errorf("cannot remove half-written generation %s: %w", entry.Name(), err)
		}
	}
	return out, nil
}

// SetConfig says what nginx shall know. The newest call wins; Run applies it.
func (e *Engine) SetConfig(cfg Config) {
	e.change(func(st *state) {
		st.desired = &cfg
		st.serial++
	})
	e.poke()
}

func (e *Engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// change changes the state and wakes everybody who waits for a change.
func (e *Engine) change(f func(*state)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(&e.st)
	close(e.st.changed)
	e.st.changed = make(chan struct{})
}

func (e *Engine) snapshot() state {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := e.st
	st.slots, st.quarantine = maps.Clone(st.slots), maps.Clone(st.quarantine)
	return st
}

// WaitSlot waits until the proven live generation names the gateway. It fails when the gateway's part
// is quarantined, with nginx's words, and when ctx ends, with the last error of the engine.
func (e *Engine) WaitSlot(ctx context.Context, g id.Gateway) error {
	for {
		e.mu.Lock()
		_, named := e.st.slots[g]
		q, bad := e.st.quarantine[slotPart(g)]
		ready, last, changed := named && e.st.proven, e.st.lastError, e.st.changed
		e.mu.Unlock()
		if ready {
			return nil
		}
		if bad {
			return fault.New(fault.RouteApplyFailed, "cannot give gateway %s a place in nginx: %s", g, q.Message)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if last == "" {
				last = "nginx has not taken it up yet"
			}
			return fault.Wrap(fault.RouteApplyFailed, ctx.Err(), "cannot give gateway %s a place in nginx in time: %s", g, last)
		}
	}
}

// Status is what an operator wants to see.
func (e *Engine) Status() api.NginxStatus {
	st := e.snapshot()
	out := api.NginxStatus{
		State: st.condition, LiveGeneration: st.j.Live, DesiredGeneration: max(st.attempted, st.j.Live),
		Routes: e.routes.len(), DrainingWorkers: st.draining, LastError: st.lastError,
	}
	for _, q := range st.quarantine {
		out.Quarantined = append(out.Quarantined, api.QuarantinedPart{Part: q.Part, Message: q.Message, Since: q.Since})
	}
	sortQuarantined(out.Quarantined)
	return out
}

func (e *Engine) event(ev Event) {
	ev.At = e.opts.Now()
	e.opts.Events(ev)
}
