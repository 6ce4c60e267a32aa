//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/failpoint"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

const (
	coordinators = 3
	agents       = 2
	gateways     = 24 // of the pool
	capacity     = 20 // of a host
	callers      = 30 // organizations: more than gateways, so that some calls are refused
	poolName     = "default"
	// patience bounds every wait. Only a hang takes so long.
	patience = 90 * time.Second
)

// cluster is what is under test.
type cluster struct {
	t       testing.TB
	ctx     context.Context // ends when somebody interrupts the run
	dir     string
	net     *lab.Network
	clients *lab.Host // where the callers are
	nodes   []*node
	agents  []*agent
	token   string
	orgs    []string
	reports []string // violations that agents saw, of those that are gone too
}

// node is one coordinator.
type node struct {
	*lab.Program
	name string
	host *lab.Host
	dir  string
	full string // while this file is there, its log finds the disk full
	api  *client.Client
	http *http.Client
}

// agent is a scripted agent on a host of its own.
type agent struct {
	host   *lab.Host
	name   string
	client *client.Client
	run    *coordtest.Agent
}

// newCluster builds the programs, starts three coordinators and two agents, and waits for a full pool.
func newCluster(ctx context.Context, t testing.TB, dir string) *cluster {
	c := &cluster{t: t, ctx: ctx, dir: dir}
	bin := filepath.Join(dir, "bin")
	build := exec.Command("go", "build", "-tags", "failpoints", "-o", bin+"/", "../demiurge-coordinator")
	build.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -buildvcs=false"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the programs: %v\n%s", err, out)
	}
	var err error
	if c.net, err = lab.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	c.clients = c.host("clients")
	key := pki.NewKey()
	for i := range coordinators {
		c.nodes = append(c.nodes, &node{name: fmt.Sprint("c", i+1), host: c.host(fmt.Sprint("c", i+1))})
	}
	for _, n := range c.nodes {
		c.configure(n, bin, key)
		c.must(n.Start())
	}
	c.awaitToken()
	c.await("a leader", func() error { _, err := c.leader(); return err })
	for i := range agents {
		c.addAgent(fmt.Sprint("h", i+1))
	}
	c.fill()
	return c
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) host(name string) *lab.Host {
	c.t.Helper()
	h, err := c.net.Add(name)
	c.must(err)
	return h
}

// close ends everything, also after a failure.
func (c *cluster) close() {
	for _, a := range c.agents {
		if a.run != nil {
			a.run.Stop()
		}
	}
	for _, n := range c.nodes {
		if n.Program != nil {
			if err := n.Kill(); err != nil {
				c.t.Error(err)
			}
		}
	}
	if err := c.net.Close(); err != nil {
		c.t.Error(err)
	}
}

// configure writes a coordinator's files.
func (c *cluster) configure(n *node, bin string, key pki.Key) {
	n.dir = filepath.Join(c.dir, n.name)
	n.full = filepath.Join(c.dir, n.name+".full")
	c.must(os.MkdirAll(n.dir, 0o700))
	c.must(os.WriteFile(filepath.Join(n.dir, "cluster.key"), []byte(key.Reveal()), 0o600))
	var seeds []string
	for _, o := range c.nodes {
		seeds = append(seeds, o.host.Address+":7402")
	}
	text := fmt.Sprintf("node_id: %s\ndata_dir: %s\ndomain: example.org\napi:\n  listen: %s:7400\n  rate_limit: 1000000\n  rate_burst: 1000000\n"+
		"raft:\n  listen: %[3]s:7401\ngossip:\n  listen: %[3]s:7402\ncluster:\n  bootstrap_expect: %d\n  join: [%s]\n",
		n.name, n.dir, n.host.Address, coordinators, strings.Join(seeds, ", "))
	file := filepath.Join(c.dir, n.name+".yaml")
	c.must(os.WriteFile(file, []byte(text), 0o600))
	n.Program = n.host.Program(n.name, filepath.Join(c.dir, n.name+".log"), []string{failpoint.FullVariable + "=" + n.full},
		filepath.Join(bin, "demiurge-coordinator"), "run", "--config", file)
}

// await polls until a condition holds.
func (c *cluster) await(what string, holds func() error) {
	c.t.Helper()
	for end := time.Now().Add(patience); ; waitFor(c.ctx, 20*time.Millisecond) {
		err := holds()
		if err == nil {
			return
		}
		if c.ctx.Err() != nil {
			c.t.Fatalf("interrupted while waiting for %s", what)
		}
		if time.Now().After(end) {
			c.t.Fatalf("waited in vain for %s: %v", what, err)
		}
	}
}

// awaitToken waits for the first leader's token, and makes the clients.
func (c *cluster) awaitToken() {
	c.await("the first token", func() error {
		for _, n := range c.nodes {
			data, err := os.ReadFile(filepath.Join(n.dir, "admin.token"))
			if _, missing := os.Stat(filepath.Join(n.dir, "ca.pem")); missing == nil && err == nil && len(data) > 64 {
				c.token = strings.TrimSpace(string(data))
				return nil
			}
		}
		return errors.New("there is none")
	})
	for _, n := range c.nodes {
		conf, err := trusting(filepath.Join(c.nodes[0].dir, "ca.pem"))
		c.must(err)
		n.http = &http.Client{Transport: &http.Transport{
			DialContext: c.clients.Dial, TLSClientConfig: conf, MaxIdleConnsPerHost: 256, IdleConnTimeout: 5 * time.Second,
		}}
		n.api, err = client.New(client.Options{Addresses: []string{"https://" + n.host.Address + ":7400"}, Token: c.token, HTTPClient: n.http, RetryFor: -1})
		c.must(err)
	}
}

// within bounds one call.
func within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// leader is the coordinator that all who run name as leader.
func (c *cluster) leader() (*node, error) {
	var leader string
	for _, n := range c.nodes {
		if !n.Running() {
			continue
		}
		ctx, cancel := within(time.Second)
		st, err := n.api.Status(ctx, client.Consistency("stale"))
		cancel()
		if err != nil {
			return nil, err
		}
		if st.Leader == "" || leader != "" && leader != st.Leader {
			return nil, fmt.Errorf("%s names %q, another %q", n.name, st.Leader, leader)
		}
		leader = st.Leader
	}
	for _, n := range c.nodes {
		if n.name == leader && n.Running() {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the leader %q does not run", leader)
}

// addAgent lets a host in and starts its agent.
func (c *cluster) addAgent(name string) {
	a := &agent{host: c.host(name), name: name}
	c.agents = append(c.agents, a)
	leader, err := c.leader()
	c.must(err)
	ctx, cancel := within(patience)
	defer cancel()
	made, err := leader.api.CreateJoinToken(ctx, api.CreateJoinToken{Role: string(pki.RoleAgent), Name: name})
	c.must(err)
	token, err := pki.ParseJoinToken(made.Secret)
	c.must(err)
	dir := filepath.Join(c.dir, name)
	c.must(os.Mkdir(dir, 0o700))
	files, err := fsx.NewOS(dir)
	c.must(err)
	defer files.Close()
	store, err := pki.OpenStore(files, filepath.Join(dir, "pki"))
	c.must(err)
	var addresses, urls []string
	for _, n := range c.nodes {
		addresses = append(addresses, n.host.Address+":7400")
		urls = append(urls, "https://"+n.host.Address+":7400")
	}
	joined, err := pki.Join(ctx, pki.JoinOptions{Addresses: addresses, Token: token, Role: pki.RoleAgent, Name: name, Store: store, Dial: a.host.Dial})
	c.must(err)
	conf, err := pki.NewLive(joined.Credentials, pki.LiveOptions{}).Client(pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}, "http/1.1")
	c.must(err)
	a.client, err = client.New(client.Options{Addresses: urls, RetryFor: -1, HTTPClient: &http.Client{Transport: &http.Transport{
		DialContext: a.host.Dial, TLSClientConfig: conf, MaxIdleConnsPerHost: 8, ResponseHeaderTimeout: 5 * time.Second,
	}}})
	c.must(err)
	c.startAgent(a)
}

func (c *cluster) startAgent(a *agent) {
	a.run = coordtest.NewAgent(c.t, a.client, a.name, capacity, coordtest.Script{})
}

// fill makes the pool and the organizations.
func (c *cluster) fill() {
	c.await("the hosts", func() error {
		ctx, cancel := within(5 * time.Second)
		defer cancel()
		hosts, err := c.nodes[0].api.ListHosts(ctx)
		if err == nil && len(hosts) != agents {
			err = fmt.Errorf("%d hosts", len(hosts))
		}
		return err
	})
	ctx, cancel := within(patience)
	defer cancel()
	_, err := c.nodes[0].api.PutPool(ctx, poolName, poolOf(3))
	c.must(err)
	for range callers {
		org := string(id.NewOrganization())
		_, err := c.nodes[0].api.PutOrganization(ctx, org, api.PutOrganization{Name: "caller"})
		c.must(err)
		c.orgs = append(c.orgs, org)
	}
}

// poolOf is the specification of the pool with this step.
func poolOf(step int) api.PutPool {
	size := gateways
	return api.PutPool{MinReady: &size, Max: &size, MaxInFlight: &size, Step: &step}
}

// look takes a snapshot through a coordinator. Only live allocations are in it, unless all are wanted.
func (c *cluster) look(n *node, begun time.Time, all bool) (check.Snapshot, error) {
	ctx, cancel := within(5 * time.Second)
	defer cancel()
	s := check.Snapshot{}
	var err error
	if s.Allocations, err = n.api.ListAllocations(ctx, client.AllocationFilter{Live: !all}, client.Consistency("consistent")); err != nil {
		return s, err
	}
	s.Time = time.Now()
	s.At = s.Time.Sub(begun)
	return s, nil
}

// quiet waits until nothing happens any more and all coordinators agree on it, and looks at everything.
func (c *cluster) quiet(begun time.Time) (look check.Snapshot, states []check.NodeState, usage []check.Usage) {
	c.t.Helper()
	c.await("quiet", func() error {
		leader, err := c.leader()
		if err != nil {
			return err
		}
		if look, err = c.whole(leader, begun); err != nil {
			return err
		}
		states, err = c.states()
		if err == nil && slices.ContainsFunc(states, func(s check.NodeState) bool { return s.Index != look.Index }) {
			err = fmt.Errorf("indexes differ from %d: %+v", look.Index, states)
		}
		return err
	})
	look.Quiet = true
	for _, n := range c.nodes {
		usage = append(usage, c.usage(n))
	}
	return look, states, usage
}

// usage is the least that a coordinator is seen to use within some seconds: connections end by and by.
func (c *cluster) usage(n *node) check.Usage {
	n.http.CloseIdleConnections()
	least := check.Usage{Program: n.name}
	for i := range 20 {
		files, err := n.Files()
		c.must(err)
		goroutines, err := c.goroutines(n)
		c.must(err)
		if i == 0 || files+goroutines < least.Files+least.Goroutines {
			least.Files, least.Goroutines = files, goroutines
		}
		waitFor(c.ctx, 100*time.Millisecond)
	}
	return least
}

// whole looks at everything at one index, and fails while something is on its way.
func (c *cluster) whole(n *node, begun time.Time) (check.Snapshot, error) {
	look, err := c.look(n, begun, true)
	if err != nil {
		return look, err
	}
	ctx, cancel := within(10 * time.Second)
	defer cancel()
	var first, last uint64
	if look.Pools, err = n.api.ListPools(ctx, client.IndexTo(&first)); err != nil {
		return look, err
	}
	if look.Gateways, err = n.api.ListGateways(ctx, client.GatewayFilter{}, client.IndexTo(&look.Index)); err != nil {
		return look, err
	}
	if look.Allocations, err = n.api.ListAllocations(ctx, client.AllocationFilter{}, client.IndexTo(&last)); err != nil {
		return look, err
	}
	if first != last || look.Index != last {
		return look, fmt.Errorf("it goes on: indexes %d, %d, %d", first, look.Index, last)
	}
	present := 0
	for _, g := range look.Gateways {
		switch g.State {
		case api.GatewayReady, api.GatewayAllocated:
			present++
		case "terminated":
		default:
			return look, fmt.Errorf("gateway %s is %s: %s", g.GatewayID, g.State, g.Message)
		}
	}
	if present != gateways {
		return look, fmt.Errorf("%d gateways", present)
	}
	for _, a := range look.Allocations {
		if a.EndedAt == nil && a.State != api.AllocationActive {
			return look, fmt.Errorf("allocation %s is %s", a.AllocationID, a.State)
		}
	}
	return look, nil
}

// states asks each coordinator for the digest of its own state.
func (c *cluster) states() ([]check.NodeState, error) {
	var out []check.NodeState
	for _, n := range c.nodes {
		body, err := c.fetch(n, "/v1/operator/state?consistency=stale")
		if err != nil {
			return nil, err
		}
		var s api.NodeState
		if err := json.Unmarshal(body, &s); err != nil {
			return nil, err
		}
		out = append(out, check.NodeState{Node: n.name, Index: s.Index, Hash: s.Hash})
	}
	return out, nil
}

func (c *cluster) goroutines(n *node) (int, error) {
	body, err := c.fetch(n, "/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("the metrics of %s do not say how many goroutines there are", n.name)
}
