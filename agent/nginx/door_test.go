package nginx

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// door is a scripted access check on its socket, with the passage beside it.
type door struct{ access, passage scripted }

// scripted is one server of the agent.
type scripted struct {
	answer atomic.Pointer[http.HandlerFunc]
	asked  atomic.Pointer[http.Header]
	count  atomic.Int64
	server *http.Server
}

const containerName = "uc-abcdefghijklmnop--web."

// containers is a host with nginx, engine and a door that lets everybody through to the upstream.
func containers(t *testing.T, upstream string) (*host, *door, id.Organization) {
	t.Helper()
	h := newHost(t)
	h.opts.AccessSocket, h.opts.PassSocket = filepath.Join(h.opts.RunDir, "access.sock"), filepath.Join(h.opts.RunDir, "pass.sock")
	d := &door{}
	d.pass(upstream)
	d.listen(h)
	h.startNginx()
	h.startEngine()
	org := id.NewOrganization()
	g := h.gateway(nil)
	h.apply(slots(g))
	h.route(org, g, 7)
	return h, d, org
}

func (d *door) listen(h *host) {
	h.t.Helper()
	d.access.listen(h.t, h.opts.AccessSocket)
	d.passage.listen(h.t, h.opts.PassSocket)
}

func (s *scripted) listen(t testing.TB, path string) {
	t.Helper()
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := r.Header.Clone()
		header.Set("Method-And-Path", r.Method+" "+r.RequestURI)
		s.asked.Store(&header)
		s.count.Add(1)
		(*s.answer.Load())(w, r)
	})}
	go func() { _ = s.server.Serve(l) }() // ended by Close
	t.Cleanup(func() { _ = s.server.Close() })
}

func (s *scripted) say(f http.HandlerFunc) { s.answer.Store(&f) }

// pass lets everybody through, one way or the other.
func (d *door) pass(upstream string) {
	d.access.say(func(w http.ResponseWriter, r *http.Request) {
		for k, v := range map[string]string{
			"Upstream": upstream, "User": "paul", "Username": "Paul%20P", "Project": "one", "Container": "abcdefghijklmnop", "Service": "web",
			"Cookie": "theme=dark", "Authorization": "Basic x",
		} {
			w.Header().Set("X-Demiurge-"+k, v)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	proxy := httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: upstream})
			r.Out.Host = r.In.Host
			if r.In.Header.Get("Upgrade") != "" {
				r.Out.Header["Connection"] = r.In.Header["Connection"]
			}
		},
		ModifyResponse: func(r *http.Response) error { r.Header.Set("X-Demiurge-User", "carol"); return nil },
		FlushInterval:  -1,
	}
	d.passage.say(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		proxy.ServeHTTP(w, r)
	})
}

// refuse lets nobody through, and says so as the passage does.
func (d *door) refuse(status int, headers ...string) {
	d.access.say(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	d.passage.say(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "refused")
	})
}

// program is a container's own server, which says what it is told.
func program(t *testing.T, handler http.HandlerFunc) (address string, hits *atomic.Int64) {
	t.Helper()
	hits = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		handler(w, r)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), hits
}

func echoHeaders(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Demiurge-Gateway", "forged")
	w.Header().Set("X-Demiurge-User", "forged")
	w.Header().Set("Set-Cookie", "app=1")
	_, _ = fmt.Fprintf(w, "host %s\nuri %s\n", r.Host, r.RequestURI)
	for name, values := range r.Header {
		_, _ = fmt.Fprintf(w, "%s: %s\n", name, strings.Join(values, "|"))
	}
}
