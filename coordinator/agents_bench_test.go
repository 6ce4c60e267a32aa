package coordinator_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/gossip"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// BenchmarkThousandAgents measures what 1,000 agents at rest cost the coordinators, three of them as the real
// program. Each agent has its stream, with a certificate of its own, through one of the three; three gateways; and
// says all of it again as often as real agents do. Twenty of them are in the gossip, for a small machine
// cannot bear 1,000 members beside what is measured; they tell of another load as often as their tags may change, once
// a second, which is what 200 members cost that do so every ten seconds. How often a member is probed does not depend on their number. Hosts that are not in the
// gossip cost the leader more than others: it asks them whether they live.
func BenchmarkThousandAgents(b *testing.B) {
	const hosts, members, every = 1000, 20, api.FullObservations
	ctx := context.Background()
	p := startProcesses(b, 3, "", "default", "")
	leader := p.leader()
	agents := make([]*coordtest.Agent, hosts)
	eachOf(4, hosts, func(i int) {
		var addresses []string
		for k := range p.all {
			addresses = append(addresses, strings.TrimPrefix(p.all[(i+k)%len(p.all)].url, "http://"))
		}
		host := fmt.Sprintf("h%d", i)
		speaker := coordtest.AgentClient(b, coordtest.Join(b, leader.admin, host, addresses[0]), addresses...)
		agents[i] = coordtest.NewAgent(b, speaker, host, 3, coordtest.Script{BackOff: 5 * time.Second})
		b.Cleanup(agents[i].Stop)
	})
	size, inFlight := 3*hosts, 1000
	if _, err := leader.admin.PutPool(ctx, "default", api.PutPool{MinReady: &size, Max: &size, MaxInFlight: &inFlight}); err != nil {
		b.Fatal(err)
	}
	coordtest.Eventually(b, "all gateways are ready", func() bool {
		pool, err := leader.admin.Pool(ctx, "default")
		return err == nil && pool.Counts.Ready == size
	})
	cluster, err := pki.FoundingCluster(p.key)
	if err != nil {
		b.Fatal(err)
	}
	eachOf(8, members, func(i int) { agents[i].EnterGossip(cluster) })
	live, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		tick := time.NewTicker(every / hosts)
		defer tick.Stop()
		for i := 0; live.Err() == nil; i++ {
			agents[i%hosts].Report()
			if err := agents[i%members].Node().SetDigest(gossip.Digest{Generation: 1, LoadPercent: uint32(i / members % 100)}); err != nil {
				b.Error(err)
			}
			<-tick.C
		}
	}()

	sum := map[*process]time.Duration{}
	used := func(sign time.Duration) {
		for _, c := range p.all {
			sum[c] += sign * spent(b, c.cmd.Process.Pid)
		}
	}
	coordtest.Eventually(b, "all hosts are alive", func() bool {
		all, err := leader.admin.ListHosts(ctx)
		return err == nil && len(all) == hosts && !slices.ContainsFunc(all, func(h api.Host) bool { return h.State != api.HostAlive })
	})
	began := time.Now()
	used(-1)
	for range max(b.N, 3) {
		<-time.After(10 * time.Second)
	}
	used(1)
	elapsed := time.Since(began)
	stop()
	<-done
	others := p.others(leader)
	b.ReportMetric(100*sum[leader].Seconds()/elapsed.Seconds(), "leader-core-%")
	b.ReportMetric(100*max(sum[others[0]], sum[others[1]]).Seconds()/elapsed.Seconds(), "follower-core-%")
	b.ReportMetric(rss(b, leader.cmd.Process.Pid), "leader-RSS-MiB")
	b.ReportMetric(fsyncP50(b), "fsync-p50-ms")
	b.ReportMetric(0, "ns/op")
}

// spent is the processor time that a process has used.
func spent(b *testing.B, pid int) time.Duration {
	stat, err := procfs.Read(pid)
	if err != nil {
		b.Fatal(err)
	}
	return stat.Used
}
