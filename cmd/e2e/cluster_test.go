//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	realHosts    = 3  // with agent, nginx and gateways
	scripted     = 2  // hosts without: they carry most of the load
	gateways     = 24 // of the pool
	capacity     = 10 // of a scripted host
	callers      = 30 // organizations: more than gateways, so that some calls are refused
	poolName     = "default"
	domain       = "example.org"
	// patience bounds every wait. Only a hang takes so long.
	patience = 90 * time.Second
)

// cluster is what is under test.
type cluster struct {
	t       testing.TB
	ctx     context.Context // ends when somebody interrupts the run
	dir     string
	bin     string // directory of today's programs
	first   string // directory of the programs that all begin with
	net     *lab.Network
	clients *lab.Host // where the callers are
	nodes   []*node
	hosts   []*realHost
	agents  []*agent
	token   string
	orgs    []string
	asked   int      // operations of all pieces
	reports []string // violations that agents saw, of those that are gone too
}

// node is one coordinator.
type node struct {
	*lab.Program
	name  string
	host  *lab.Host
	dir   string
	full  string // while this file is there, its log finds the disk full
	armed string // file that says at which step it is to die
	trace string // file with the steps that it passed
	clock clock
	api   *client.Client
	http  *http.Client
}

// agent is a scripted agent on a host of its own.
type agent struct {
	host   *lab.Host
	name   string
	client *client.Client
	run    *coordtest.Agent
}

// newCluster builds the programs, starts coordinators and hosts, and waits for a full pool. All begin with today's
// programs, or with those of the previous version.
func newCluster(ctx context.Context, t testing.TB, dir string, clocks, previous bool) *cluster {
	c := &cluster{t: t, ctx: ctx, dir: dir, bin: filepath.Join(dir, "bin")}
	c.first = c.bin
	var err error
	if c.net, err = lab.Open(); err != nil { // first: it knows whether this machine can do it
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	if _, err := exec.LookPath("nginx"); err != nil {
		t.Fatalf("cannot find nginx: install it (make deps-e2e): %v", err)
	}
	c.must(build("../..", c.bin, clocks))
	if previous {
		c.first = filepath.Join(dir, "previous")
		commit, err := buildPrevious(c.first)
		c.must(err)
		t.Logf("all begin with the programs of %s", commit)
	}
	c.clients = c.host("clients")
	key := pki.NewKey()
	for i := range coordinators {
		c.nodes = append(c.nodes, &node{name: fmt.Sprint("c", i+1), host: c.host(fmt.Sprint("c", i+1))})
	}
	for _, n := range c.nodes {
		c.configure(n, key)
		c.must(n.Start())
	}
	c.awaitToken()
	c.await("a leader", func() error { _, err := c.leader(); return err })
	for i := range realHosts {
		c.addRealHost(fmt.Sprint("r", i+1))
	}
	for i := range scripted {
		c.addAgent(fmt.Sprint("s", i+1))
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
	if err := c.net.Close(); err != nil {
		c.t.Error(err)
	}
}

// configure writes a coordinator's files.
func (c *cluster) configure(n *node, key pki.Key) {
	n.dir = filepath.Join(c.dir, n.name)
	n.full, n.armed, n.trace = filepath.Join(c.dir, n.name+".full"), filepath.Join(c.dir, n.name+".armed"), filepath.Join(c.dir, n.name+".trace")
	c.must(os.MkdirAll(n.dir, 0o700))
	c.must(os.WriteFile(filepath.Join(n.dir, "cluster.key"), []byte(key.Reveal()), 0o600))
	var seeds []string
	for _, o := range c.nodes {
		seeds = append(seeds, o.host.Address+":7402")
	}
	text := fmt.Sprintf("node_id: %s\ndata_dir: %s\ndomain: %s\napi:\n  listen: %s:7400\n  rate_limit: 1000000\n  rate_burst: 1000000\n"+
		"raft:\n  listen: %[4]s:7401\ngossip:\n  listen: %[4]s:7402\ndns:\n  provider: embedded\n  listen: %[4]s:%[5]s\n  nameservers: [ns1.%[3]s %[4]s]\n"+
		"cluster:\n  bootstrap_expect: %[6]d\n  join: [%[7]s]\n",
		n.name, n.dir, domain, n.host.Address, dnsPort, coordinators, strings.Join(seeds, ", "))
	file := filepath.Join(c.dir, n.name+".yaml")
	c.must(os.WriteFile(file, []byte(text), 0o600))
	n.clock = clock(filepath.Join(c.dir, n.name+".clock"))
	c.must(n.clock.set(0))
	c.must(c.install(n.name, c.first))
	n.Program = n.host.Program(n.name, filepath.Join(c.dir, n.name+".log"), []string{
		failpoint.FullVariable + "=" + n.full, failpoint.FileVariable + "=" + n.armed, failpoint.TraceVariable + "=" + n.trace, clockVariable + "=" + string(n.clock),
	}, filepath.Join(c.installed(n.name), "demiurge-coordinator"), "run", "--config", file)
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
			if !n.Running() {
				c.t.Fatalf("%s does not run; its log is %s.log", n.name, n.dir)
			}
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
	ctx, cancel := within(patience)
	defer cancel()
	token, err := pki.ParseJoinToken(c.joinToken(name))
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
		hosts, err := c.registered()
		if err == nil && len(hosts) != realHosts+scripted {
			err = fmt.Errorf("%d hosts", len(hosts))
		}
		return err
	})
	c.ask("the pool", func(ctx context.Context, n *node) error {
		_, err := n.api.PutPool(ctx, poolName, poolOf(3))
		return err
	})
	for range callers {
		org := string(id.NewOrganization())
		c.ask("an organization", func(ctx context.Context, n *node) error {
			_, err := n.api.PutOrganization(ctx, org, api.PutOrganization{Name: "caller"})
			return err
		})
		c.orgs = append(c.orgs, org)
	}
}

// ask makes a call that does the same when it is made twice, until it is answered: also before anything is broken
// another coordinator may come to lead on a machine that does much besides.
func (c *cluster) ask(what string, call func(context.Context, *node) error) {
	c.t.Helper()
	c.await(what, func() error {
		ctx, cancel := within(tryFor)
		defer cancel()
		return call(ctx, c.nodes[0])
	})
}

// joinToken makes a token for a host.
func (c *cluster) joinToken(host string) (secret string) {
	c.ask("a join token", func(ctx context.Context, n *node) error {
		made, err := n.api.CreateJoinToken(ctx, api.CreateJoinToken{Role: string(pki.RoleAgent), Name: host})
		secret = made.Secret
		return err
	})
	return secret
}

// poolOf is the specification of the pool with this step.
func poolOf(step int) api.PutPool {
	size := gateways
	return api.PutPool{MinReady: &size, Max: &size, MaxInFlight: &size, Step: &step}
}
