package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

const (
	benchWorkers = 32               // concurrent calls while putting and removing
	benchGrace   = 30 * time.Second // for what runs when the duration is over
	benchTidy    = 2 * time.Minute  // for removing everything
)

// Codes of errors that only the bench sees, beside the API's.
const (
	codeNotStarted  = "no_free_organization" // every organization was still busy when the time was over
	codeUnreachable = "unreachable"
	codeWrongAnswer = "wrong_answer" // through nginx: not this organization, gateway and epoch
)

// bench is one open-loop run. free holds the organizations that have no gateway; put are all that exist.
type bench struct {
	app       *app
	plan      benchPlan
	measuring *client.Client
	tidying   *client.Client
	web       *http.Client
	free      chan id.Organization
	put       []id.Organization
	results   *samples
}

func newBench(a *app, plan benchPlan, measuring, tidying *client.Client) *bench {
	transport := &http.Transport{MaxIdleConns: 1024, MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Minute}
	return &bench{
		app: a, plan: plan, measuring: measuring, tidying: tidying,
		web:     &http.Client{Transport: transport, Timeout: 10 * time.Second},
		free:    make(chan id.Organization, plan.organizations),
		results: newSamples(),
	}
}

// run puts the organizations, measures, removes them and prints, also when it is interrupted.
func (b *bench) run(ctx context.Context) error {
	p := b.app.wait(fmt.Sprintf("putting %d organizations", b.plan.organizations))
	defer p.stop()
	defer b.web.CloseIdleConnections()
	err := b.prepare(ctx)
	var took time.Duration
	if err == nil {
		p.say(fmt.Sprintf("starting %g a second for %s", b.plan.rate, b.plan.duration))
		took = b.measure(ctx)
	}
	interrupted := ctx.Err() != nil
	p.say(fmt.Sprintf("removing %d organizations", len(b.put)))
	left := b.tidy(ctx)
	p.stop()
	if err != nil && !interrupted {
		return err
	}
	report := b.results.report(b.plan, took, interrupted)
	if err := b.app.print(report, report.draw); err != nil {
		return err
	}
	switch {
	case left > 0:
		return fmt.Errorf("cannot remove %d of the organizations: 'demiurge org list' shows them, named \"demiurge bench …\"", left)
	case interrupted:
		return errors.New("interrupted: the figures are of the time until then")
	case report.Errors[codeWrongAnswer] > 0:
		return fmt.Errorf("%d answers through nginx were not of the organization that was asked for", report.Errors[codeWrongAnswer])
	case report.Succeeded == 0:
		return errors.New("no start succeeded")
	}
	return nil
}

// prepare puts the organizations, a bounded number at a time.
func (b *bench) prepare(ctx context.Context) error {
	orgs := make([]id.Organization, b.plan.organizations)
	for i := range orgs {
		orgs[i] = id.NewOrganization()
	}
	b.put = orgs // even one whose call failed may exist
	err := each(orgs, func(i int, org id.Organization) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, err := b.tidying.PutOrganization(ctx, string(org), api.PutOrganization{Name: b.plan.name(i)})
		return err
	})
	for _, org := range orgs {
		b.free <- org
	}
	return err
}

// each calls fn for all, benchWorkers at a time, and returns the first error.
func each(orgs []id.Organization, fn func(int, id.Organization) error) error {
	var (
		workers sync.WaitGroup
		once    sync.Once
		first   error
	)
	next := make(chan int)
	for range min(benchWorkers, len(orgs)) {
		workers.Go(func() {
			for i := range next {
				if err := fn(i, orgs[i]); err != nil {
					once.Do(func() { first = err })
				}
			}
		})
	}
	for i := range orgs {
		next <- i
	}
	close(next)
	workers.Wait()
	return first
}

// measure follows the schedule: start number n is due at n/rate after the beginning, whatever the ones
// before are doing. It returns how long starts were made.
func (b *bench) measure(ctx context.Context) time.Duration {
	begin := time.Now()
	end := begin.Add(b.plan.duration)
	waiting, noMore := context.WithCancel(ctx) // of those that have no organization yet
	running, abort := context.WithCancel(ctx)
	defer abort()
	var turns sync.WaitGroup
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		due := begin.Add(time.Duration(float64(n) / b.plan.rate * float64(time.Second)))
		if !due.Before(end) {
			break
		}
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		turns.Go(func() { b.turn(waiting, running, due) })
	}
	took := min(time.Since(begin), b.plan.duration)
	if ctx.Err() == nil {
		took = b.plan.duration
		if rest := time.Until(end); rest > 0 {
			timer.Reset(rest)
			select {
			case <-timer.C:
			case <-ctx.Done():
				took = time.Since(begin)
			}
		}
	}
	noMore()
	late := time.AfterFunc(benchGrace+b.plan.hold, abort)
	defer late.Stop()
	turns.Wait()
	return took
}

// turn starts one organization, looks at it through nginx, and stops it again.
func (b *bench) turn(waiting, running context.Context, due time.Time) {
	var org id.Organization
	select {
	case org = <-b.free:
	case <-waiting.Done():
		b.results.failed(codeNotStarted)
		return
	}
	defer func() { b.free <- org }()
	sent := time.Now()
	allocation, _, err := b.measuring.Start(running, api.StartAllocation{OrganizationID: string(org), Pool: b.plan.pool})
	answered := time.Now()
	if err != nil {
		if running.Err() == nil {
			b.results.failed(errorCode(err))
		}
		return
	}
	b.results.started(allocation.Timings, answered.Sub(due))
	if b.plan.http != "" {
		first, err := b.firstByte(running, allocation)
		switch {
		case running.Err() != nil:
		case err != nil:
			b.results.failed(errorCode(err))
		default:
			b.results.add("first byte", first.Sub(due))
			before := time.Duration((allocation.Timings.Queue + allocation.Timings.Reserve) * float64(time.Millisecond))
			b.results.add("commit to first byte", max(first.Sub(sent)-before, 0))
		}
	}
	sleep.For(running, b.plan.hold)
	stopped := time.Now()
	if _, err := b.measuring.Release(running, allocation.AllocationID, 0); err != nil {
		if running.Err() == nil {
			b.results.failed(errorCode(err))
		}
		return
	}
	b.results.add("release", time.Since(stopped))
}

// wrongAnswer is an answer through nginx that is not of the gateway that was granted.
type wrongAnswer struct{ text string }

func (e *wrongAnswer) Error() string { return e.text }

// firstByte asks the organization's host name and returns when the answer's first byte came, after it has
// seen that organization, gateway and epoch are the granted ones.
func (b *bench) firstByte(ctx context.Context, x api.Allocation) (time.Time, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.plan.http+"/collab/ping", nil)
	if err != nil {
		return time.Time{}, err
	}
	req.Host = x.Hostname
	resp, err := b.web.Do(req)
	first := time.Now()
	if err != nil {
		return first, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return first, err
	}
	var health api.GatewayHealth
	gateway, epoch := resp.Header.Get(api.HeaderGateway), resp.Header.Get(api.HeaderEpoch)
	if resp.StatusCode != http.StatusOK || json.Unmarshal(raw, &health) != nil || health.OrganizationID != x.OrganizationID ||
		gateway != x.GatewayID || epoch != strconv.FormatUint(x.Epoch, 10) {
		return first, &wrongAnswer{fmt.Sprintf("%s answered %s with gateway %q and epoch %q, want %s and %d", x.Hostname, resp.Status, gateway, epoch, x.GatewayID, x.Epoch)}
	}
	return first, nil
}

func errorCode(err error) string {
	var wrong *wrongAnswer
	var f *fault.Error
	switch {
	case errors.As(err, &wrong):
		return codeWrongAnswer
	case errors.As(err, &f):
		return string(f.Code)
	}
	return codeUnreachable
}

// tidy releases and deletes every organization and returns how many it could not. An interrupt that ended
// the measuring does not end it; a second one does.
func (b *bench) tidy(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchTidy)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() { // ends with tidy
		select {
		case <-b.app.Hurry:
			cancel()
		case <-over:
		}
	}()
	var mu sync.Mutex
	left := 0
	_ = each(b.put, func(_ int, org id.Organization) error {
		if err := b.remove(ctx, string(org)); err != nil {
			mu.Lock()
			left++
			mu.Unlock()
		}
		return nil
	})
	return left
}

// remove ends what an organization has. An undo or a release that is still under way is waited for.
func (b *bench) remove(ctx context.Context, org string) error {
	for {
		err := b.tidying.DeleteOrganization(ctx, org)
		if err == nil || fault.Is(err, fault.NotFound) {
			return nil
		}
		if ctx.Err() != nil || !fault.Is(err, fault.OrganizationActive) && !fault.Is(err, fault.Conflict) {
			return err
		}
		if x, err := b.tidying.OrganizationAllocation(ctx, org); err == nil {
			_, _ = b.tidying.Release(ctx, x.AllocationID, 0) // the next delete tells whether it worked
		}
		if !sleep.For(ctx, 50*time.Millisecond) {
			return err
		}
	}
}
