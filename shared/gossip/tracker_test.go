package gossip

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hashicorp/serf/serf"
)

// What is told of one member, seen again and again. Each step is a letter and the minutes since the start:
// a alive, f failed, l left, u alive with other tags, r alive and started anew, x forgotten.
func TestTracker(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ steps, want string }{
		{"a0 a1", "joined"},
		{"a0 u1 u1", "joined updated"},
		{"a0 f1 a2", "joined failed returned"},
		{"a0 l1 a2", "joined left joined"},
		{"a0 f1 l2", "joined failed left"},
		{"f0 a1", "returned"},
		{"l0 a1", "joined"},
		{"a0 f1 a1 f2 a2 f3 a3", "joined failed returned failed returned failed flapping"},
		{"a0 f1 a1 f2 a2 f7 a7", "joined failed returned failed returned failed returned"},
		{"a0 f1 a1 f2 a2 f3 a3 f4 a4 f20 a20", "joined failed returned failed returned failed flapping failed flapping failed returned"},
		{"a0 f1 r1 f2 r2 f3 r3 f4 r4", "joined failed returned failed returned failed returned failed returned"},
		{"a0 x1 a2", "joined forgotten joined"},
		{"x0", ""},
		{"a0 u1 f2 u3", "joined updated failed returned"}, // with other tags or not: what counts is that it is back
	} {
		track := newTracker("agent.me")
		start := time.Unix(1000, 0)
		var got []string
		for _, step := range strings.Fields(c.steps) {
			var minutes int
			if _, err := fmt.Sscan(step[1:], &minutes); err != nil {
				t.Fatal(err)
			}
			now := start.Add(time.Duration(minutes) * time.Minute)
			m := Member{Role: RoleAgent, Name: "h1", Status: StatusAlive}
			var change Change
			var told bool
			switch step[0] {
			case 'f':
				m.Status = StatusFailed
			case 'l':
				m.Status = StatusLeft
			case 'r':
				m.Run = step
			case 'u':
				m.Tags = map[string]string{"n": "1"}
			}
			if step[0] == 'x' {
				change, told = track.forget("agent.h1")
			} else {
				change, told = track.see(m, now)
			}
			if told {
				got = append(got, string(change.Kind))
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: told %q, want %q", c.steps, s, c.want)
		}
	}
}

func TestFlapsGrowOld(t *testing.T) {
	t.Parallel()
	track := newTracker("agent.me")
	now := time.Unix(1000, 0)
	for range 1000 {
		for _, s := range []Status{StatusAlive, StatusFailed, StatusAlive} {
			track.see(Member{Role: RoleAgent, Name: "h1", Status: s}, now)
		}
	}
	if got := track.all(now)[0].Flaps; got != maxReturns {
		t.Errorf("%d flaps are remembered", got)
	}
	if got := track.all(now.Add(FlapWindow))[0].Flaps; got != 0 {
		t.Errorf("%d flaps are remembered after the window", got)
	}
}

// Whatever a slow reader misses, the last thing that it is told of a member is the member's last state, and
// no more than one change of each waits.
func TestFeedTellsTheLatest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := newFeed()
		stop := make(chan struct{})
		ended := make(chan struct{})
		go func() { f.run(stop); close(ended) }()
		last, told := map[string]string{}, map[string]string{}
		take := func() {
			c := <-f.out
			told[c.Member.Name] = c.Member.Version
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "changes") {
			c := Change{
				Kind:   rapid.SampledFrom([]Kind{Joined, Updated, Failed, Returned}).Draw(t, "kind"),
				Member: Member{Role: RoleAgent, Name: fmt.Sprint("h", rapid.IntRange(1, 4).Draw(t, "member")), Version: fmt.Sprint(i)},
			}
			f.put(c)
			last[c.Member.Name] = c.Member.Version
			if rapid.IntRange(0, 3).Draw(t, "read") == 0 {
				take()
			}
			f.mu.Lock()
			waiting, ordered := len(f.pending), len(f.order)
			f.mu.Unlock()
			if ordered != waiting || waiting > 4 {
				t.Fatalf("%d changes wait, %d in order", waiting, ordered)
			}
		}
		for !maps.Equal(last, told) {
			take()
		}
		close(stop)
		<-ended
		if _, ok := <-f.out; ok {
			t.Fatal("a change after the end")
		}
	})
}

// What a reader was told while more happened is not told again.
func TestFeedSumsUpWhatWasMissed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		missed []Kind // before one of it is offered
		then   []Kind // after that, before it is read
		want   string
	}{
		{[]Kind{Joined, Updated}, nil, "joined"},
		{[]Kind{Joined, Updated, Failed}, nil, "failed"},
		{[]Kind{Joined}, []Kind{Updated, Updated}, "joined updated"},
		{[]Kind{Joined, Updated}, []Kind{Failed, Updated}, "joined failed"},
		{[]Kind{Failed}, []Kind{Returned}, "failed returned"},
	} {
		f := newFeed()
		put := func(kinds []Kind) {
			for _, k := range kinds {
				f.put(Change{Kind: k, Member: Member{Role: RoleAgent, Name: "h1"}})
			}
		}
		put(c.missed)
		var got []string
		for more := c.then; ; more = nil {
			offered, ok := f.head()
			if !ok {
				break
			}
			put(more)
			f.done(offered)
			got = append(got, string(offered.change.Kind))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v, and then %v: told %q, want %q", c.missed, c.then, s, c.want)
		}
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	b := newBucket(time.Second, start)
	var got []int
	for ms := 0; ms <= 5000; ms += 100 {
		if b.take(start.Add(time.Duration(ms) * time.Millisecond)) {
			got = append(got, ms)
		}
	}
	if want := []int{0, 100, 200, 1000, 2000, 3000, 4000, 5000}; !slices.Equal(got, want) {
		t.Errorf("taken at %v ms, want %v", got, want)
	}
}

// worst is a digest that is as long as one can be.
func worst() Digest {
	d := Digest{
		Generation: math.MaxUint64, RouteDigest: math.MaxUint64, LoadPercent: math.MaxUint32, DiskFreeMiB: math.MaxUint32,
		Gateways: map[string]uint32{}, Problems: []Problem{ProblemDisk, ProblemLoad, ProblemNginx},
	}
	for _, state := range stateLetters {
		d.Gateways[state] = math.MaxUint32
	}
	return d
}

func TestWorstTagsFit(t *testing.T) {
	t.Parallel()
	digest, err := worst().Encode()
	if err != nil {
		t.Fatal(err)
	}
	host := strings.Repeat("h", 32)
	o := &Options{Role: RoleCoordinator, Name: host, Host: "h2345678901234567890123456789012", Cluster: "0c6d8a52-1f0e-4b53-9a55-0e8fb5a9c001", Version: host}
	all, err := tags{opts: o, run: newRun(), keys: []Fingerprint{"11111111", "22222222"}, digest: digest}.encode()
	if err != nil {
		t.Fatal(err)
	}
	if n := encodedSize(all); n > 480 {
		t.Errorf("the built-in tags alone may take %d bytes", n)
	}
	// Every host of today, by far: what reliability asks for is 400.
	digest, err = Digest{Generation: 1 << 40, RouteDigest: math.MaxUint64, Gateways: map[string]uint32{"ready": 500, "allocated": 500, "starting": 20, "failed": 3}, LoadPercent: 1200, DiskFreeMiB: 1 << 24}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	o.Role = RoleAgent
	usual, err := tags{opts: o, run: newRun(), keys: []Fingerprint{"11111111", "22222222"}, digest: digest}.encode()
	if err != nil {
		t.Fatal(err)
	}
	if n := encodedSize(usual); n > 400 {
		t.Errorf("the tags of a large host take %d bytes", n)
	}
}

func TestDigestGolden(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]Digest{
		"empty": {}, "worst": worst(),
		"usual": {Generation: 42, Gateways: map[string]uint32{"ready": 3, "allocated": 12}, RouteDigest: 255, LoadPercent: 35, DiskFreeMiB: 10240, Problems: []Problem{ProblemNginx}},
	} {
		want, err := os.ReadFile(filepath.Join("testdata", "digest."+name+".v1.golden"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.Encode()
		if err != nil || got+"\n" != string(want) {
			t.Errorf("%s: written %q (%v), want %q: other members read what this one writes", name, got, err, want)
		}
		again, err := ParseDigest(strings.TrimSpace(string(want)))
		if err != nil || !reflect.DeepEqual(again, d) {
			t.Errorf("%s: read %+v, %v", name, again, err)
		}
	}
	for _, bad := range []Digest{{Gateways: map[string]uint32{"sleeping": 1}}, {Problems: []Problem{"boredom"}}, {Problems: []Problem{ProblemDisk, ProblemDisk}}} {
		if s, err := bad.Encode(); err == nil {
			t.Errorf("%+v is written %q", bad, s)
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	for _, d := range []Digest{{}, worst()} {
		s, err := d.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(s)
	}
	f.Add("2;new")
	f.Add("1;g1;pz9;t0;l0;d0;x")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if err != nil {
			return
		}
		again, err := d.Encode()
		if err != nil || again != s || len(s) > maxDigest {
			t.Errorf("%q is read as %+v and written %q, %v", s, d, again, err)
		}
	})
}

// FuzzParse: whatever a member with a key says of itself, it is a Member within bounds or an error.
func FuzzParse(f *testing.F) {
	f.Add("agent.h1", "c1", "h1", "v1", "1a2b3c4d,11223344", "1;g0;p;t0000000000000000;l0;d0;x")
	f.Add("coordinator.c1", "", "../x", "", ",", "")
	f.Fuzz(func(t *testing.T, name, cluster, host, version, keys, digest string) {
		m, err := parse(serf.Member{Name: name, Addr: []byte{127, 0, 0, 1}, Port: 1, Status: serf.StatusAlive, Tags: map[string]string{
			tagCluster: cluster, tagHost: host, tagVersion: version, tagKeys: keys, tagDigest: digest, tagExtra + "a": host,
		}}, "c1")
		if err != nil {
			return
		}
		if cluster != "c1" || m.id() != name || len(m.Keys) > maxKeys || len(m.Version) > maxVersion || strings.ContainsAny(string(m.Host), "/ \n") {
			t.Errorf("taken: %+v", m)
		}
	})
}
