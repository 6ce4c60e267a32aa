package syncer_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/syncer"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// reportsTaker is a coordinator that takes any report, and remembers the connections that were made to it.
type reportsTaker struct {
	address string
	answer  func(w http.ResponseWriter, body string)

	mu    sync.Mutex
	conns []net.Conn     // guarded by mu: every one that was made
	on    map[string]int // guarded by mu: the connection, from 1, that a body came on
}

func newReportsTaker(t *testing.T, trust *agenttest.Trust) *reportsTaker {
	t.Helper()
	live := pki.NewLive(trust.Issue(t, pki.RoleCoordinator, "c1", time.Now()), pki.LiveOptions{})
	conf, err := live.Server(pki.Peer{Roles: []pki.Role{pki.RoleAgent}}, "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	k := &reportsTaker{on: map[string]int{}, answer: func(w http.ResponseWriter, _ string) { _, _ = io.WriteString(w, "{}") }}
	server := httptest.NewUnstartedServer(http.HandlerFunc(k.serve))
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.conns = append(k.conns, c)
		return context.WithValue(ctx, k, len(k.conns))
	}
	server.Listener = tls.NewListener(server.Listener, conf)
	server.Start()
	t.Cleanup(server.Close)
	k.address = strings.TrimPrefix(server.URL, "http://")
	return k
}

func (k *reportsTaker) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	k.mu.Lock()
	k.on[string(body)] = r.Context().Value(k).(int)
	k.mu.Unlock()
	k.answer(w, string(body))
}

// came is the connection that a body came on; 0: it did not come.
func (k *reportsTaker) came(body string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.on[body]
}

// hangUp closes every connection that was made so far.
func (k *reportsTaker) hangUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.conns {
		_ = c.Close()
	}
}

// post sends one report and returns the text of its answer.
func post(t *testing.T, client *http.Client, k *reportsTaker, body string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), agenttest.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+k.address+"/v1/agent/observations", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", string(text)), err
}

func TestReportsShareAConnection(t *testing.T) {
	trust := agenttest.NewTrust(t)
	first, second := newReportsTaker(t, trust), newReportsTaker(t, trust)
	c := newCertificate(t, trust)
	client, err := syncer.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	taken := func(k *reportsTaker, body string, on int) {
		t.Helper()
		if got, err := post(t, client, k, body); err != nil || got != "200 {}" {
			t.Fatalf("%s: %q %v", body, got, err)
		}
		if got := k.came(body); got != on {
			t.Fatalf("%s came on connection %d, want %d", body, got, on)
		}
	}
	taken(first, "a", 1)
	taken(first, "b", 1)
	first.hangUp() // as a coordinator does that has heard nothing for long
	taken(first, "c", 2)
	taken(second, "d", 1) // a report to another coordinator does not go to the one before
	taken(first, "e", 3)
	c.Replace(trust.Issue(t, pki.RoleAgent, "host-1", time.Now()))
	taken(first, "f", 4) // with the new certificate
	taken(first, strings.Repeat("long", 100<<10), 4)
}

func TestAnAnswerThatIsNoneIsAnError(t *testing.T) {
	trust := agenttest.NewTrust(t)
	k := newReportsTaker(t, trust)
	client, err := syncer.NewClient(newCertificate(t, trust))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	if _, err := post(t, client, k, "first"); err != nil {
		t.Fatal(err)
	}
	k.answer = func(w http.ResponseWriter, body string) {
		switch body {
		case "refused":
			http.Error(w, "no", http.StatusConflict)
		case "endless":
			_, _ = w.Write(make([]byte, 2<<20))
		case "endless head":
			for i := range 2000 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 1000))
			}
		case "many heads":
			for range 100_000 {
				w.WriteHeader(http.StatusProcessing)
			}
		default:
			panic(http.ErrAbortHandler)
		}
	}
	if got, err := post(t, client, k, "refused"); err != nil || got != "409 no\n" {
		t.Errorf("%q %v", got, err)
	}
	for body, want := range map[string]string{"endless": "is longer than", "endless head": "is longer than", "many heads": "is longer than", "cut off": ""} {
		if got, err := post(t, client, k, body); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %.20q %v", body, got, err)
		}
	}
	// What one end gave up is not what the next report gets.
	k.answer = func(w http.ResponseWriter, body string) { _, _ = io.WriteString(w, "for "+body) }
	if got, err := post(t, client, k, "last"); err != nil || got != "200 for last" {
		t.Errorf("%q %v", got, err)
	}
}
