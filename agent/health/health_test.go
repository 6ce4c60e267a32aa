package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAssess(t *testing.T) {
	const gib = 1 << 30
	disk, load, nginx := gossip.ProblemDisk, gossip.ProblemLoad, gossip.ProblemNginx
	well := Machine{CPUs: 4, Load: 1, LongLoad: 1, DiskFree: 50 * gib, DiskSize: 100 * gib}
	with := func(change func(*Machine)) Machine { m := well; change(&m); return m }
	for name, c := range map[string]struct {
		m      Machine
		noNgx  bool
		before []gossip.Problem
		want   []gossip.Problem
	}{
		"well":                        {m: well},
		"nginx is down":               {m: well, noNgx: true, want: []gossip.Problem{nginx}},
		"disk full":                   {m: with(func(m *Machine) { m.DiskFree = 100 << 20 }), want: []gossip.Problem{disk}},
		"disk near its limit":         {m: with(func(m *Machine) { m.DiskFree = 600 << 20 })},
		"disk near its limit, before": {m: with(func(m *Machine) { m.DiskFree = 600 << 20 }), before: []gossip.Problem{disk}, want: []gossip.Problem{disk}},
		"disk free again":             {m: with(func(m *Machine) { m.DiskFree = 700 << 20 }), before: []gossip.Problem{disk}},
		"small disk, half free":       {m: with(func(m *Machine) { m.DiskSize, m.DiskFree = 600<<20, 300<<20 })},
		"small disk, full":            {m: with(func(m *Machine) { m.DiskSize, m.DiskFree = 600<<20, 10<<20 }), want: []gossip.Problem{disk}},
		"busy for a moment":           {m: with(func(m *Machine) { m.Load = 100 })},
		"busy for long":               {m: with(func(m *Machine) { m.LongLoad = 33 }), want: []gossip.Problem{load}},
		"calmer, before":              {m: with(func(m *Machine) { m.LongLoad = 28 }), before: []gossip.Problem{load}, want: []gossip.Problem{load}},
		"calm again":                  {m: with(func(m *Machine) { m.LongLoad = 20 }), before: []gossip.Problem{load}},
		"everything":                  {m: Machine{CPUs: 1, LongLoad: 9, DiskSize: 100 * gib}, noNgx: true, want: []gossip.Problem{disk, load, nginx}},
		"nothing known":               {m: Machine{DiskUnknown: true, LoadUnknown: true}},
	} {
		s := Serving{Generation: 7, NginxOK: !c.noNgx, RouteDigest: 9, Gateways: map[string]uint32{api.GatewayReady: 2}}
		d := Assess(s, c.m, DefaultLimits(), c.before)
		if !reflect.DeepEqual(d.Problems, c.want) {
			t.Errorf("%s: %v, want %v", name, d.Problems, c.want)
		}
		if _, err := d.Encode(); err != nil || d.Generation != 7 || d.RouteDigest != 9 || d.Gateways[api.GatewayReady] != 2 {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	d := Assess(Serving{NginxOK: true}, well, DefaultLimits(), nil)
	if d.LoadPercent != 25 || d.DiskFreeMiB != 50<<10 {
		t.Errorf("figures: %+v", d)
	}
}

func TestDiffers(t *testing.T) {
	a := gossip.Digest{LoadPercent: 100, DiskFreeMiB: 10000, Generation: 1}
	for name, c := range map[string]struct {
		change func(*gossip.Digest)
		want   bool
	}{
		"same":             {func(*gossip.Digest) {}, false},
		"a little load":    {func(d *gossip.Digest) { d.LoadPercent = 124 }, false},
		"more load":        {func(d *gossip.Digest) { d.LoadPercent = 125 }, true},
		"a little disk":    {func(d *gossip.Digest) { d.DiskFreeMiB = 9900 }, false},
		"256 MiB of many":  {func(d *gossip.Digest) { d.DiskFreeMiB = 9700 }, false},
		"a tenth of disk":  {func(d *gossip.Digest) { d.DiskFreeMiB = 8900 }, true},
		"a generation":     {func(d *gossip.Digest) { d.Generation = 2 }, true},
		"a gateway":        {func(d *gossip.Digest) { d.Gateways = map[string]uint32{api.GatewayReady: 1} }, true},
		"a problem":        {func(d *gossip.Digest) { d.Problems = []gossip.Problem{gossip.ProblemDisk} }, true},
		"a state of zeros": {func(d *gossip.Digest) { d.Gateways = map[string]uint32{api.GatewayReady: 0} }, false},
	} {
		b := a
		c.change(&b)
		if got := Differs(a, b); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestParseLoad(t *testing.T) {
	one, five, err := parseLoad([]byte("0.52 1.25 0.59 1/467 12345\n"))
	if err != nil || one != 0.52 || five != 1.25 {
		t.Errorf("read %v %v %v", one, five, err)
	}
	for _, bad := range []string{"", "1", "a b c", "1 x 2", "-1 0 0", "0 -1 0", "NaN 0 0", "0 NaN 0", "Inf 0 0", "0 +inf 0", "1e300 0 0"} {
		if _, _, err := parseLoad([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// FuzzParseLoad: what is read as the load is a number that a digest can carry and that is written and read as the same.
func FuzzParseLoad(f *testing.F) {
	for _, s := range []string{"0.52 1.25 0.59 1/467 12345\n", "inf 0 0", "0x1p-2 1_0 0", "1e308 1e308 0", "", "\x00 \x00 \x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		one, five, err := parseLoad(data)
		if err != nil {
			if len(err.Error()) > 1000 || !strings.Contains(err.Error(), "the load") {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		digest := Assess(Serving{NginxOK: true}, Machine{Load: one, LongLoad: five, CPUs: 1, DiskUnknown: true}, DefaultLimits(), nil)
		if text, err := digest.Encode(); err != nil || float64(digest.LoadPercent) > one*100 || float64(digest.LoadPercent) < one*100-1 {
			t.Fatalf("the load %v is told as %q, %v", one, text, err)
		}
		a, b, err := parseLoad(fmt.Appendf(nil, "%v %v 0", one, five))
		if err != nil || a != one || b != five {
			t.Fatalf("%v %v is written and read as %v %v, %v", one, five, a, b, err)
		}
	})
}

// published takes digests.
type published struct {
	digests chan gossip.Digest
	refuse  atomic.Bool
}

func (p *published) SetDigest(d gossip.Digest) error {
	if p.refuse.Load() {
		return errors.New("no")
	}
	p.digests <- d
	return nil
}

func TestMonitor(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	setLoad := func(line string) {
		t.Helper()
		path := filepath.Join(root, "proc/loadavg")
		if err := os.WriteFile(path+".new", []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	setLoad("0.00 0.00 0.00 1/1 1\n")
	var generation atomic.Uint64
	pub := &published{digests: make(chan gossip.Digest, 100)}
	m := New(Options{
		DataDir: root, Root: root, Publisher: pub, Limits: Limits{LoadPerCPU: 8}, Every: time.Hour, Logger: hclog.NewNullLogger(),
		Serving: func() Serving { return Serving{NginxOK: true, Generation: generation.Load()} },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { m.Run(ctx); close(ended) }()
	next := func() gossip.Digest {
		t.Helper()
		select {
		case d := <-pub.digests:
			return d
		case <-time.After(time.Minute):
			t.Fatal("waited in vain for a digest")
			return gossip.Digest{}
		}
	}
	if d := next(); len(d.Problems) != 0 || d.DiskFreeMiB == 0 || d.Generation != 0 {
		t.Errorf("first: %+v", d)
	}
	generation.Store(5)
	m.Nudge()
	if d := next(); d.Generation != 5 {
		t.Errorf("after a change: %+v", d)
	}
	setLoad("1000000.00 1000000.00 0.00 1/1 1\n")
	m.Nudge()
	if d := next(); !reflect.DeepEqual(d.Problems, []gossip.Problem{gossip.ProblemLoad}) || d.LoadPercent == 0 {
		t.Errorf("busy: %+v", d)
	}
	if err := os.Remove(filepath.Join(root, "proc/loadavg")); err != nil {
		t.Fatal(err)
	}
	m.Nudge()
	if d := next(); len(d.Problems) != 0 || d.LoadPercent != 0 {
		t.Errorf("load unknown: %+v", d)
	}
	cancel()
	<-ended

	// What could not be published is published at the next look.
	pub.refuse.Store(true)
	generation.Store(6)
	m.look()
	pub.refuse.Store(false)
	m.look()
	if d := next(); d.Generation != 6 {
		t.Errorf("after a failure: %+v", d)
	}
	m.look()
	if len(pub.digests) != 0 {
		t.Errorf("the same again: %+v", next())
	}
	m.opts.DataDir = filepath.Join(root, "missing")
	if s := m.sample(); !s.DiskUnknown {
		t.Errorf("a disk that is not there: %+v", s)
	}
}
