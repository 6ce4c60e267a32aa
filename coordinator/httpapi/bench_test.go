package httpapi

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
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
