package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// instantAllocations answers every start with the same allocation, so that only the API is measured.
type instantAllocations struct{ allocation id.Allocation }

func (a *instantAllocations) Start(context.Context, allocator.StartRequest) (allocator.StartResult, error) {
	return allocator.StartResult{Allocation: a.allocation}, nil
}

func (a *instantAllocations) StartBatch(context.Context, allocator.BatchRequest) ([]allocator.BatchOutcome, error) {
	return nil, nil
}
func (a *instantAllocations) Release(context.Context, allocator.ReleaseRequest) error { return nil }
func (a *instantAllocations) Migrate(context.Context, allocator.MigrateRequest) error { return nil }
func (a *instantAllocations) Phase(id.Allocation) (string, []command.Step, bool) {
	return "", nil, false
}

// BenchmarkStart is the API's own part of POST /v1/allocations, with connections kept open.
func BenchmarkStart(b *testing.B) {
	instant := &instantAllocations{}
	k := newKit(b, func(o *Options) { o.Limits.Token = Rate{1e9, 1e9} })
	k.withGateways(1)
	org := k.organization()
	a, _, err := k.client(api.RolePlatform).Start(context.Background(), start(org))
	if err != nil {
		b.Fatal(err)
	}
	instant.allocation = id.Allocation(a.AllocationID)
	k.server.opts.Allocations = instant
	body := []byte(`{"organization_id":"` + string(org) + `"}`)
	b.Run("handler", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				r, _ := http.NewRequest(post, "/v1/allocations", bytes.NewReader(body))
				r.RemoteAddr = "192.0.2.1:1"
				r.Header.Set("Authorization", "Bearer "+k.tokens[api.RolePlatform])
				w := &discard{header: http.Header{}}
				k.server.ServeHTTP(w, r)
				if w.status != http.StatusCreated {
					b.Fatalf("status %d", w.status)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	})
	b.Run("loopback", func(b *testing.B) {
		transport := &http.Transport{MaxIdleConnsPerHost: 64}
		defer transport.CloseIdleConnections()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				r, _ := http.NewRequest(post, k.web.URL+"/v1/allocations", bytes.NewReader(body))
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("Authorization", "Bearer "+k.tokens[api.RolePlatform])
				resp, err := transport.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusCreated {
					b.Fatalf("status %d", resp.StatusCode)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	})
}

// discard is an answer that nobody reads.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

// BenchmarkReads is what reading costs beside 100,000 active allocations on 100 hosts and as many that have ended.
func BenchmarkReads(b *testing.B) {
	const many, hosts = 100_000, 100
	k := newKit(b, func(o *Options) { o.Limits.Token = Rate{1e9, 1e9} })
	x := k.store.Begin()
	x.Entry(state.Origin{Index: 1 << 20, At: k.now()})
	x.PutPool(state.Pool{Name: "default"})
	var ids []string
	for n := range many {
		host := id.Host(fmt.Sprintf("h%d", n%hosts))
		if n < hosts {
			x.PutHost(state.Host{ID: host, Status: api.HostAlive, Report: command.HostReport{NginxState: api.NginxServing, Capacity: many}})
		}
		active := state.Allocation{ID: id.NewAllocation(), Organization: id.NewOrganization(), Pool: "default", Gateway: id.NewGateway(), Host: host, State: state.AllocationActive}
		x.PutAllocation(active, "")
		x.PutGateway(state.Gateway{
			ID: active.Gateway, Host: host, Pool: "default",
			Desired:  state.GatewayDesired{Target: api.TargetRun, Incarnation: 1, Organization: active.Organization, Allocation: active.ID},
			Observed: state.GatewayObserved{Incarnation: 1, Phase: api.PhaseServing},
		}, "")
		ended := active
		ended.ID, ended.State = id.NewAllocation(), state.AllocationReleased
		x.PutAllocation(ended, "")
		ids = append(ids, string(active.ID), string(ended.ID))
	}
	x.Commit()
	slices.Sort(ids)
	for name, path := range map[string]string{
		"status": "/v1/status", "page/first": "/v1/allocations?limit=10", "page/last": "/v1/allocations?limit=10&cursor=" + ids[len(ids)-11],
		"gateways of a host": "/v1/gateways?host_id=h7&limit=10",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, _ := http.NewRequest(get, path, nil)
				r.RemoteAddr = "192.0.2.1:1"
				r.Header.Set("Authorization", "Bearer "+k.tokens[api.RoleReader])
				w := &discard{header: http.Header{}}
				if k.server.ServeHTTP(w, r); w.status != http.StatusOK {
					b.Fatalf("status %d", w.status)
				}
			}
		})
	}
}
