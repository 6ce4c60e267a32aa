//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/cmd/e2e/check"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	tryFor  = 4 * time.Second  // one try of an operation, at one coordinator
	giveUp  = 60 * time.Second // all tries; an operation without an answer then has none
	clients = 24               // each does one thing after the other
)

// load asks the cluster for things and records everything.
type load struct {
	c     *cluster
	begun time.Time
	seed  uint64
	rate  int
	step  int // of the pool, that was set last; guarded by mu
	rec   *check.Recorder

	mu         sync.Mutex
	rng        *rand.Rand            // guarded by mu
	operations []check.Operation     // guarded by mu
	live       map[string]check.Item // what each organization was last answered with; guarded by mu
	codes      map[string]int        // refusals by code; guarded by mu
}

func newLoad(c *cluster, r *check.Run, rec *check.Recorder, rate int) *load {
	l := &load{
		c: c, begun: r.Begun, seed: r.Seed, rate: rate, rec: rec, rng: rand.New(rand.NewPCG(r.Seed, 2)), live: map[string]check.Item{}, codes: map[string]int{},
	}
	for _, p := range r.Before.Pools {
		l.step = p.Step
	}
	for _, a := range r.Before.Allocations {
		if a.EndedAt == nil {
			l.live[a.OrganizationID] = itemOf(a)
		}
	}
	return l
}

// run lets the clients work until ctx ends, and then waits for their last answers.
func (l *load) run(ctx context.Context) {
	var work sync.WaitGroup
	if *moves {
		work.Go(func() { l.operate(ctx) })
	}
	pause := clients * time.Second / time.Duration(l.rate)
	for i := range clients {
		work.Go(func() {
			waitFor(ctx, pause*time.Duration(i)/clients)
			for ctx.Err() == nil {
				begun := time.Now()
				l.operation()
				waitFor(ctx, pause-time.Since(begun))
			}
		})
	}
	work.Wait()
}

// gather waits until the load is one, and tells when that was and how many operations a second were answered in the
// moments before. It does not wait for ever.
func (l *load) gather() (at time.Duration, rate float64) {
	for end := time.Now().Add(gathering); ; waitFor(l.c.ctx, 100*time.Millisecond) {
		l.mu.Lock()
		at = time.Since(l.begun)
		rate = check.Rate(l.operations, at)
		l.mu.Unlock()
		if rate >= check.DefaultLimits().Rate || l.c.ctx.Err() != nil || time.Now().After(end) {
			return at, rate
		}
	}
}

// choose decides what to do next.
func (l *load) choose() (op check.Operation, first int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	op = check.Operation{ID: len(l.operations), Outcome: check.Unknown}
	org := func() string { return l.c.orgs[l.rng.IntN(len(l.c.orgs))] }
	one := org()
	switch n := l.rng.IntN(100); {
	case n < 22:
		op.Kind, op.Key, op.Items = check.Start, id.Secret()[:20], []check.Item{{Organization: one}}
	case n < 25:
		op.Kind, op.Key = check.Batch, id.Secret()[:20]
		for range 3 {
			if o := org(); !slices.ContainsFunc(op.Items, func(it check.Item) bool { return it.Organization == o }) {
				op.Items = append(op.Items, check.Item{Organization: o})
			}
		}
	case n < 47:
		if it, ok := l.live[one]; ok {
			op.Kind, op.Items = check.Release, []check.Item{it}
			delete(l.live, one)
			break
		}
		op.Kind, op.Items = check.Get, []check.Item{{Organization: one}}
	case n < 52:
		if it, ok := l.live[one]; ok && *moves {
			op.Kind, op.Key, op.Items = check.Migrate, id.Secret()[:20], []check.Item{it}
			break
		}
		op.Kind, op.Items = check.Get, []check.Item{{Organization: one}}
	case n < 92:
		op.Kind, op.Items = check.Get, []check.Item{{Organization: one}}
	case n < 94:
		l.step = l.step%1000 + 1
		op.Kind, op.Step = check.SetStep, l.step
	default:
		op.Kind = check.GetStep
	}
	l.operations = append(l.operations, op)
	return op, l.rng.IntN(len(l.c.nodes))
}

// operation does one thing that is chosen now.
func (l *load) operation() {
	op, at := l.choose()
	l.ask(op, at)
}

// ask does one thing, trying again with the same key at the next coordinator while the answer is not known. Setting
// the step has no key, so it is tried once.
func (l *load) ask(op check.Operation, at int) {
	op.Call = time.Since(l.begun)
	l.rec.Operation(op)
	var err error
	for end := time.Now().Add(giveUp); ; at++ {
		n := l.c.nodes[at%len(l.c.nodes)]
		op.Nodes = append(op.Nodes, n.name)
		if op.Kind == check.Get || op.Kind == check.GetStep { // a read that is tried again is another read
			op.Call = time.Since(l.begun)
		}
		ctx, cancel := within(tryFor)
		err = do(ctx, n, &op)
		cancel()
		if err == nil {
			op.Outcome = check.OK
			break
		}
		if code, final := refusal(err); final {
			op.Outcome, op.Code = check.Refused, code
			break
		}
		if op.Kind == check.SetStep || time.Now().After(end) {
			op.Code = err.Error()
			break
		}
		// Callers that come back at once keep a cluster without leader from getting one, on few cores.
		waitFor(context.Background(), min(2*time.Second, 200*time.Millisecond<<min(len(op.Nodes), 8)))
	}
	op.Return = time.Since(l.begun)
	l.record(op)
	if op.Outcome == check.OK && op.Kind == check.Start && op.ID%5 == 0 {
		l.again(op, l.c.nodes[(at+1)%len(l.c.nodes)])
	}
}

// again repeats an answered start with its key at another coordinator.
func (l *load) again(op check.Operation, n *node) {
	op = l.numbered(check.Operation{
		Kind: op.Kind, Key: op.Key, Again: true, Nodes: []string{n.name}, Call: time.Since(l.begun), Outcome: check.Unknown,
		Items: []check.Item{{Organization: op.Items[0].Organization}},
	})
	l.rec.Operation(op)
	ctx, cancel := within(tryFor)
	defer cancel()
	op.Outcome = check.OK
	if err := do(ctx, n, &op); err != nil {
		op.Outcome, op.Code = check.Unknown, err.Error()
	}
	op.Return = time.Since(l.begun)
	l.record(op)
}

// refusal reports whether an error is an answer, and with which code.
func refusal(err error) (string, bool) {
	var f *fault.Error
	if !errors.As(err, &f) || f.Code == fault.NoLeader || f.Code == fault.Internal || f.Code == fault.RateLimited {
		return "", false
	}
	return string(f.Code), true
}

func (l *load) record(op check.Operation) {
	l.rec.Operation(op)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations[op.ID] = op
	if op.Outcome == check.Refused {
		l.codes[op.Code]++
	}
	if op.Outcome == check.OK && !op.Again && op.Kind != check.Release {
		for _, it := range op.Items {
			if it.Allocation != "" && it.State == api.AllocationActive {
				l.live[it.Organization] = it
			}
		}
	}
}

// do asks a coordinator once, and puts the answer into the operation.
func do(ctx context.Context, n *node, op *check.Operation) error {
	switch op.Kind {
	case check.Start:
		a, _, err := n.api.Start(ctx, api.StartAllocation{OrganizationID: op.Items[0].Organization}, client.IdempotencyKey(op.Key))
		if err == nil {
			op.Items = []check.Item{itemOf(a)}
		}
		return err
	case check.Batch:
		return batch(ctx, n, op)
	case check.Release:
		_, err := n.api.Release(ctx, op.Items[0].Allocation, 0)
		return err
	case check.Migrate:
		a, err := n.api.Migrate(ctx, op.Items[0].Allocation, api.MigrateAllocation{}, 0, client.IdempotencyKey(op.Key))
		if err == nil {
			op.Items = []check.Item{itemOf(a)}
		}
		return err
	case check.Cordon, check.Drain, check.Uncordon:
		return handle(ctx, n, op)
	case check.Get:
		a, err := n.api.OrganizationAllocation(ctx, op.Items[0].Organization, client.Consistency("consistent"))
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		if err == nil {
			op.Items = []check.Item{itemOf(a)}
		}
		return err
	case check.SetStep:
		p, err := n.api.PutPool(ctx, poolName, poolOf(op.Step))
		if err == nil && p.Step == op.Step {
			op.Index = p.Index
		}
		return err
	case check.GetStep:
		p, err := n.api.Pool(ctx, poolName, client.Consistency("consistent"))
		op.Step = p.Step
		return err
	}
	return fmt.Errorf("nobody knows how to %s", op.Kind)
}

func batch(ctx context.Context, n *node, op *check.Operation) error {
	var in api.StartBatch
	for _, it := range op.Items {
		in.OrganizationIDs = append(in.OrganizationIDs, it.Organization)
	}
	results, err := n.api.StartBatch(ctx, in, client.IdempotencyKey(op.Key))
	if err != nil {
		return err
	}
	items := make([]check.Item, len(results))
	for i, r := range results {
		items[i] = check.Item{Organization: r.OrganizationID}
		if r.Problem != nil {
			items[i].Code = r.Problem.Code
		} else {
			items[i] = itemOf(*r.Allocation)
		}
	}
	op.Items = items
	return nil
}

func itemOf(a api.Allocation) check.Item {
	return check.Item{Organization: a.OrganizationID, Allocation: a.AllocationID, Gateway: a.GatewayID, Epoch: a.Epoch, State: a.State}
}

// sample looks at the cluster every second until ctx ends.
func (l *load) sample(ctx context.Context) []check.Snapshot {
	var out []check.Snapshot
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return out
		case <-tick.C:
		}
		// A coordinator that is cut off or gone does not answer: then there is one look less.
		if s, err := l.c.look(l.c.nodes[i%len(l.c.nodes)], l.begun, false); err == nil {
			out = append(out, s)
			l.rec.Sample(s)
		}
	}
}

// fetch reads what a coordinator answers at a path.
func (c *cluster) fetch(n *node, path string) ([]byte, error) {
	ctx, cancel := within(5 * time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+n.host.Address+":7400"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := n.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(path + " answers " + strconv.Itoa(resp.StatusCode))
	}
	return body, err
}

// trusting makes TLS that trusts the CAs in a file.
func trusting(file string) (*tls.Config, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate is in %s", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, nil
}

// A repeated start is no answered operation before it is answered itself: the load that a piece is begun with is the one
// that its history has.
func TestARepeatedStartCountsWhenItIsAnswered(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-answer
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "{}") // nobody to tell
	}))
	defer server.Close()
	api, err := client.New(client.Options{Addresses: []string{server.URL}, Token: "t", RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	r := check.Run{Begun: time.Now()}
	rec, err := check.Record(filepath.Join(t.TempDir(), "history.jsonl"), r)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	l := newLoad(&cluster{t: t}, &r, rec, 1)
	first := l.numbered(check.Operation{Kind: check.Start, Key: "k", Outcome: check.OK, Return: time.Millisecond, Items: []check.Item{{Organization: "o"}}})
	done := make(chan struct{})
	go func() { l.again(first, &node{name: "c1", api: api}); close(done) }()
	<-asked
	rate := func() float64 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return check.Rate(l.operations, time.Second)
	}
	before := rate()
	close(answer)
	<-done
	if after := rate(); before != 1 || after != 2 {
		t.Errorf("%v answered a second before its answer and %v after it, of two in all", before, after)
	}
}
