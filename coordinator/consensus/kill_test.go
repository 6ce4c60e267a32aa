package consensus_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
)

// childDir names the directory on which the test's own program, started again, runs a node to be killed.
const childDir = "DEMIURGE_TEST_NODE_DIR"

// child proposes without end from several callers and prints each command once it is acknowledged.
func child(dir string) {
	opts := options(dir, &ledger{})
	opts.SegmentSize, opts.SnapshotThreshold, opts.TrailingLogs = 64<<10, 100, 10
	opts.Logger = hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Error})
	n, err := consensus.Open(opts)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var print sync.Mutex
	n.RunWhileLeader(context.Background(), func(ctx context.Context) {
		var callers sync.WaitGroup
		for c := range 4 {
			callers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					line := fmt.Sprintf("%d/%d/%d", os.Getpid(), c, i)
					if _, _, err := n.Propose(ctx, []byte(line)); err == nil {
						print.Lock()
						fmt.Println(line)
						print.Unlock()
					}
				}
			})
		}
		callers.Wait()
	})
}

// TestKilledProcessKeepsWhatItAcknowledged kills a node at work, several times over, on one directory.
func TestKilledProcessKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var acked []string
	for round := range 5 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for i := 0; lines.Scan(); i++ {
			acked = append(acked, lines.Text())
			if i == 150+37*round { // it goes on until the kill arrives
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the node was not killed: %v", err)
		}
	}
	if len(acked) < 5*150 {
		t.Fatalf("only %d commands were acknowledged", len(acked))
	}
	state := &ledger{}
	leads(t, open(t, options(dir, state)))
	lines := state.all()
	slices.Sort(lines)
	if unique := slices.Compact(slices.Clone(lines)); len(unique) != len(lines) {
		t.Errorf("%d commands are in the state more than once", len(lines)-len(unique))
	}
	for _, line := range acked {
		if _, found := slices.BinarySearch(lines, line); !found {
			t.Errorf("%s was acknowledged and is lost", line)
		}
	}
}
