package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/shared/fsx/fsxtest"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// pinning is a host whose first gateway takes upgrades and whose second one answers.
func pinning(t *testing.T) (h *host, cfg func(int) Config, upgrades, plain id.Organization) {
	t.Helper()
	h = newHost(t)
	h.opts.MaxDrainingWorkers = 1000
	h.withFaults()
	h.startNginx()
	h.startEngine()
	ws, gw := h.gateway(http.HandlerFunc(upgraded)), h.gateway(nil)
	h.apply(slots(ws, gw))
	upgrades, plain = id.NewOrganization(), id.NewOrganization()
	h.route(upgrades, ws, 1)
	h.route(plain, gw, 1)
	return h, func(i int) Config { return Config{Slots: []Slot{{ws.id, int64(1000 + i)}, {gw.id, 0}}} }, upgrades, plain
}

// live waits until a round's configuration is.
func (h *host) live(cfg Config) {
	h.t.Helper()
	eventually(h.t, "the generation is live", func() bool {
		st := h.engine.snapshot()
		s := cfg.Slots[0]
		return st.slots[s.Gateway].MaxBody == s.MaxBody && st.j.Candidate == 0
	})
}

// load asks for a gateway all the time until the returned function is called: on connections of their own, none of
// which may fail, and on kept ones, which nginx may close between two requests.
func (h *host) load(org id.Organization) (stop func() (asked int)) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup // stop waits for all of them
	var asked atomic.Int64
	for i := range 4 {
		tr := &http.Transport{DisableKeepAlives: i%2 == 0, MaxIdleConnsPerHost: 4}
		group.Go(func() {
			defer tr.CloseIdleConnections()
			for ctx.Err() == nil {
				req, err := http.NewRequest(http.MethodGet, "http://"+h.opts.Listen[0].String()+"/who", nil)
				if err != nil {
					h.t.Error(err)
					return
				}
				req.Host = orgHost(org)
				resp, err := (&http.Client{Transport: tr}).Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				if err != nil || resp.StatusCode != http.StatusOK {
					h.t.Errorf("a request was lost, kept connections %t: %v", i%2 == 1, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	return func() int { cancel(); group.Wait(); return int(asked.Load()) }
}

var startedWorker = regexp.MustCompile(`\[notice\] (\d+)#\d+: start worker process (\d+)`)

// workers tells how many workers nginx has started ever, and how many of them take connections.
func (h *host) workers() (started, serving int) {
	h.t.Helper()
	b, err := os.ReadFile(h.layout().errorLog())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, pid := range children(h.nginx.PID()) {
		if serves(pid) {
			serving++
		}
	}
	return len(startedWorker.FindAll(b, -1)), serving
}

// toldToEnd is how many workers we have told to end so far, by nginx's log.
func (h *host) toldToEnd() int {
	h.t.Helper()
	b, err := os.ReadFile(h.layout().errorLog())
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.Count(string(b), fmt.Sprintf("signal 3 (SIGQUIT) received from %d, shutting down", os.Getpid()))
}

// alerts are the lines of nginx's log that say that something is wrong with it.
func (h *host) alerts() (out []string) {
	h.t.Helper()
	b, err := os.ReadFile(h.layout().errorLog())
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "[alert]") && !strings.Contains(line, "setrlimit") || strings.Contains(line, "[emerg]") {
			out = append(out, line)
		}
	}
	return out
}

// Old workers that are told to end while nginx's master sleeps: none is started again, no request is lost, and what
// they have open lives on.
func TestOldWorkersAreToldToEndWhileTheMasterSleeps(t *testing.T) {
	t.Parallel()
	h, cfg, upgrades, plain := pinning(t)
	stop := h.load(plain)
	const rounds = 12
	var echoes []func(string) error
	for i := range rounds {
		echoes = append(echoes, h.dialUpgrade(upgrades))
		h.engine.SetConfig(cfg(i))
		h.live(cfg(i))
	}
	if asked := stop(); asked < rounds {
		t.Errorf("only %d requests", asked)
	}
	if h.toldToEnd() == 0 { // it is two in each, but when the master was faster
		t.Error("no worker was told to end")
	}
	// One generation was there before, and one for the gateways.
	eventually(t, "the new workers and no others take connections", func() bool {
		_, serving := h.workers()
		return serving == h.opts.Workers
	})
	if started, _ := h.workers(); started != h.opts.Workers*(rounds+2) {
		t.Errorf("nginx has started %d workers in %d generations: some were started again", started, rounds+2)
	}
	if lines := h.alerts(); len(lines) > 0 {
		t.Errorf("nginx says: %s", lines)
	}
	for i, echo := range echoes {
		if err := echo("still open"); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	h.clean()
}

// The agent dies when it has told one of two workers: the master tells the other one.
func TestTheAgentDiesBetweenTwoOldWorkers(t *testing.T) {
	t.Parallel()
	h, cfg, upgrades, plain := pinning(t)
	echo := h.dialUpgrade(upgrades)
	before := children(h.nginx.PID())
	h.faulty.Before("nginx.workers.quit", func() { _ = syscall.Kill(before[0], syscall.SIGQUIT) })
	h.faulty.CrashAt(fsxtest.Point{Label: "nginx.workers.quit", N: 1})
	h.engine.SetConfig(cfg(1))
	<-h.faulty.Crashed()
	h.stopEngine()
	stop := h.load(plain)
	h.withFaults()
	h.startEngine()
	h.engine.SetConfig(cfg(1))
	h.live(cfg(1))
	h.settled()
	stop()
	eventually(t, "the new workers and no others take connections", func() bool {
		_, serving := h.workers()
		return serving == h.opts.Workers
	})
	if started, _ := h.workers(); started != 3*h.opts.Workers {
		t.Errorf("nginx has started %d workers in 3 generations", started)
	}
	if err := echo("still open"); err != nil {
		t.Error(err)
	}
	h.clean()
}

// What is in the way of telling them costs time only: the master does it.
func TestOldWorkersThatCannotBeToldAreLeftToTheMaster(t *testing.T) {
	t.Parallel()
	h, cfg, _, plain := pinning(t)
	before := h.toldToEnd()
	h.faulty.Fail("nginx.workers.quit", errors.New("not now"))
	stop := h.load(plain)
	for i := range 2 {
		h.engine.SetConfig(cfg(i))
		h.live(cfg(i))
	}
	stop()
	if n := h.toldToEnd() - before; n != 0 {
		t.Errorf("%d workers were told to end", n)
	}
	if st := h.engine.Status(); st.LastError != "" {
		t.Error(st.LastError)
	}
	h.clean()

	// It is said once.
	var said bytes.Buffer
	e := &Engine{log: hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: &said})}
	for range 3 {
		if !e.retire(&predecessors{why: errors.New("not allowed")}) {
			t.Error("it is tried again")
		}
	}
	if n := strings.Count(said.String(), "not allowed"); n != 1 || !strings.Contains(said.String(), "[DEBUG]") {
		t.Errorf("said %d times: %s", n, said.String())
	}
}

// Nothing but a worker of that master is held, and nothing is signalled when it has ended.
func TestOnlyWorkersOfTheMasterAreHeld(t *testing.T) {
	t.Parallel()
	h, _, _, _ := pinning(t)
	shell := exec.Command("sh", "-c", "sleep 60 & echo; wait")
	out, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 1)) // it has its child
	parent, err := lookAt(shell.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	kids := children(parent.pid)
	if p := hold(parent); len(kids) != 1 || len(p.held) != 0 || p.why != nil {
		t.Errorf("children %v, held %v: %v", kids, p.held, p.why)
	}
	fd, err := unix.PidfdOpen(kids[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(kids[0], syscall.SIGKILL)
	_ = shell.Wait()
	self, err := lookAt(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	ended := &predecessors{master: self, held: []worker{{kids[0], fd}}}
	eventually(t, "the child is gone", func() bool { return parentOf(kids[0]) == 0 })
	if err := ended.end(); err != nil {
		t.Errorf("it ended before it was told: %v", err)
	}
	ended.release()

	master, err := findMaster(h.layout(), h.opts.Binary)
	if err != nil {
		t.Fatal(err)
	}
	p := hold(master)
	defer p.release()
	if len(p.held) != h.opts.Workers || p.why != nil {
		t.Errorf("%d of %d workers are held: %v", len(p.held), h.opts.Workers, p.why)
	}
	if p.succeeded(1) {
		t.Error("they are their own successors")
	}
	h.nginx.Stop()
	if err := p.end(); !errors.Is(err, errNoMaster) {
		t.Errorf("the master has ended: %v", err)
	}
}
