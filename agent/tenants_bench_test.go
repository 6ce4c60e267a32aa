package agent_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// asked runs so many callers beside each other until the benchmark is over; each gets requests of its own.
func asked(b *testing.B, web *http.Client, callers int, request func() *http.Request) {
	b.Helper()
	work := make(chan struct{}, callers)
	var running sync.WaitGroup
	failed := make(chan int, callers)
	for range callers {
		running.Go(func() {
			for range work {
				res, err := web.Do(request())
				if err != nil {
					failed <- 0
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if res.StatusCode != http.StatusOK {
					failed <- res.StatusCode
					return
				}
			}
		})
	}
	b.ResetTimer()
	began := time.Now()
	for range b.N {
		select {
		case work <- struct{}{}:
		case status := <-failed:
			b.Fatalf("a request was answered with %d", status)
		}
	}
	close(work)
	running.Wait()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "req/s")
}

// benchSite is a site with one organization and a client that acts for itself. Requests go to nginx over TLS on
// connections that stay, as a service's do.
func benchSite(b *testing.B) (s *site, org id.Organization, client oauth.Client, secret string, web *http.Client) {
	b.Helper()
	s, org = newSite(b, 1), id.NewOrganization()
	s.serve(0, org)
	client, secret = s.client(org, oauth.Client{Name: "robot", Service: true, Scope: []string{"room:read"}})
	transport := s.web.Transport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	b.Cleanup(transport.CloseIdleConnections)
	return s, org, client, secret, &http.Client{Transport: transport}
}

// Issue 4: /oauth/authenticate through nginx at least 8,000 times a second.
func BenchmarkTokenCheckThroughNginx(b *testing.B) {
	s, org, client, secret, web := benchSite(b)
	token, err := s.service(org, client, secret)
	if err != nil {
		b.Fatal(err)
	}
	asked(b, web, 32, func() *http.Request {
		r, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, s.issuer(org)+"/oauth/authenticate", nil)
		r.Header.Set("Authorization", "Bearer "+token.AccessToken)
		return r
	})
}

// A token of a client for itself, through nginx, each on disk before it is answered.
func BenchmarkTokenThroughNginx(b *testing.B) {
	s, org, client, secret, web := benchSite(b)
	type robot struct{ name, secret string }
	robots := make(chan robot, 20) // a client has at most so many tokens
	robots <- robot{string(client.ID), secret}
	for len(robots) < cap(robots) {
		c, secret := s.client(org, oauth.Client{Name: "robot", Service: true, Scope: []string{"room:read"}})
		robots <- robot{string(c.ID), secret}
	}
	asked(b, web, 64, func() *http.Request {
		r, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, s.issuer(org)+"/oauth/token", strings.NewReader("grant_type=client_credentials"))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		one := <-robots
		robots <- one
		r.SetBasicAuth(one.name, one.secret)
		return r
	})
}
