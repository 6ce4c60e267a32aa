package nginx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// hugePages lets nginx take its memory in large pieces: half of the time in which it reads a configuration
// with 1,000 gateways it would otherwise spend on asking the kernel for 4,600 small ones.
const hugePages = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"

// oneGrab lets nginx -t, which soon ends, ask for all its memory at once: a sixth of its time.
const oneGrab = hugePages + ":glibc.malloc.top_pad=33554432"

// nginxTest runs nginx -t on a generation or on a scratch copy, with the master's limit on open files.
// include is relative to the data directory. A nil error means that nginx would read it; what -t
// cannot see is left to preflight and proof.
func (e *Engine) nginxTest(ctx context.Context, master process, include string) error {
	// In the same directory as nginx.conf, because nginx resolves includes from there.
	conf := filepath.Join(e.l.data, "test.conf")
	text := e.r.mainConf(filepath.Join(e.l.run, "test.pid"), "stderr", include, ownDescriptors())
	if err := e.fs.Write("nginx.test.write", conf, text, 0o600); err != nil {
		return transient(err, "the disk did not take the test configuration")
	}
	limit, err := descriptorLimit(master.pid)
	if err != nil {
		return transient(err, "cannot test with the limits of nginx")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `ulimit -S -n "$0"; exec "$@"`, fmt.Sprint(limit),
		e.opts.Binary, "-t", "-e", "stderr", "-p", prefix, "-c", conf)
	cmd.Env = append(os.Environ(), oneGrab)
	cmd.WaitDelay = time.Second
	var out ending
	cmd.Stdout, cmd.Stderr = &out, &out
	runErr := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return transient(ctx.Err(), "the test of the configuration did not end")
	case errors.As(runErr, &exit):
		return &failure{reason: words(out.String(), "[emerg]", "[crit]", "[alert]", "[error]"), refused: true, err: runErr}
	case runErr != nil:
		return transient(runErr, "cannot run %s", e.opts.Binary)
	case strings.Contains(out.String(), "conflicting server name"):
		// nginx only warns and ignores the second server: somebody's requests would go elsewhere.
		return &failure{reason: words(out.String(), "conflicting server name"), refused: true}
	}
	return nil
}

// ending is the last of what is written to it: nginx says at the end why it refuses, after a warning for each of many
// parts.
type ending struct{ b []byte }

// mostHeard bounds what is kept of nginx's output, and mostWords what is made of it for reports and records. A line of
// nginx has at most 2 KiB.
const (
	mostHeard = 64 << 10
	mostWords = 4 << 10
)

// Write implements io.Writer.
func (e *ending) Write(p []byte) (int, error) {
	e.b = append(e.b, p...)
	if len(e.b) > 2*mostHeard { // not at every line: what is kept is moved
		e.b = append(e.b[:0], e.b[len(e.b)-mostHeard:]...)
	}
	return len(p), nil
}

func (e *ending) String() string { return string(e.b[max(0, len(e.b)-mostHeard):]) }

// words picks from nginx's output the lines that say why; without any it is the whole output. It is text of at most
// mostWords.
func words(out string, marks ...string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(line, m) }) {
			lines = append(lines, strings.TrimPrefix(message(strings.TrimSpace(line)), "nginx: "))
		}
	}
	if len(lines) == 0 {
		lines = []string{strings.TrimSpace(out)}
	}
	return clip(strings.Join(lines, "; "))
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), mostWords)], "") }

// culprits finds the parts without which nginx accepts the configuration, each with nginx's words. None:
// the configuration is refused whatever parts are left out.
func (e *Engine) culprits(ctx context.Context, master process, cfg Config, words string) (map[string]string, error) {
	defer func() { _ = e.fs.RemoveAll("nginx.scratch.remove", e.l.scratch()) }()
	bad := map[string]string{}
	left := cfg
	for {
		part := e.r.blame(words, e.r.renderTo("scratch", 0, left), left)
		if part == "" {
			var err error
			if part, words, err = e.bisect(ctx, master, left); err != nil || part == "" {
				return nil, err
			}
		}
		bad[part] = words
		left = keep(left, func(p string) bool { return p != part })
		reason, err := e.scratchTest(ctx, master, left)
		if err != nil {
			return nil, err
		}
		if reason == "" {
			return bad, nil
		}
		words = reason
	}
}

// bisect finds the first part with which the configuration is refused although it is accepted with all
// parts before it. It takes log2 of the number of parts tests.
func (e *Engine) bisect(ctx context.Context, master process, cfg Config) (part, words string, err error) {
	names := partNames(cfg)
	prefix := func(n int) Config {
		return keep(cfg, func(p string) bool { return slices.Contains(names[:n], p) })
	}
	if reason, err := e.scratchTest(ctx, master, prefix(0)); err != nil || reason != "" || len(names) == 0 {
		return "", reason, err
	}
	good, refused := 0, len(names)
	words, err = e.scratchTest(ctx, master, cfg)
	if err != nil || words == "" {
		return "", "", err
	}
	for refused-good > 1 {
		middle := (good + refused) / 2
		reason, err := e.scratchTest(ctx, master, prefix(middle))
		if err != nil {
			return "", "", err
		}
		if reason == "" {
			good = middle
		} else {
			refused, words = middle, reason
		}
	}
	return names[refused-1], words, nil
}

// scratchTest tests a configuration that will never be live. The reason is empty when nginx accepts it.
func (e *Engine) scratchTest(ctx context.Context, master process, cfg Config) (reason string, err error) {
	if err := e.fs.Step("nginx.scratch"); err != nil {
		return "", transient(err, "cannot look for the refused part")
	}
	if err := e.fs.RemoveAll("nginx.scratch.clear", e.l.scratch()); err != nil {
		return "", transient(err, "cannot look for the refused part")
	}
	if err := writeTree(e.fs, "nginx.scratch", e.l.scratch(), e.r.renderTo("scratch", 0, cfg)); err != nil {
		return "", transient(err, "cannot look for the refused part")
	}
	err = e.nginxTest(ctx, master, "scratch/http.conf")
	var f *failure
	if errors.As(err, &f) && f.refused {
		return f.reason, nil
	}
	return "", err
}

var listenLine = regexp.MustCompile(`(?m)^    listen (\S+:[0-9]+)( ssl http2)? default_server;$`)

// listeners reads the addresses of a rendered http.conf back, in its order.
func listeners(t tree) []listener {
	var out []listener
	for _, m := range listenLine.FindAllSubmatch(t["http.conf"], -1) {
		if a, err := netip.ParseAddrPort(string(m[1])); err == nil {
			out = append(out, listener{addr: a, tls: len(m[2]) > 0})
		}
	}
	return out
}

// preflight looks for what nginx -t passes and the running nginx then fails at: directories, listeners
// that cannot be bound, descriptors.
func (e *Engine) preflight(a *attempt) error {
	if err := e.fs.Step("nginx.preflight"); err != nil {
		return transient(err, "cannot check the configuration")
	}
	if err := e.missingDirs(); err != nil {
		return transient(err, "nginx would have no workers")
	}
	limit, err := descriptorLimit(a.master.pid)
	if err != nil {
		return transient(err, "cannot check the limits of nginx")
	}
	if err := e.checkMain(ownDescriptors()); err != nil {
		return transient(err, "nginx would read a changed main file")
	}
	wanted := listeners(a.files)
	if need := descriptorsNeeded(len(wanted), e.opts); need > limit {
		reason := fmt.Sprintf("nginx may open %d files and needs %d for its listeners, logs and workers: raise LimitNOFILE of its unit", limit, need)
		return &failure{reason: reason, transient: true}
	}
	return bindTest(wanted, listeners(e.snapshot().live))
}

// descriptorsNeeded counts what the master holds: each listener, two logs, two ends of a channel to every
// worker, old workers included, and some for itself.
func descriptorsNeeded(listeners int, o Options) uint64 {
	return uint64(listeners + 2 + 2*o.Workers*(1+o.MaxDrainingWorkers) + 32)
}

// bindTest binds the listeners that the running nginx does not have, for a moment. nginx -t accepts a
// port that is taken; the running nginx would try for 2.5 s and then keep the old generation.
func bindTest(wanted, live []listener) error {
	for _, w := range wanted {
		if slices.ContainsFunc(live, func(l listener) bool { return l.addr == w.addr }) {
			continue
		}
		for _, l := range live {
			if clash(w.addr, l.addr) {
				return &failure{transient: true, reason: fmt.Sprintf(
					"nginx cannot change from listening on %s to %s in one step: take %s away first, add %s after that", l.addr, w.addr, l.addr, w.addr)}
			}
		}
		probe, err := net.Listen("tcp", w.addr.String())
		if err != nil {
			return transient(err, "cannot listen on %s: another program has it, or it is no address of this host", w.addr)
		}
		if err := probe.Close(); err != nil {
			return transient(err, "cannot end the test of listener %s", w.addr)
		}
	}
	return nil
}
