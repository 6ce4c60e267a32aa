package check_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
)

// record writes a run as a cluster's test does: operations at their call and at their return.
func record(t *testing.T, run check.Run, upTo int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "history.jsonl")
	rec, err := check.Record(path, check.Run{Seed: run.Seed, Begun: run.Begun, Before: run.Before, UsedBefore: run.UsedBefore})
	if err != nil {
		t.Fatal(err)
	}
	rec.Fault(run.Faults[0])
	for _, op := range run.Operations[:upTo] {
		called := op
		called.Outcome, called.Return = check.Unknown, 0
		rec.Operation(called)
	}
	for _, op := range run.Operations[:upTo] {
		rec.Operation(op)
	}
	for _, s := range run.Samples {
		rec.Sample(s)
	}
	if upTo == len(run.Operations) {
		rec.End(run)
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStoredRunIsTheRun(t *testing.T) {
	run := newSound(3, 250)
	got, err := check.Read(record(t, run, len(run.Operations)))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(run)
	b, _ := json.Marshal(got)
	if !bytes.Equal(a, b) {
		t.Errorf("stored and read:\n%.2000s\nwant\n%.2000s", b, a)
	}
	var out strings.Builder
	if v := check.Judge(&out, "run", got); v != check.Green {
		t.Errorf("%s:\n%s", v, &out)
	}
}

// A run that was cut off in the middle of a line is read up to there, is not green, and what it broke is found.
func TestCutOffRunIsJudged(t *testing.T) {
	run := newSound(3, 250)
	a := liveAtEnd(t, &run)
	other := *a
	other.AllocationID, other.GatewayID = "al-other", "gw-other"
	run.Samples[0].Allocations = append(run.Samples[0].Allocations, *a, other)
	path := record(t, run, 200)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, `{"operation":{"id":7`...), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := check.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if v := check.Judge(&out, "run", got); v != check.Red {
		t.Errorf("it is %s", v)
	}
	for _, want := range []string{"did not come to its end", "seed 3; first broken: " + string(check.OneLive)} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &out)
		}
	}
}

// A run whose load was too small is neither green nor red.
func TestIdleRunIsInvalid(t *testing.T) {
	run := newSound(3, 250)
	run.Faults[0].At = time.Hour
	var out strings.Builder
	if v := check.Judge(&out, "run", run); v != check.Invalid || !strings.Contains(out.String(), "INVALID, it proves nothing: 0 operations a second") {
		t.Errorf("it is %s:\n%s", v, &out)
	}
}

func TestDamagedRunIsNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.jsonl")
	if err := os.WriteFile(path, []byte("{\"begin\":{}}\nrubbish\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := check.Read(path); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("read: %v", err)
	}
}
