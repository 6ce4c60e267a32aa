package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/events"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/usertoken"
	"github.com/demiurge-platform/demiurge/shared/usertoken/usertokentest"
)

// patience is how long a test waits for a condition on a busy machine.
const patience = 30 * time.Second

// kit is the API on a real store and state machine, with scripted allocations, agents and cluster.
type kit struct {
	t       testing.TB
	store   *state.Store
	machine *fsm.FSM
	server  *Server
	web     *httptest.Server
	cluster *scriptedCluster
	allocs  *scriptedAllocations
	agents  *scriptedAgents
	metrics *countingMetrics
	trust   *ownTrust
	issuer  usertokentest.Key // signs the tokens of users
	tokens  map[string]string // secrets by role
	host    id.Host

	operator *scriptedOperator
	// programs are the HTTP clients of callers with a certificate, by what stands for it in the place of a
	// secret.
	programs map[string]*http.Client
	offset   atomic.Int64 // of the clock, in nanoseconds

	mu    sync.Mutex
	index uint64
}

// newKit starts the API; change may alter the options.
func newKit(t testing.TB, change ...func(*Options)) *kit {
	t.Helper()
	k := &kit{t: t, store: state.New(), cluster: &scriptedCluster{}, metrics: &countingMetrics{}, tokens: map[string]string{}, programs: map[string]*http.Client{}, host: "h1"}
	k.machine = fsm.New(k.store, nil)
	k.cluster.leader.Store(true)
	k.allocs = &scriptedAllocations{kit: k}
	k.agents = &scriptedAgents{}
	k.operator = &scriptedOperator{}
	k.trust = newTrust(t)
	k.issuer = usertokentest.NewKey(t, "k1")
	users, err := usertoken.New(usertoken.Options{Issuers: []usertoken.Issuer{usertokentest.File(t, k.issuer)}, Logger: hclog.NewNullLogger(), Now: k.now})
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{
		Users: users,
		Trust: k.trust, Plain: true, Store: k.store, Proposer: k, Allocations: k.allocs, Agents: k.agents, Cluster: k.cluster, Metrics: k.metrics, Operator: k.operator,
		Events: events.New(events.Options{Store: k.store, Logger: hclog.NewNullLogger()}),
		Logger: hclog.NewNullLogger(), Now: k.now, Domain: "example.test",
		PublicURL: func(h string) string { return "http://" + h + ":7480/" },
	}
	for _, f := range change {
		f(&opts)
	}
	if k.server, err = New(opts); err != nil {
		t.Fatal(err)
	}
	k.web = httptest.NewUnstartedServer(nil)
	k.web.Config = k.server.HTTPServer()
	conf, err := k.trust.live.Server(pki.Peer{Roles: []pki.Role{pki.RoleAgent, pki.RoleCoordinator}, Anonymous: true}, "h2", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	k.web.Listener = Listen(k.web.Listener, conf)
	k.web.Start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ended by the clean-up
		defer close(done)
		k.server.Run(ctx)
	}()
	t.Cleanup(func() {
		k.server.Drain()
		k.web.Close()
		cancel()
		<-done
	})
	k.initialize()
	return k
}

// initialize names the cluster, makes a token of every role, and lets the agent of the host in.
func (k *kit) initialize() {
	k.apply(command.InitCluster{Meta: k.meta(), ClusterID: "11111111-2222-3333-4444-555555555555"})
	for _, role := range []string{api.RoleAdmin, api.RoleOperator, api.RolePlatform, api.RoleReader} {
		k.tokens[role] = k.makeToken(role, time.Time{})
	}
	k.enroll(k.host)
	k.tokens[agentCaller] = k.certified(k.trust.credentials(pki.RoleAgent, string(k.host), k.now()))
}

// reset begins again with an empty store, as after a restore, and with nothing scripted.
func (k *kit) reset() {
	k.mu.Lock()
	k.store.Replace(state.New())
	k.index = 0
	k.mu.Unlock()
	k.offset.Store(0)
	k.cluster.leader.Store(true)
	k.cluster.full.Store(false)
	k.cluster.three.Store(false)
	k.cluster.deaf.Store(false)
	k.agents.gone.Store(false)
	k.agents.own.Store(nil)
	k.agents.ahead.Store(0)
	k.agents.copied.Store(false)
	k.operator.member.Store(nil)
	k.initialize()
}

func (k *kit) now() time.Time { return time.Now().Add(time.Duration(k.offset.Load())) }

// makeToken puts a token into the store and returns its secret.
func (k *kit) makeToken(role string, expires time.Time) string {
	secret := id.Secret()
	sum := sha256.Sum256([]byte(secret))
	cmd := command.PutToken{Meta: k.meta(), Token: id.NewToken(), Role: role, Hash: hex.EncodeToString(sum[:]), ExpiresAt: expires}
	k.apply(cmd)
	return secret
}

func (k *kit) meta() command.Meta { return command.Meta{At: k.now(), Actor: "test"} }

// Propose applies a command to the store, as a log of one member does.
func (k *kit) Propose(_ context.Context, c command.Command) (command.Result, uint64, error) {
	data, err := command.Encode(c)
	if err != nil {
		return command.Result{}, 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.index++
	return k.machine.Apply(&raft.Log{Index: k.index, Data: data}).(command.Result), k.index, nil
}

// apply proposes a command that must succeed.
func (k *kit) apply(c command.Command) command.Result {
	k.t.Helper()
	result, _, err := k.Propose(context.Background(), c)
	if err != nil || result.Err != nil {
		k.t.Fatalf("%T: %v, %v", c, err, result.Err)
	}
	return result
}

// withGateways makes the pool "default", host h1 and n ready gateways on it.
func (k *kit) withGateways(n int) []id.Gateway {
	k.t.Helper()
	k.apply(command.PutPool{Meta: k.meta(), Pool: "default", MinReady: 1, Step: 3, Max: max(n, 1), MaxInFlight: 10, Isolation: "serve", ActivationTimeout: 10 * time.Second})
	k.apply(command.ObserveHost{
		Meta: k.meta(), Host: k.host, Instance: "i1", Full: true,
		Report: &command.HostReport{Address: "192.0.2.1", Capacity: max(n, 1), Version: "1", NginxState: api.NginxServing},
	})
	var made []id.Gateway
	create := command.CreateGateways{Meta: k.meta(), Pool: "default", Reason: "test"}
	seen := command.ObserveHost{Meta: k.meta(), Host: k.host, Instance: "i1"}
	for range n {
		g := id.NewGateway()
		made = append(made, g)
		create.Gateways = append(create.Gateways, command.NewGateway{ID: g, Host: k.host})
		seen.Gateways = append(seen.Gateways, command.GatewayReport{Gateway: g, Incarnation: 1, Phase: api.PhaseReady, BootID: "b1"})
	}
	if n > 0 {
		k.apply(create)
		k.apply(seen)
	}
	return made
}

// organization makes an organization.
func (k *kit) organization() id.Organization {
	k.t.Helper()
	org := id.NewOrganization()
	k.apply(command.PutOrganization{Meta: k.meta(), Organization: org, Name: "Example"})
	return org
}

// client is a client with the token of a role.
func (k *kit) client(role string) *client.Client {
	k.t.Helper()
	opts := client.Options{Addresses: []string{k.web.URL}, Token: k.tokens[role], RetryFor: -1}
	if program := k.programs[opts.Token]; program != nil {
		opts = client.Options{Addresses: []string{k.url(opts.Token)}, HTTPClient: program, RetryFor: -1}
	}
	c, err := client.New(opts)
	if err != nil {
		k.t.Fatal(err)
	}
	return c
}

// reply is an answer, read to its end.
type reply struct {
	status  int
	header  http.Header
	body    []byte
	problem api.Problem
}

// call sends one request with a secret and gives the answer back.
func (k *kit) call(method, path, secret, body string, headers ...string) reply {
	k.t.Helper()
	return k.prepare(method, path, secret, body, headers...)()
}

// prepare makes a call that can be sent from another goroutine.
func (k *kit) prepare(method, path, secret, body string, headers ...string) func() reply {
	k.t.Helper()
	req, err := http.NewRequest(method, k.url(secret)+path, strings.NewReader(body))
	if err != nil {
		k.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	program := k.programs[secret]
	if secret != "" && program == nil {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	noRedirect := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if program != nil {
		noRedirect.Transport = program.Transport
	}
	return func() reply {
		resp, err := noRedirect.Do(req)
		if err != nil {
			k.t.Fatalf("%s %s: %v", method, path, err)
		}
		return readReply(k.t, resp)
	}
}

func readReply(t testing.TB, resp *http.Response) reply {
	t.Helper()
	defer resp.Body.Close()
	r := reply{status: resp.StatusCode, header: resp.Header}
	var err error
	if r.body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("Content-Type") == api.ProblemContentType {
		if err := json.Unmarshal(r.body, &r.problem); err != nil {
			t.Fatalf("cannot read the problem %s: %v", r.body, err)
		}
		if r.problem.Status != r.status || r.problem.Title == "" || r.problem.Detail == "" {
			t.Errorf("the problem is not complete: %s with status %d", r.body, r.status)
		}
	}
	return r
}

// wantProblem checks status and code of an answer.
func wantProblem(t testing.TB, r reply, code fault.Code) {
	t.Helper()
	if want := fault.New(code, "").Status(); r.status != want || r.problem.Code != string(code) {
		t.Errorf("answer %d %s, want %d %s", r.status, bytes.TrimSpace(r.body), want, code)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// scriptedCluster is a cluster of one.
type scriptedCluster struct {
	leader   atomic.Bool
	full     atomic.Bool // its disk, nearly
	three    atomic.Bool // it is one of three
	deaf     atomic.Bool // c3 of the three does not take the log
	barriers atomic.Int64
	asked    atomic.Int64 // whether it leads
}

// IsLeader counts the questions.
func (c *scriptedCluster) IsLeader() bool {
	c.asked.Add(1)
	return c.leader.Load()
}

func (c *scriptedCluster) Reign() context.Context { return context.Background() }
func (c *scriptedCluster) Leader() (string, string) {
	if c.leader.Load() {
		return "c1", "127.0.0.1:7401"
	}
	return "", ""
}

func (c *scriptedCluster) LeaderChanged() <-chan struct{} { return nil }

func (c *scriptedCluster) Peers() []api.Peer {
	peers := []api.Peer{{ID: "c1", Address: "127.0.0.1:7401", Voter: true, Leader: c.leader.Load()}}
	if c.three.Load() {
		peers = append(peers, api.Peer{ID: "c2", Address: "127.0.0.2:7401", Voter: true}, api.Peer{ID: "c3", Address: "127.0.0.3:7401", Voter: true})
	}
	return peers
}

func (c *scriptedCluster) Unreached() map[string]error {
	if c.deaf.Load() {
		return map[string]error{"c3": errors.New("no CA that is trusted here")}
	}
	return nil
}

func (c *scriptedCluster) StorageLow() string {
	if c.full.Load() {
		return "3 MiB free, floor 512 MiB"
	}
	return ""
}
func (c *scriptedCluster) Progress() (term, applied uint64) { return 3, 4 }
func (c *scriptedCluster) Barrier(context.Context) error    { c.barriers.Add(1); return nil }
func (c *scriptedCluster) VerifyLeader(context.Context) error {
	if c.leader.Load() {
		return nil
	}
	return errors.New("lost leadership")
}

// scriptedAllocations drives the steps of every allocation to success at once, unless told otherwise.
type scriptedAllocations struct {
	kit     *kit
	fail    atomic.Pointer[fault.Error] // answer of every start
	panics  atomic.Bool
	phase   atomic.Pointer[string]
	started atomic.Int64

	mu   sync.Mutex
	last allocator.StartRequest
}

func (a *scriptedAllocations) Start(ctx context.Context, req allocator.StartRequest) (allocator.StartResult, error) {
	a.started.Add(1)
	a.mu.Lock()
	a.last = req
	a.mu.Unlock()
	if a.panics.Load() {
		panic("canary-of-a-stack")
	}
	if f := a.fail.Load(); f != nil {
		return allocator.StartResult{}, f
	}
	cmd := command.Reserve{
		Meta: command.Meta{At: a.kit.now(), Actor: req.Actor, Source: req.Source}, Pool: req.Pool, TTL: req.TTL, Metadata: req.Metadata,
		Items: []command.ReserveItem{{Organization: req.Organization, Allocation: id.NewAllocation()}}, Key: req.Key, Digest: req.Digest,
	}
	if req.Wait > 0 {
		cmd.QueueUntil = a.kit.now().Add(req.Wait)
	}
	result, _, err := a.kit.Propose(ctx, cmd)
	if err != nil {
		return allocator.StartResult{}, err
	}
	if result.Err != nil {
		return allocator.StartResult{}, result.Err
	}
	out := result.Reserved[0]
	if out.Err != nil {
		return allocator.StartResult{}, out.Err
	}
	if !out.Existing && !out.Queued && req.WaitFor != waitReserved {
		a.confirm(out.Allocation)
	}
	return allocator.StartResult{Allocation: out.Allocation, Existing: out.Existing}, nil
}

// confirm makes a reserved allocation active.
func (a *scriptedAllocations) confirm(allocation id.Allocation) {
	rec := a.kit.store.View().Allocation(nil, allocation)
	at := a.kit.now()
	a.kit.apply(command.Confirm{
		Meta: a.kit.meta(), Allocation: rec.ID, Epoch: rec.Epoch,
		Journal: []command.Step{
			{Step: api.StepActivate, State: api.StepDone, StartedAt: at, EndedAt: at},
			{Step: api.StepRoute, State: api.StepDone, StartedAt: at, EndedAt: at},
			{Step: api.StepVerify, State: api.StepDone, StartedAt: at, EndedAt: at},
		},
		Timings: command.Timings{Reserve: time.Millisecond, Route: 1500 * time.Microsecond, Total: 3 * time.Millisecond},
		Observed: command.GatewayReport{
			Gateway: rec.Gateway, Incarnation: a.kit.store.View().Gateway(nil, rec.Gateway).Desired.Incarnation,
			Phase: api.PhaseServing, Organization: rec.Organization, Epoch: rec.Epoch, BootID: "b1",
		},
	})
}

func (a *scriptedAllocations) StartBatch(ctx context.Context, req allocator.BatchRequest) ([]allocator.BatchOutcome, error) {
	var out []allocator.BatchOutcome
	for _, o := range req.Organizations {
		r, err := a.Start(ctx, allocator.StartRequest{Actor: req.Actor, Organization: o, Pool: req.Pool, Wait: req.Wait, WaitFor: waitReserved})
		out = append(out, allocator.BatchOutcome{Organization: o, Allocation: r.Allocation, Existing: r.Existing, Err: err})
	}
	return out, nil
}

// Migrate moves an allocation, unless all fail, and confirms it on its new gateway.
func (a *scriptedAllocations) Migrate(ctx context.Context, req allocator.MigrateRequest) error {
	result, _, err := a.kit.Propose(ctx, command.Relocate{
		Meta: command.Meta{At: a.kit.now(), Actor: req.Actor, Source: req.Source}, Cause: state.CauseMigrate, To: req.To, Drain: req.Drain,
		Items: []command.RelocateItem{{Allocation: req.Allocation}}, Reason: "migrated", Key: req.Key, Digest: req.Digest,
	})
	switch {
	case err != nil:
		return err
	case result.Err != nil:
		return result.Err
	case result.Reserved[0].Err != nil:
		return result.Reserved[0].Err
	}
	rec := a.kit.store.View().Allocation(nil, req.Allocation)
	if to, ok := rec.Pending(); ok {
		a.kit.apply(command.Confirm{
			Meta: a.kit.meta(), Allocation: rec.ID, Epoch: to.Epoch,
			Observed: command.GatewayReport{Gateway: to.Gateway, Incarnation: 1, Phase: api.PhaseServing, Organization: rec.Organization, Epoch: to.Epoch, BootID: "b2"},
		})
	}
	return nil
}

func (a *scriptedAllocations) Release(ctx context.Context, req allocator.ReleaseRequest) error {
	rec := a.kit.store.View().Allocation(nil, req.Allocation)
	if rec == nil {
		return fault.New(fault.NotFound, "allocation %s is not known", req.Allocation)
	}
	result, _, err := a.kit.Propose(ctx, command.Release{
		Meta: command.Meta{At: a.kit.now(), Actor: req.Actor, Source: req.Source}, Allocation: req.Allocation, Drain: req.Drain, Reason: req.Reason,
	})
	if err != nil || result.Err != nil {
		return errors.Join(err, result.Err)
	}
	if g := a.kit.store.View().Gateway(nil, rec.Gateway); g != nil {
		at := a.kit.now()
		a.kit.apply(command.ObserveHost{Meta: a.kit.meta(), Host: a.kit.host, Instance: "i1", Gateways: []command.GatewayReport{{
			Gateway: g.ID, Incarnation: g.Desired.Incarnation, Phase: api.PhaseReady, BootID: "b2",
			Undo: []command.Step{{Step: api.StepUnroute, State: api.StepDone, StartedAt: at, EndedAt: at}},
		}}})
	}
	return nil
}

func (a *scriptedAllocations) Phase(id.Allocation) (string, []command.Step, bool) {
	p := a.phase.Load()
	if p == nil {
		return "", nil, false
	}
	return *p, []command.Step{{Step: api.StepActivate, State: api.StepDoing, StartedAt: a.kit.now()}}, true
}

// countingMetrics counts.
type countingMetrics struct {
	requests, refused atomic.Int64
}

func (m *countingMetrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "demiurge_up 1")
}
func (m *countingMetrics) Request(string, int, time.Duration) { m.requests.Add(1) }
func (m *countingMetrics) Refused(fault.Code)                 { m.refused.Add(1) }
func (m *countingMetrics) Rates() api.Rate                    { return api.Rate{Succeeded: 5} }
