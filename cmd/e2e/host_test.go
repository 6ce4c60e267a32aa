//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/cmd/e2e/lab"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/failpoint"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	// realCapacity bounds the gateways of a real host: each is a process that is started anew after every
	// release, and this machine is small.
	realCapacity = 4
	webPort      = "80"
	dnsPort      = "7453"
	metricsPort  = "9464"
)

// realHost runs the real agent, the real nginx and real gateways.
type realHost struct {
	name  string
	host  *lab.Host
	agent *lab.Program
	nginx *lab.Program
	dir   string // of all that its programs keep
	full  string // while this file is there, the agent finds its disk full, or bad
	armed string // file that says at which step the agent is to die
	trace string // file with the steps that the agent passed
	clock clock
	leave []string // what a shutdown runs before it ends the agent
	web   *http.Client
}

// addRealHost lets a host in as an operator does, and starts its programs as systemd does.
func (c *cluster) addRealHost(name string) {
	h := &realHost{name: name, host: c.host(name)}
	c.hosts = append(c.hosts, h)
	dir := filepath.Join(c.dir, name)
	h.dir = dir
	c.must(os.Mkdir(dir, 0o700))
	file := filepath.Join(c.dir, name+".yaml")
	var addresses []string
	for _, n := range c.nodes {
		addresses = append(addresses, n.host.Address+":7400")
	}
	text := fmt.Sprintf("host_id: %s\ncoordinators: [%s]\ndata_dir: %s/agent\nrun_dir: %[3]s/run\ndomain: %s\naddress: %s\ncapacity: %d\n"+
		"nginx:\n  data_dir: %[3]s/nginx\n  listen: [\"%[5]s:%[7]s\"]\n  workers: 1\ngateway:\n  program: %[8]s\nmetrics:\n  listen: %[5]s:%[9]s\nlog:\n  level: info\n",
		name, strings.Join(addresses, ", "), dir, domain, h.host.Address, realCapacity, webPort, filepath.Join(c.installed(name), "demiurge-gateway"), metricsPort)
	c.must(os.WriteFile(file, []byte(text), 0o600))

	c.must(c.install(name, c.first))
	program := filepath.Join(c.installed(name), "demiurge-agent")
	c.must(h.host.Run(program, "join", "--config", file, "--token", c.joinToken(name)))

	h.full, h.armed, h.trace = filepath.Join(c.dir, name+".full"), filepath.Join(c.dir, name+".armed"), filepath.Join(c.dir, name+".trace")
	h.clock = clock(filepath.Join(c.dir, name+".clock"))
	c.must(h.clock.set(0))
	h.agent = h.host.Program(name, filepath.Join(c.dir, name+".log"), []string{
		failpoint.FullVariable + "=" + h.full, failpoint.FileVariable + "=" + h.armed, failpoint.TraceVariable + "=" + h.trace, clockVariable + "=" + string(h.clock),
	}, program, "run", "--config", file)
	h.leave = []string{program, "leave", "--config", file}
	h.nginx = h.host.Program(name+" nginx", filepath.Join(c.dir, name+".nginx.log"), nil, "/bin/sh", "-c",
		fmt.Sprintf("%s nginx-prepare --config %s && exec nginx -e %[3]s/log/error.log -p ./ -c %[3]s/nginx.conf -g 'daemon off;'", program, file, dir+"/nginx"))
	h.web = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DialContext: c.clients.Dial, DisableKeepAlives: true}}
	c.must(h.start())
}

// start starts what does not run.
func (h *realHost) start() error { return errors.Join(h.nginx.Start(), h.agent.Start()) }

// ask asks the host's web server for an organization, as a browser does.
func (h *realHost) ask(ctx context.Context, organization string) check.Answer {
	got := check.Answer{Host: h.name, Organization: organization}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(h.host.Address, webPort)+"/collab/ping", nil)
	if err != nil {
		got.Error = err.Error()
		return got
	}
	req.Host = id.Hostname(id.Organization(organization), domain)
	resp, err := h.web.Do(req)
	if err != nil {
		got.Error = err.Error()
		return got
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		got.Error = err.Error()
		return got
	}
	got.Status, got.Gateway = resp.StatusCode, resp.Header.Get(api.HeaderGateway)
	var health api.GatewayHealth
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(body, &health); err != nil {
			got.Error = err.Error()
		}
	}
	if epoch := resp.Header.Get(api.HeaderEpoch); epoch != "" {
		if got.Epoch, err = strconv.ParseUint(epoch, 10, 64); err != nil {
			got.Error = err.Error()
		}
	}
	got.Served = health.OrganizationID
	return got
}

// metrics are those of the host's agent.
func (h *realHost) metrics(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(h.host.Address, metricsPort)+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := h.web.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// answers asks every real host for every organization.
func (c *cluster) answers(ctx context.Context) []check.Answer {
	out := make([]check.Answer, len(c.hosts)*len(c.orgs))
	var work sync.WaitGroup
	for i, h := range c.hosts {
		work.Go(func() {
			for j, organization := range c.orgs {
				out[i*len(c.orgs)+j] = h.ask(ctx, organization)
			}
		})
	}
	work.Wait()
	return out
}

// names asks every coordinator for the name of every organization.
func (c *cluster) names(ctx context.Context) []check.Name {
	out := make([]check.Name, len(c.nodes)*len(c.orgs))
	var work sync.WaitGroup
	for i, n := range c.nodes {
		resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return c.clients.Dial(ctx, network, net.JoinHostPort(n.host.Address, dnsPort))
		}}
		work.Go(func() {
			for j, organization := range c.orgs {
				one := check.Name{Node: n.name, Organization: organization}
				addresses, err := resolver.LookupNetIP(ctx, "ip4", id.Hostname(id.Organization(organization), domain)+".")
				var missing *net.DNSError
				if err != nil && !(errors.As(err, &missing) && missing.IsNotFound) {
					one.Error = err.Error()
				}
				for _, a := range addresses {
					one.Addresses = append(one.Addresses, a.String())
				}
				out[i*len(c.orgs)+j] = one
			}
		})
	}
	work.Wait()
	return out
}

// watch asks real hosts for organizations until ctx ends. A host may answer that it does not serve one, or not
// at all; never may the gateway of another organization answer.
func (c *cluster) watch(ctx context.Context, seed uint64) (reports []string, asked, served int) {
	rng := rand.New(rand.NewPCG(seed, 4))
	for turn := 0; ctx.Err() == nil; waitFor(ctx, 20*time.Millisecond) {
		h := c.hosts[turn%len(c.hosts)]
		turn++
		got := h.ask(ctx, c.orgs[rng.IntN(len(c.orgs))])
		asked++
		if got.Status != http.StatusOK {
			continue
		}
		served++
		if got.Served != got.Organization {
			reports = append(reports, fmt.Sprintf("a gateway of another organization answered: %+v", got))
		}
	}
	return reports, asked, served
}

// registered lists the hosts that the coordinators know.
func (c *cluster) registered() ([]api.Host, error) {
	ctx, cancel := within(5 * time.Second)
	defer cancel()
	return c.nodes[0].api.ListHosts(ctx, client.Consistency("consistent"))
}

// hostsOfAgents are all hosts that an agent runs on.
func (c *cluster) hostsOfAgents() []*lab.Host {
	var out []*lab.Host
	for _, h := range c.hosts {
		out = append(out, h.host)
	}
	for _, a := range c.agents {
		out = append(out, a.host)
	}
	return out
}
