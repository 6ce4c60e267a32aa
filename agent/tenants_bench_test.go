package agent_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// line is one kept connection to the nginx of a site. It reads no more of an answer than it must: caller, nginx and
// agent share the machine's processors, and what is measured is the latter two.
type line struct {
	conn *tls.Conn
	in   *bufio.Reader
}

func (s *site) line(org id.Organization) (*line, error) {
	config := s.web.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.ServerName = id.Hostname(org, domain)
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.tls), config)
	if err != nil {
		return nil, err
	}
	return &line{conn: c, in: bufio.NewReader(c)}, nil
}

// ask sends a request and reads the answer, which must be 200.
func (l *line) ask(request []byte) error {
	if _, err := l.conn.Write(request); err != nil {
		return err
	}
	for length, first := 0, true; ; first = false {
		text, err := l.in.ReadSlice('\n')
		switch {
		case err != nil:
			return err
		case first && !bytes.HasPrefix(text, []byte("HTTP/1.1 200 ")):
			return fmt.Errorf("a request was answered with %q", textproto.TrimBytes(text))
		case bytes.HasPrefix(text, []byte("Content-Length: ")):
			if length, err = strconv.Atoi(string(textproto.TrimBytes(text[len("Content-Length: "):]))); err != nil {
				return err
			}
		case len(text) == 2:
			if length == 0 {
				return errors.New("an answer does not say how long it is")
			}
			_, err = l.in.Discard(length)
			return err
		}
	}
}

// asked runs so many callers beside each other until the benchmark is over; each has a connection of its own, as a
// service's do.
func (s *site) asked(b *testing.B, org id.Organization, callers int, request func() []byte) {
	b.Helper()
	lines := make([]*line, callers)
	for i := range lines {
		var err error
		if lines[i], err = s.line(org); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = lines[i].conn.Close() })
		if err := lines[i].ask(request()); err != nil {
			b.Fatal(err)
		}
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	var running sync.WaitGroup
	b.ResetTimer()
	for _, l := range lines {
		running.Go(func() {
			for left.Add(-1) >= 0 {
				if err := l.ask(request()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

// benchSite is a site with one organization and a client that acts for itself. Requests go to nginx over TLS.
func benchSite(b *testing.B) (s *site, org id.Organization, client oauth.Client, secret string) {
	b.Helper()
	s, org = newSite(b, 1), id.NewOrganization()
	s.serve(0, org)
	client, secret = s.client(org, oauth.Client{Name: "robot", Service: true, Scope: []string{"room:read"}})
	return s, org, client, secret
}

// Issue 4: /oauth/authenticate through nginx at least 8,000 times a second.
func BenchmarkTokenCheckThroughNginx(b *testing.B) {
	s, org, client, secret := benchSite(b)
	token, err := s.service(org, client, secret)
	if err != nil {
		b.Fatal(err)
	}
	request := fmt.Appendf(nil, "GET /oauth/authenticate HTTP/1.1\r\nHost: %s:%d\r\nAuthorization: Bearer %s\r\n\r\n", id.Hostname(org, domain), s.tls, token.AccessToken)
	s.asked(b, org, 32, func() []byte { return request })
}

// A token of a client for itself, through nginx, each on disk before it is answered.
func BenchmarkTokenThroughNginx(b *testing.B) {
	s, org, client, secret := benchSite(b)
	const form = "grant_type=client_credentials"
	requestOf := func(name, secret string) []byte {
		return fmt.Appendf(nil, "POST /oauth/token HTTP/1.1\r\nHost: %s:%d\r\nAuthorization: Basic %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
			id.Hostname(org, domain), s.tls, base64.StdEncoding.EncodeToString([]byte(name+":"+secret)), len(form), form)
	}
	requests := make(chan []byte, 20) // a client has at most so many tokens
	requests <- requestOf(string(client.ID), secret)
	for len(requests) < cap(requests) {
		c, secret := s.client(org, oauth.Client{Name: "robot", Service: true, Scope: []string{"room:read"}})
		requests <- requestOf(string(c.ID), secret)
	}
	s.asked(b, org, 64, func() []byte {
		one := <-requests
		requests <- one
		return one
	})
}
