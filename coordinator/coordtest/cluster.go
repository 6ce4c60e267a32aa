// Package coordtest runs a real coordinator inside a test, on loopback and a directory of its own, with
// scripted agents that speak the real protocol. It waits on conditions, never on time.
package coordtest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Patience bounds every wait: far above what anything takes, so that only a hang ends it.
const Patience = 60 * time.Second

// Cluster is a coordinator under test.
type Cluster struct {
	Admin *client.Client // with the first admin token
	Token string
	URL   string

	t      testing.TB
	config *coordinator.Config
	run    *coordinator.Coordinator
	logs   hclog.Logger
}

// Start runs a coordinator and waits until it leads. tune changes its configuration before that.
func Start(t testing.TB, tune ...func(*coordinator.Config)) *Cluster {
	t.Helper()
	cfg := coordinator.DefaultConfig()
	cfg.NodeID, cfg.DataDir, cfg.Domain, cfg.PublicURL = "c1", t.TempDir(), "example.org", "http://{hostname}"
	cfg.API.Listen, cfg.Raft.Listen, cfg.Gossip.Listen = FreeAddr(t), FreeAddr(t), FreeAddr(t)
	cfg.API.RateLimit, cfg.API.RateBurst, cfg.API.Plain = 1e9, 1e9, true
	for _, f := range tune {
		f(cfg)
	}
	logs := hclog.NewNullLogger()
	if testing.Verbose() {
		logs = hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr})
	}
	c := &Cluster{t: t, config: cfg, logs: logs}
	t.Cleanup(c.Stop)
	c.Restart()
	return c
}

// Restart stops the coordinator if it runs, starts it again on the same directory and addresses, and
// waits until it leads. tune changes its configuration before that.
func (c *Cluster) Restart(tune ...func(*coordinator.Config)) {
	c.t.Helper()
	c.Stop()
	for _, f := range tune {
		f(c.config)
	}
	run, err := coordinator.New(coordinator.Options{
		Config: c.config, Logger: c.logs,
		Fence: func(reason string) { c.t.Errorf("fenced: %s", reason) },
	})
	if err != nil {
		c.t.Fatal(err)
	}
	run.Start()
	c.run, c.URL = run, "http://"+run.Addr().String()
	c.await()
}

// await waits for the first token and for leadership.
func (c *Cluster) await() {
	c.t.Helper()
	Eventually(c.t, "the coordinator is ready", func() bool {
		data, err := os.ReadFile(filepath.Join(c.config.DataDir, "admin.token"))
		if err != nil {
			return false
		}
		c.Token = strings.TrimSpace(string(data))
		if c.Admin, err = client.New(client.Options{Addresses: []string{c.URL}, Token: c.Token}); err != nil {
			c.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = c.Admin.ListPools(ctx)
		return err == nil && c.Admin.Ready(ctx) == nil
	})
}

// Stop ends the coordinator.
func (c *Cluster) Stop() {
	if c.run == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := c.run.Stop(ctx); err != nil {
		c.t.Errorf("cannot stop the coordinator: %v", err)
	}
	c.run = nil
}

// Recover makes what the stopped coordinator has a cluster of its own.
func (c *Cluster) Recover() error {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "coordinator.yaml")
	text := fmt.Sprintf("node_id: %s\ndata_dir: %s\ndomain: %s\nraft: {listen: %q}\n", c.config.NodeID, c.config.DataDir, c.config.Domain, c.config.Raft.Listen)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	return coordinator.Recover(coordinator.RecoverOptions{Path: path, Yes: true, Out: io.Discard, Logger: c.logs})
}

// Address is host:port of the API.
func (c *Cluster) Address() string { return c.config.API.Listen }

// DataDir is the coordinator's directory.
func (c *Cluster) DataDir() string { return c.config.DataDir }

// Agent starts a scripted agent for a host and waits until the host is registered.
func (c *Cluster) Agent(host string, capacity int, script Script) *Agent {
	c.t.Helper()
	ctx := c.Context()
	cl := AgentClient(c.t, Join(c.t, c.Admin, host, c.Address()), c.Address())
	a := NewAgent(c.t, cl, host, capacity, script)
	c.t.Cleanup(a.Stop)
	Eventually(c.t, "host "+host+" is registered", func() bool {
		_, err := c.Admin.Host(ctx, host)
		return err == nil
	})
	return a
}

// Pool makes a pool that holds this many ready gateways and never more, and waits for them.
func (c *Cluster) Pool(name string, size int) {
	c.t.Helper()
	inFlight := min(size, 1000)
	if _, err := c.Admin.PutPool(c.Context(), name, api.PutPool{MinReady: &size, Max: &size, MaxInFlight: &inFlight}); err != nil {
		c.t.Fatal(err)
	}
	c.Ready(name, size)
}

// Ready waits until exactly this many gateways of a pool are ready.
func (c *Cluster) Ready(name string, size int) {
	c.t.Helper()
	Eventually(c.t, "the pool has its ready gateways", func() bool {
		p, err := c.Admin.Pool(c.Context(), name)
		return err == nil && p.Counts.Ready == size
	})
}

// Organizations puts new organizations and returns their ids.
func (c *Cluster) Organizations(n int) []string {
	c.t.Helper()
	out := make([]string, n)
	for i := range out {
		out[i] = string(id.NewOrganization())
		if _, err := c.Admin.PutOrganization(c.Context(), out[i], api.PutOrganization{Name: "test"}); err != nil {
			c.t.Fatal(err)
		}
	}
	return out
}

// Context ends with the test, at the latest after Patience.
func (c *Cluster) Context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	c.t.Cleanup(cancel)
	return ctx
}

// Eventually polls a condition until it holds, and fails the test when it does not within Patience.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); ; {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// given are the ports that FreeAddr gave in this process.
var given sync.Map

// FreeAddr is an address of the loopback interface that nobody listens on at the moment, neither TCP nor UDP. Its port
// is below those that the kernel gives to connections (ip_local_port_range), one of which might be this one before it
// is listened on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		if _, taken := given.LoadOrStore(addr, true); taken {
			continue
		}
		stream, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		packets, err := net.ListenPacket("udp", addr)
		_ = stream.Close()
		if err != nil {
			continue
		}
		_ = packets.Close()
		return addr
	}
	t.Fatal("no port is free")
	return ""
}
