package fsm_test

import (
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// fleet is a cluster of hosts with ready gateways, and organizations, made in big entries.
func fleet(b *testing.B, hosts, perHost, orgs int) *machine {
	m := newMachine(b)
	m.check = false
	m.ok(command.PutPool{Meta: m.meta(), Pool: "default", Max: hosts * perHost, Step: 3, MaxInFlight: 10, Isolation: "serve"})
	for h := range hosts {
		name := id.Host("h" + coded(h, 3))
		m.host(name, perHost)
		m.ready("default", name, h*perHost, (h+1)*perHost-1)
	}
	for n := range orgs {
		m.org(n)
	}
	return m
}

// cycle is the commands of one allocation's life.
type cycle struct {
	m   *machine
	n   int
	org int
}

func (c *cycle) run() {
	m := c.m
	c.n++
	allocation := alID(c.n)
	if out := m.ok(m.reserveOf(c.org, c.n)).Reserved[0]; out.Err != nil {
		m.Fatal(out.Err)
	}
	m.ok(m.confirmOf(allocation))
	m.ok(command.Release{Meta: m.meta(), Allocation: allocation})
	g := m.allocation(allocation).Gateway
	m.observe(m.report(g, api.PhaseReady))
}

// BenchmarkReserveCycle is Reserve, Confirm, Release and Observe, each an entry and a transaction of its
// own, with 20 hosts of 200 ready gateways.
func BenchmarkReserveCycle(b *testing.B) {
	m := fleet(b, 20, 200, 100)
	c := cycle{m: m}
	used := cpu(b)
	for b.Loop() {
		c.org = c.n % 100
		c.run()
		if c.n%10000 == 0 { // as the leader's loop does
			m.ok(command.Collect{Meta: m.meta(), Before: m.now.Add(time.Hour)})
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "cycles/s")
	b.ReportMetric(float64(b.N)/(cpu(b)-used).Seconds(), "cycles/cpu-s")
}

// BenchmarkReserveCycleTogether is the same with 64 cycles side by side, as they come to a busy leader:
// entries that are committed together are one transaction.
func BenchmarkReserveCycleTogether(b *testing.B) {
	const together = 64
	m := fleet(b, 20, 200, together)
	used, n := cpu(b), 0
	for b.Loop() {
		batch := func(make func(org, allocation int) command.Command) {
			entries := [together]*raft.Log{}
			for i := range entries {
				entries[i] = m.entry(make(i, n+i))
			}
			for _, answer := range m.fsm.ApplyBatch(entries[:]) {
				if err := answer.(command.Result).Err; err != nil {
					b.Fatal(err)
				}
			}
		}
		batch(func(org, allocation int) command.Command { return m.reserveOf(org, allocation) })
		batch(func(_, allocation int) command.Command { return m.confirmOf(alID(allocation)) })
		batch(func(_, allocation int) command.Command {
			return command.Release{Meta: m.meta(), Allocation: alID(allocation)}
		})
		batch(func(_, allocation int) command.Command {
			a := m.allocation(alID(allocation))
			r := m.report(a.Gateway, api.PhaseReady)
			return command.ObserveHost{Meta: m.meta(), Host: a.Host, Instance: "i1", Gateways: []command.GatewayReport{r}}
		})
		if n += together; n%(100*together) == 0 {
			m.ok(command.Collect{Meta: m.meta(), Before: m.now.Add(time.Hour)})
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "cycles/s")
	b.ReportMetric(float64(n)/(cpu(b)-used).Seconds(), "cycles/cpu-s")
}

// BenchmarkReserveBatch is one Reserve of 50,000 organizations.
func BenchmarkReserveBatch(b *testing.B) {
	const items = 50_000
	m := fleet(b, 50, items/50, items)
	c := command.Reserve{Meta: m.meta(), Pool: "default"}
	for n := range items {
		c.Items = append(c.Items, command.ReserveItem{Organization: orgID(n), Allocation: alID(n)})
	}
	data, err := command.Encode(c)
	if err != nil {
		b.Fatal(err)
	}
	saved := m.snapshot()
	index := m.index + 1
	m = nil // its store would only make the collector's work longer
	var used time.Duration
	entry := &raft.Log{Index: index, Type: raft.LogCommand, Data: data}
	for b.Loop() {
		b.StopTimer()
		store := state.New()
		f := fsm.New(store, nil)
		restore(b, f, saved)
		runtime.GC()
		before := cpu(b)
		b.StartTimer()
		for _, out := range f.Apply(entry).(command.Result).Reserved {
			if out.Err != nil {
				b.Fatal(out.Err)
			}
		}
		used += cpu(b) - before
	}
	b.ReportMetric(items*float64(b.N)/used.Seconds(), "items/cpu-s")
	b.ReportMetric(items*float64(b.N)/b.Elapsed().Seconds(), "items/s")
}

// BenchmarkHundredThousandGateways is the heap that 100,000 ready gateways on 500 hosts hold.
func BenchmarkHundredThousandGateways(b *testing.B) {
	for b.Loop() {
		before := heap()
		m := fleet(b, 500, 200, 0)
		used := heap() - before
		if n := m.store.View().Counts(nil, "default").Of(state.GatewayReady); n != 100_000 {
			b.Fatal(n, "are ready")
		}
		b.ReportMetric(float64(used)/(1<<20), "heap-MiB")
		b.ReportMetric(float64(used)/100_000, "B/gateway")
		runtime.KeepAlive(m)
	}
}

// BenchmarkSnapshotRestore writes and restores 100,000 gateways.
func BenchmarkSnapshotRestore(b *testing.B) {
	m := fleet(b, 500, 200, 0)
	var saved string
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			saved = m.snapshot()
		}
		b.ReportMetric(float64(len(saved))/(1<<20), "MiB")
	})
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			restore(b, fsm.New(state.New(), nil), saved)
		}
	})
}

// cpu is the processor time that this process has used: on a machine that others use too, it says more than
// the clock. It includes the garbage collector's.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

func restore(t testing.TB, f *fsm.FSM, saved string) {
	t.Helper()
	if err := f.Restore(closer{strings.NewReader(saved)}); err != nil {
		t.Fatal(err)
	}
}

type closer struct{ *strings.Reader }

func (closer) Close() error { return nil }
