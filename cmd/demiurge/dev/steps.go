package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/procfs"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// poll asks until it is done or ctx ends. What is still missing goes into the error of the start.
func (s *system) poll(ctx context.Context, missing func(context.Context) string) error {
	ticker := time.NewTicker(25 * time.Millisecond)
	defer ticker.Stop()
	patience := time.NewTicker(tellEvery)
	defer patience.Stop()
	for {
		what := missing(ctx)
		if what == "" {
			return nil
		}
		s.mu.Lock()
		if ctx.Err() == nil {
			s.seen = what
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-patience.C:
			fmt.Fprintf(s.opts.Stderr, "  still waiting: %s\n", what)
		case <-ticker.C:
		}
	}
}

// missing is what the start waited for last.
func (s *system) missing() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == "" {
		return ""
	}
	return "; last: " + s.seen
}

func (s *system) waitReady(ctx context.Context) error {
	return s.poll(ctx, func(ctx context.Context) string {
		for i, c := range s.open {
			if err := c.Ready(ctx); err != nil {
				return fmt.Sprintf("%s: %v", coordinatorName(i), err)
			}
		}
		return ""
	})
}

// tokens takes the first admin token, which the coordinator left in a file.
func (s *system) tokens(ctx context.Context) error {
	return s.poll(ctx, func(ctx context.Context) string {
		err := s.firstToken(ctx)
		if err == nil {
			return ""
		}
		sleep.For(ctx, 100*time.Millisecond) // wrong tokens are counted
		return err.Error()
	})
}

// certificates lets the agents' program join. It does so at every start: the certificate of an earlier run may
// have expired since.
func (s *system) certificates(ctx context.Context) error {
	for i := range s.opts.Hosts {
		made, err := s.admin.CreateJoinToken(ctx, api.CreateJoinToken{Role: string(pki.RoleAgent), Name: hostID(i)})
		if err != nil {
			return err
		}
		if err := s.commandWith(ctx, made.Secret, s.tools.agent, "join", "--config", s.home.agentConfig(i), "--token", "-", "--again"); err != nil {
			return err
		}
	}
	return nil
}

// firstToken reads the admin token and tries it. The coordinator that led first has it, and writes the file before
// the token counts; one that led before it, and not for long enough, may have another.
func (s *system) firstToken(ctx context.Context) (err error) {
	for i := range s.opts.Coordinators {
		var b []byte
		if b, err = os.ReadFile(s.home.adminToken(i)); err != nil {
			continue
		}
		s.token = strings.TrimSpace(string(b))
		if s.admin, err = client.New(client.Options{Addresses: s.ports.servers(), Token: s.token, Probe: time.Second}); err != nil {
			continue
		}
		if _, err = s.admin.ListTokens(ctx); err == nil {
			return nil
		}
	}
	return err
}

// pool makes the default pool, or gives an earlier one the wanted number of ready gateways.
func (s *system) pool(ctx context.Context) error {
	limit := max(50, 2*s.opts.Gateways)
	want := api.PutPool{MinReady: &s.opts.Gateways, Max: &limit}
	have, err := s.admin.Pool(ctx, poolName)
	switch {
	case err == nil && have.MinReady == s.opts.Gateways && have.Max >= limit:
		return nil
	case err == nil && have.Max >= limit:
		want.Max = nil
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	}
	_, err = s.admin.PutPool(ctx, poolName, want)
	return err
}

// organization puts the sample organization, unless an earlier run did: then it may have been changed.
func (s *system) organization(ctx context.Context) error {
	_, err := s.admin.Organization(ctx, SampleOrganization)
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	_, err = s.admin.PutOrganization(ctx, SampleOrganization, api.PutOrganization{
		Name:     "Sample organization",
		Members:  []api.Member{{UserID: "alice", Username: "Alice", Role: "owner"}, {UserID: "bob", Username: "Bob", Role: "member"}},
		Projects: []api.Project{{ProjectID: "board", Name: "Planning board"}},
	})
	return err
}

// waitGateways waits until every host serves on the wanted port, which an earlier run may not have had, as
// many gateways as wanted are ready, and those of an earlier run are known and serve again.
func (s *system) waitGateways(ctx context.Context) error {
	return s.poll(ctx, func(ctx context.Context) string {
		for i := range s.opts.Hosts {
			if problem := s.hostServes(ctx, i); problem != "" {
				return problem
			}
		}
		pool, err := s.admin.Pool(ctx, poolName)
		if err != nil {
			return err.Error()
		}
		c := pool.Counts
		if c.Ready < s.opts.Gateways || c.Lost+c.Reconciling > 0 {
			return fmt.Sprintf("%d of %d gateways are ready, %d starting, %d failed, %d not heard of yet%s; see the agents' logs in %s",
				c.Ready, s.opts.Gateways, c.Pending+c.Starting, c.Failed+c.Unhealthy, c.Lost+c.Reconciling, s.notReady(ctx, pool), s.home.logs())
		}
		return s.serving(ctx)
	})
}

// notReady is what the pool's gateways failed of, as far as anybody knows.
func (s *system) notReady(ctx context.Context, pool api.Pool) string {
	if pool.BreakerReason != "" {
		return ": " + pool.BreakerReason
	}
	items, err := s.admin.ListGateways(ctx, client.GatewayFilter{Pool: pool.Name})
	i := slices.IndexFunc(items, func(g api.Gateway) bool { return g.Message != "" })
	if err != nil || i < 0 {
		return ""
	}
	return fmt.Sprintf(": %s %s", items[i].GatewayID, items[i].Message)
}

// waitHosts waits until every host is heard of: gateways that are made sooner are all on the first one.
func (s *system) waitHosts(ctx context.Context) error {
	return s.poll(ctx, func(ctx context.Context) string {
		for i := range s.opts.Hosts {
			if _, problem := s.hostSeen(ctx, i); problem != "" {
				return problem
			}
		}
		return ""
	})
}

// hostSeen is a host that its agent told of, or what is in the way.
func (s *system) hostSeen(ctx context.Context, i int) (host api.Host, problem string) {
	host, err := s.admin.Host(ctx, hostID(i))
	switch {
	case err != nil:
		return host, err.Error()
	case host.LastSeen == nil: // what the log says of it is from an earlier run
		return host, fmt.Sprintf("host %s has not reported yet; see %s", hostID(i), s.home.log(agentName(i)))
	case host.State != api.HostAlive:
		return host, fmt.Sprintf("host %s is %s", hostID(i), host.State)
	}
	return host, ""
}

// hostServes says what a host still lacks.
func (s *system) hostServes(ctx context.Context, i int) (problem string) {
	host, problem := s.hostSeen(ctx, i)
	if problem != "" {
		return problem
	}
	if host.Nginx.State != api.NginxServing {
		return fmt.Sprintf("the nginx of host %s is %q %s", hostID(i), host.Nginx.State, host.Nginx.LastError)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", s.ports.Hosts[i].Nginx)
	if err != nil {
		return err.Error()
	}
	_ = conn.Close()
	return ""
}

// serving looks whether the allocations of an earlier run serve: starting what is there already answers
// when it was verified.
func (s *system) serving(ctx context.Context) (problem string) {
	active, err := s.admin.ListAllocations(ctx, client.AllocationFilter{State: "active"})
	if err != nil {
		return err.Error()
	}
	for _, a := range active {
		if _, _, err := s.admin.Start(ctx, api.StartAllocation{OrganizationID: a.OrganizationID}); err != nil {
			return fmt.Sprintf("organization %s is not served yet: %v", a.OrganizationID, err)
		}
	}
	return ""
}

// watchProcesses keeps dev.json and the record true until ctx ends.
func (s *system) watchProcesses(ctx context.Context) {
	gateways := make(chan struct{})
	go func() { // waited for below
		defer close(gateways)
		s.watchGateways(ctx)
	}()
	defer func() { <-gateways }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
		}
		if err := s.writeDevFile(ctx); err != nil && ctx.Err() == nil {
			fmt.Fprintf(s.opts.Stderr, "cannot write %s: %v\n", s.home.devFile(), err)
		}
	}
}

// watchGateways follows the pids of the gateways, which only the API knows. While no coordinator answers
// the last ones stand.
func (s *system) watchGateways(ctx context.Context) {
	var index uint64
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, 20*time.Second) // a coordinator that hangs meanwhile is another's turn
		items, err := s.admin.ListGateways(call, client.GatewayFilter{}, client.Blocking(index, 10*time.Second), client.IndexTo(&index))
		cancel()
		if err != nil {
			index = 0 // whoever answers next may be younger
			sleep.For(ctx, 200*time.Millisecond)
			continue
		}
		s.noteGateways(items)
		// Many changes at once are one, and a look at many gateways is not for free.
		sleep.For(ctx, 50*time.Millisecond+time.Duration(len(items))*5*time.Millisecond)
	}
}

func (s *system) noteGateways(items []api.Gateway) {
	s.mu.Lock()
	before := maps.Clone(s.processes)
	s.mu.Unlock()
	now := map[string]identity{}
	for _, g := range items {
		if known, ok := before["gateway-"+g.GatewayID]; ok && g.PID == known.PID {
			now["gateway-"+g.GatewayID] = known // the API tells of another process under another number
			continue
		}
		if p, err := procfs.Read(g.PID); g.PID != 0 && err == nil && p.Running() {
			now["gateway-"+g.GatewayID] = identityOf(p)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	different := false
	for name, i := range s.processes {
		if strings.HasPrefix(name, "gateway-") && now[name] != i {
			delete(s.processes, name)
			different = true
		}
	}
	for name, i := range now {
		if s.processes[name] != i {
			s.processes[name] = i
			different = true
		}
	}
	if different {
		s.noteChange()
	}
}

// writeDevFile writes dev.json as it is now.
func (s *system) writeDevFile(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	file := api.DevFile{
		API: s.ports.servers()[0], Servers: s.ports.servers(), Token: s.token, HTTP: "http://" + s.ports.Hosts[0].Nginx,
		DNS: s.ports.Coordinators[0].DNS, Domain: s.opts.Domain, OrganizationID: SampleOrganization, PID: os.Getpid(),
	}
	for i, h := range s.ports.Hosts {
		file.Hosts = append(file.Hosts, api.DevHost{HostID: hostID(i), HTTP: "http://" + h.Nginx})
	}
	s.mu.Lock()
	for name, i := range s.processes {
		file.Processes = append(file.Processes, api.DevProcess{Name: name, PID: i.PID})
	}
	s.mu.Unlock()
	slices.SortFunc(file.Processes, func(a, b api.DevProcess) int { return strings.Compare(a.Name, b.Name) })
	b, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(s.home.devFile(), append(b, '\n')); err != nil {
		return errors.Join(err, ctx.Err())
	}
	return nil
}
