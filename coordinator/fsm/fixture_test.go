package fsm_test

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// update writes a fixture that is missing. It never rewrites one.
var update = flag.Bool("update", false, "write the fixtures that are missing")

// fromLine reads one entry of a log fixture: index, tab, hexadecimal bytes.
func fromLine(t *testing.T, line string) *raft.Log {
	t.Helper()
	number, bytes, _ := strings.Cut(line, "\t")
	index, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	data, err := hex.DecodeString(bytes)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Type: raft.LogCommand, Data: data}
}

// writeFixture makes the fixture of the current version. It is used once for each version that is released:
// what is written stays.
func writeFixture(t *testing.T, dir string) {
	m := small(t, 4)
	m.ok(command.InitCluster{Meta: m.meta(), ClusterID: "c1"})
	m.ok(command.PutToken{Meta: m.meta(), Token: tkID(1), Role: "admin", Hash: "00", Key: "k", Digest: "d"})
	keyed := m.reserveOf(1, 1)
	keyed.Key, keyed.Digest, keyed.TTL, keyed.Metadata = "k1", "d1", time.Hour, map[string]string{"a": "b"}
	m.ok(keyed)
	m.ok(m.confirmOf(alID(1)))
	m.active(2, 2)
	m.ok(command.Release{Meta: m.meta(), Allocation: alID(2), Drain: time.Second})
	m.reserve(3, 3)
	m.ok(command.Fail{Meta: m.meta(), Allocation: alID(3), Epoch: m.allocation(alID(3)).Epoch, Code: fault.VerifyFailed, Message: "no"})
	m.reserve(4, 4)
	waiting := m.reserveOf(5, 5)
	waiting.QueueUntil = m.now.Add(time.Hour)
	m.ok(waiting)
	saved, cut := m.snapshot(), len(m.log)
	m.ok(m.confirmOf(alID(4)))
	m.observe(m.report(gwID(2), api.PhaseReady))
	m.observe(m.report(gwID(3), api.PhaseUnhealthy))
	m.ok(command.QuarantineGateway{Meta: m.meta(), Gateway: gwID(3)})
	m.ok(command.SetHostStatus{Meta: m.meta(), Host: "h1", Status: api.HostSilent, Reason: "test"})

	var log, text strings.Builder
	for _, e := range m.log[cut:] {
		fmt.Fprintf(&log, "%d\t%x\n", e.Index, e.Data)
	}
	text.WriteString(m.records())
	events, _, _ := m.store.Events(state.EventID{}, state.KeptEvents)
	for _, e := range events {
		text.WriteString(e.Type + "\n")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"state.snap": saved, "log.hex": log.String(), "records.txt": text.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
