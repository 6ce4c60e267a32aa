package coordtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Several is a cluster of coordinators under test.
type Several struct {
	Nodes []*Node
	Token string // the first admin token

	t    testing.TB
	key  pki.Key
	logs hclog.Logger
}

// Node is one of several coordinators.
type Node struct {
	ID     string
	URL    string
	Config *coordinator.Config
	// Admin asks this coordinator alone, with the first admin token.
	Admin *client.Client

	all *Several
	run *coordinator.Coordinator
}

// StartSeveral runs coordinators that begin a cluster together, and waits until one leads. Change may alter
// the configuration of each.
func StartSeveral(t testing.TB, n int, change ...func(*coordinator.Config)) *Several {
	t.Helper()
	s := &Several{t: t, key: pki.NewKey(), logs: hclog.NewNullLogger()}
	if testing.Verbose() {
		s.logs = hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr})
	}
	for range n {
		s.add(n)
	}
	for _, node := range s.Nodes {
		node.Config.Cluster.Join = s.seeds()
		if n == 1 {
			node.Config.Cluster.Join = nil
		}
		for _, f := range change {
			f(node.Config)
		}
		node.Start()
	}
	s.awaitToken()
	s.Leader()
	return s
}

// Add starts one more coordinator, which is to be brought in.
func (s *Several) Add() *Node {
	s.t.Helper()
	seeds := s.seeds()
	node := s.add(0)
	node.Config.Cluster.Join = seeds
	node.Start()
	node.Admin = s.client(node)
	return node
}

func (s *Several) seeds() []string {
	var out []string
	for _, n := range s.Nodes {
		out = append(out, n.Config.Gossip.Listen)
	}
	return out
}

func (s *Several) add(expect int) *Node {
	cfg := coordinator.DefaultConfig()
	cfg.NodeID, cfg.DataDir, cfg.Domain, cfg.PublicURL = fmt.Sprintf("c%d", len(s.Nodes)+1), s.t.TempDir(), "example.org", "http://{hostname}"
	cfg.API.Listen, cfg.Raft.Listen, cfg.Gossip.Listen = FreeAddr(s.t), FreeAddr(s.t), FreeAddr(s.t)
	cfg.API.RateLimit, cfg.API.RateBurst, cfg.API.Plain = 1e9, 1e9, true
	cfg.Cluster.BootstrapExpect = expect
	if err := os.WriteFile(filepath.Join(cfg.DataDir, "cluster.key"), []byte(s.key.Reveal()), 0o600); err != nil {
		s.t.Fatal(err)
	}
	n := &Node{ID: cfg.NodeID, URL: "http://" + cfg.API.Listen, Config: cfg, all: s}
	s.Nodes = append(s.Nodes, n)
	s.t.Cleanup(n.Stop)
	return n
}

// Start runs the coordinator on its directory and addresses.
func (n *Node) Start() {
	n.all.t.Helper()
	run, err := coordinator.New(coordinator.Options{
		Config: n.Config, Logger: n.all.logs.Named(n.ID),
		Fence: func(reason string) { n.all.t.Errorf("%s fenced itself: %s", n.ID, reason) },
	})
	if err != nil {
		n.all.t.Fatal(err)
	}
	run.Start()
	n.run = run
}

// Stop ends the coordinator, if it runs.
func (n *Node) Stop() {
	if n.run == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := n.run.Stop(ctx); err != nil {
		n.all.t.Errorf("cannot stop %s: %v", n.ID, err)
	}
	n.run = nil
}

// Cluster is the id of the cluster.
func (s *Several) Cluster() string {
	s.t.Helper()
	cluster, err := pki.FoundingCluster(s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return cluster
}

// Run is the coordinator itself; nil: it was stopped.
func (n *Node) Run() *coordinator.Coordinator { return n.run }

// Running reports whether the coordinator was started and not stopped.
func (n *Node) Running() bool { return n.run != nil }

func (s *Several) client(n *Node) *client.Client {
	c, err := client.New(client.Options{Addresses: []string{n.URL}, Token: s.Token})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// awaitToken waits until the first leader has left the first token.
func (s *Several) awaitToken() {
	s.t.Helper()
	Eventually(s.t, "there is a first token", func() bool {
		for _, n := range s.Nodes {
			data, err := os.ReadFile(filepath.Join(n.Config.DataDir, "admin.token"))
			if err == nil && len(data) > 64 {
				s.Token = strings.TrimSpace(string(data))
				return true
			}
		}
		return false
	})
	for _, n := range s.Nodes {
		n.Admin = s.client(n)
	}
}

// Leader waits until all running coordinators name the same leader, one of them, and it answers.
func (s *Several) Leader() *Node {
	s.t.Helper()
	var leader *Node
	Eventually(s.t, "one coordinator leads", func() bool {
		names := map[string]bool{}
		for _, n := range s.Nodes {
			if !n.Running() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			st, err := n.Admin.Status(ctx, client.Consistency("stale"))
			cancel()
			if err != nil {
				return false
			}
			names[st.Leader] = true
			if n.ID == st.Leader {
				leader = n
			}
		}
		if len(names) != 1 || leader == nil || !leader.Running() || !names[leader.ID] {
			return false
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := leader.Admin.ListPools(ctx)
		return err == nil
	})
	return leader
}

// Agent starts a scripted agent for a host, which knows all coordinators, and waits until it is registered.
func (s *Several) Agent(host string, capacity int, script Script) *Agent {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	leader := s.Leader()
	var addresses []string
	for _, n := range s.Nodes {
		addresses = append(addresses, n.Config.API.Listen)
	}
	c := AgentClient(s.t, Join(s.t, leader.Admin, host, addresses...), addresses...)
	a := NewAgent(s.t, c, host, capacity, script)
	s.t.Cleanup(a.Stop)
	Eventually(s.t, "host "+host+" is registered", func() bool {
		_, err := leader.Admin.Host(ctx, host)
		return err == nil
	})
	return a
}

// SameState waits until all running coordinators hold the same state at the same index, and fails the test
// when two of them ever differ at one index.
func (s *Several) SameState() {
	s.t.Helper()
	Eventually(s.t, "all coordinators are at the same index", func() bool {
		first, want := uint64(0), ""
		for _, n := range s.Nodes {
			if !n.Running() {
				continue
			}
			index, hash := n.run.State()
			switch {
			case first == 0:
				first, want = index, hash
			case index != first:
				return false
			case hash != want:
				s.t.Fatalf("%s holds another state than the others at index %d", n.ID, index)
			}
		}
		return true
	})
}

// Followers are the running coordinators that do not lead.
func (s *Several) Followers() []*Node {
	s.t.Helper()
	leader := s.Leader()
	var out []*Node
	for _, n := range s.Nodes {
		if n.Running() && n != leader {
			out = append(out, n)
		}
	}
	return out
}
