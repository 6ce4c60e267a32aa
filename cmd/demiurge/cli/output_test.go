package cli

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

func TestGridAligns(t *testing.T) {
	for name, c := range map[string]struct {
		rows [][]any
		want string
	}{
		"heading alone": {nil, "NAME  STATE\n"},
		"widths":        {[][]any{{"a", "ready"}, {"longer", "x"}}, "NAME    STATE\na       ready\nlonger  x\n"},
		"empty cells":   {[][]any{{"", 0}}, "NAME  STATE\n-     0\n"},
		"control":       {[][]any{{"a\tb\x1b[31m\r\n", "é→"}}, "NAME          STATE\na b [31m      é→\n"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGrid("NAME", "STATE")
			for _, row := range c.rows {
				g.add(row...)
			}
			var out bytes.Buffer
			if err := g.draw(&out); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(c.want), " ") ||
				strings.Count(got, "\n") != strings.Count(c.want, "\n") || strings.ContainsAny(got, "\x1b\r\t") {
				t.Errorf("drew\n%q\nwant\n%q", got, c.want)
			}
		})
	}
}

func TestNumbersForPeople(t *testing.T) {
	for ms, want := range map[float64]string{0: "-", 0.004: "0.00", 1.234: "1.23", 12.34: "12.3", 99.96: "100.0", 1234.5: "1234"} {
		if got := millis(ms); got != want {
			t.Errorf("millis(%v) = %q, want %q", ms, got, want)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	if got := stamp(&at); got != "2026-01-02T02:04:05Z" {
		t.Errorf("stamp = %q, want UTC", got)
	}
	if stamp(nil) != "" || stamp(&time.Time{}) != "" || number(0) != "" || number(uint64(7)) != "7" {
		t.Error("absent values are shown")
	}
	if ratio(1, 0) != 0 || percent(ratio(2, 3)) != "67%" {
		t.Error("ratio or percent is wrong")
	}
}

func TestSpreadIsOfMeasuredValues(t *testing.T) {
	ms := make([]float64, 1000)
	for i := range ms {
		ms[i] = float64(i + 1)
	}
	rand.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	if got, want := spreadOf(ms), (spread{Count: 1000, P50: 500, P90: 900, P99: 990, P999: 999, Max: 1000}); got != want {
		t.Errorf("spread of 1 to 1000 = %+v, want %+v", got, want)
	}
	if got, want := spreadOf([]float64{7}), (spread{Count: 1, P50: 7, P90: 7, P99: 7, P999: 7, Max: 7}); got != want {
		t.Errorf("spread of one value = %+v, want %+v", got, want)
	}
	if got := spreadOf(nil); got != (spread{}) {
		t.Errorf("spread of nothing = %+v", got)
	}
}

func TestBenchReportDraws(t *testing.T) {
	s := newSamples()
	s.started(api.Timings{Reserve: 1, Route: 2, Total: 4}, 10*time.Millisecond)
	s.add("release", 3*time.Millisecond)
	s.failed("pool_exhausted")
	s.failed("pool_exhausted")
	r := s.report(benchPlan{organizations: 3, rate: 5}, 2*time.Second, false)
	if r.Succeeded != 1 || r.Failed != 2 || r.Achieved != 0.5 {
		t.Errorf("report = %+v", r)
	}
	var out bytes.Buffer
	if err := r.draw(&out); err != nil {
		t.Fatal(err)
	}
	const want = `1 starts succeeded in 2.0 s (0.5/s of 5/s planned), 2 errors, 3 organizations

MILLISECONDS  COUNT  P50   P90   P99   P99.9  MAX
total         1      10.0  10.0  10.0  10.0   10.0
coordinator   1      4.00  4.00  4.00  4.00   4.00
reserve       1      1.00  1.00  1.00  1.00   1.00
route         1      2.00  2.00  2.00  2.00   2.00
release       1      3.00  3.00  3.00  3.00   3.00

ERROR           COUNT
pool_exhausted  2
`
	if out.String() != want {
		t.Errorf("drew\n%s\nwant\n%s", out.String(), want)
	}
}

func TestProgress(t *testing.T) {
	t.Run("plain lines", func(t *testing.T) {
		var out bytes.Buffer
		p := (&app{Options: Options{Stderr: &out}}).wait("one")
		p.say("one")
		p.say("two")
		p.stop()
		p.stop()
		if out.String() != "one\ntwo\n" {
			t.Errorf("wrote %q", out.String())
		}
	})
	t.Run("terminal", func(t *testing.T) {
		var out bytes.Buffer
		p := (&app{Options: Options{Stderr: &out, Terminal: true}}).wait("waiting for it")
		p.say("still waiting")
		p.stop()
		p.stop()
		got := out.String()
		if !strings.Contains(got, "waiting for it") || !strings.Contains(got, "still waiting") || !strings.Contains(got, "\r") {
			t.Errorf("drew %q, want a spinner in one line", got)
		}
		last := got[strings.LastIndex(strings.TrimRight(got, "\r"), "\r")+1:]
		if strings.Contains(got, "\n") || strings.TrimSpace(last) != "" {
			t.Errorf("drew %q, want nothing left on the line", got)
		}
	})
}
