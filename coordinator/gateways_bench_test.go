package coordinator_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// BenchmarkManyGateways measures what a state of so many gateways costs three coordinators as the real program on this
// machine: restoring it, saving it, and bringing back a coordinator that has lost its disk. Beside all of it a caller
// writes 50 times a second, and the leader must stay: "leaders" is how many there were.
func BenchmarkManyGateways(b *testing.B) {
	for _, hosts := range []int{100, 1000} {
		b.Run(fmt.Sprint(hosts*1000), func(b *testing.B) { manyGateways(b, hosts, 1000) })
	}
}

func manyGateways(b *testing.B, hosts, each int) {
	p := startProcesses(b, 3, "", "default", "hosts: {silent_after: 1h, lost_after: 2h}")
	saved := savedGateways(b, p.key, p.token, hosts, each)
	leader := p.leader()
	began, terms := p.term(leader), map[uint64]bool{}
	all := func(of *process) bool {
		pool, err := of.admin.Pool(context.Background(), "default", client.Consistency("stale"))
		if err != nil || pool.Counts.Recycling != hosts*each { // a restore has them begun anew, and there is no agent
			return false
		}
		// A token that a coordinator does not know yet is for the leader to look at, which then answers the above too, but
		// not this.
		_, err = of.admin.NodeState(context.Background(), client.Consistency("stale"))
		return err == nil
	}
	phase := func(name string, work func()) {
		writer := p.writing(leader)
		from := time.Now()
		work()
		b.ReportMetric(time.Since(from).Seconds(), name+"-s")
		took := writer()
		b.ReportMetric(ms(took[len(took)*99/100]), name+"-write-p99-ms")
		b.ReportMetric(ms(took[len(took)-1]), name+"-write-max-ms")
		terms[p.term(leader)] = true
	}

	phase("restore", func() {
		open := func() (io.ReadCloser, error) { return os.Open(saved) }
		if _, err := leader.admin.RestoreSnapshot(context.Background(), open); err != nil {
			b.Fatal(err)
		}
		coordtest.Eventually(b, "all have it", func() bool { return !slices.ContainsFunc(p.all, func(c *process) bool { return !all(c) }) })
	})
	phase("save", func() {
		counted := &counting{}
		if err := leader.admin.SaveSnapshot(context.Background(), counted); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(counted.n)/(1<<20), "MiB")
	})
	follower := p.others(leader)[0]
	phase("follower", func() {
		p.kill(follower)
		if err := os.RemoveAll(filepath.Join(follower.dir, "data", "raft")); err != nil {
			b.Fatal(err)
		}
		p.start(follower)
		coordtest.Eventually(b, "the follower has it", func() bool { return all(follower) })
	})
	terms[began] = true
	b.ReportMetric(float64(len(terms)), "leaders")
	for i, c := range slices.Insert(p.others(leader), 0, leader) {
		b.ReportMetric(peak(b, c.cmd.Process.Pid), []string{"leader", "follower", "other"}[i]+"-peak-MiB")
	}
	b.ReportMetric(fsyncP50(b), "fsync-p50-ms")
	b.ReportMetric(0, "ns/op")
}

// writing writes 50 times a second until the returned function is called, which gives how long each took from the
// moment it was due, sorted.
func (p *processes) writing(to *process) func() []time.Duration {
	caller, tick := p.client(time.Minute, to), time.NewTicker(20*time.Millisecond)
	stop, done := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var took []time.Duration
	var under sync.WaitGroup
	var first sync.Once
	go func() { // waited for by the returned function
		defer close(done)
		for {
			select {
			case due := <-tick.C:
				under.Go(func() {
					if err := p.write(caller); err != nil {
						first.Do(func() { p.b.Errorf("a write was not acknowledged: %v", err) })
					}
					mu.Lock()
					took = append(took, time.Since(due))
					mu.Unlock()
				})
			case <-stop:
				return
			}
		}
	}()
	return func() []time.Duration {
		tick.Stop()
		close(stop)
		<-done
		under.Wait()
		slices.Sort(took)
		return took
	}
}

// term is the term in which a coordinator leads.
func (p *processes) term(of *process) uint64 {
	st, err := of.admin.Status(context.Background(), client.Consistency("stale"))
	if err != nil {
		p.b.Fatal(err)
	}
	return st.Term
}

// savedGateways makes a saved snapshot of a cluster with this key and first token, in which hosts have so many ready
// gateways each, and returns its file.
func savedGateways(b *testing.B, key pki.Key, token string, hosts, each int) string {
	defer debug.FreeOSMemory()
	cluster, err := pki.FoundingCluster(key)
	if err != nil {
		b.Fatal(err)
	}
	n, err := consensus.Open(consensus.Options{
		NodeID: "c1", Dir: b.TempDir(), Listen: "127.0.0.1:0", Bootstrap: true, FSM: fsm.New(state.New(), hclog.NewNullLogger()),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = n.Close(context.Background()) }()
	ctx := context.Background()
	must := func(c command.Command) {
		data, err := command.Encode(c)
		if err != nil {
			b.Fatal(err)
		}
		if answer, _, err := n.Propose(ctx, data); err != nil || answer.(command.Result).Err != nil {
			b.Fatal(err, answer)
		}
	}
	coordtest.Eventually(b, "it leads", func() bool { return n.IsLeader() })
	meta := command.Meta{At: time.Now(), Actor: "bench"}
	hash := sha256.Sum256([]byte(token))
	must(command.InitCluster{Meta: meta, ClusterID: cluster})
	must(command.PutToken{Meta: meta, Token: id.NewToken(), Role: api.RoleAdmin, Name: "first", Hash: hex.EncodeToString(hash[:])})
	must(command.PutPool{Meta: meta, Pool: "default", Max: hosts * each, MaxInFlight: 1000, Step: 1, Isolation: "serve", ActivationTimeout: time.Hour})
	for i := range hosts {
		host := id.Host(fmt.Sprintf("h%d", i))
		create := command.CreateGateways{Meta: meta, Pool: "default"}
		observe := command.ObserveHost{Meta: meta, Host: host, Instance: "i"}
		for range each {
			g := id.NewGateway()
			create.Gateways = append(create.Gateways, command.NewGateway{ID: g, Host: host})
			observe.Gateways = append(observe.Gateways, command.GatewayReport{Gateway: g, Incarnation: 1, Phase: api.PhaseReady, BootID: id.Secret()[:16], PID: 1000 + i})
		}
		must(command.ObserveHost{Meta: meta, Host: host, Instance: "i", Full: true, Report: &command.HostReport{Capacity: each, NginxState: api.NginxServing}})
		must(create)
		must(observe)
	}
	f, err := os.Create(filepath.Join(b.TempDir(), "saved"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := errors.Join(n.SaveSnapshot(ctx, f), f.Sync()); err != nil { // none of it is left to be written later
		b.Fatal(err)
	}
	return f.Name()
}

// counting counts what is written to it.
type counting struct{ n int64 }

// Write implements io.Writer.
func (c *counting) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
