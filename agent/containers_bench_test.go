package agent_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/container"
	"github.com/demiurge-platform/demiurge/agent/oauth"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/porttest"
)

// plain is a proxy to a program that asks nobody.
const plain = `
daemon off;
%[4]s
worker_processes 2;
pid %[1]s/plain.pid;
error_log %[1]s/plain.log;
events { worker_connections 1024; }
http {
    access_log %[1]s/plain-access.log combined buffer=32k flush=1s;
    client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
    keepalive_requests 1000000;
    server {
        listen 127.0.0.1:%[2]d;
        location / {
            proxy_pass http://%[3]s;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
        }
    }
}
`

// BenchmarkContainerAccess measures what the access check adds to a request to a user container: requests through
// the host's nginx with the agent's decision, and in turns through an nginx that asks nobody, to one program, on one
// kept connection each: a program's plain requests, and those of a page's script, which the agent carries.
func BenchmarkContainerAccess(b *testing.B) {
	h := prepareHost(b)
	h.config.Containers.Networks = []string{"127.0.0.0/8"}
	h.startNginx()
	h.start()
	gws := h.c.Run(1)
	h.c.WaitPhase(b, gws[0], api.PhaseReady, 1)
	org := id.NewOrganization()
	h.c.WaitServing(b, gws[0], h.c.Grant(gws[0], org))
	h.c.Members(gws[0], []api.Member{{UserID: "ada", Role: "owner"}}, api.Project{ProjectID: "drawing"})
	program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") }))
	b.Cleanup(program.Close)
	name, token := h.containerAt(b, org, netip.MustParseAddrPort(program.Listener.Addr().String()))
	other := h.plainProxy(b, program.Listener.Addr().String())
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	ask := func(port int, destination string) time.Duration {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
		if err != nil {
			b.Fatal(err)
		}
		r.Host = name
		r.Header.Set("Authorization", "Bearer "+token)
		if destination != "" {
			r.Header.Set("Sec-Fetch-Dest", destination)
		}
		begun := time.Now()
		res, err := client.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || string(body) != "hello\n" {
			b.Fatalf("%d %s %v", res.StatusCode, body, err)
		}
		return time.Since(begun)
	}
	agenttest.Wait(b, "the container is reached", func() bool {
		r, _ := http.NewRequestWithContext(b.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", other), nil)
		_, err := client.Do(r)
		return err == nil
	})
	for name, destination := range map[string]string{"plain": "", "carried": "empty"} {
		b.Run(name, func(b *testing.B) {
			var checked, unchecked []time.Duration
			for b.Loop() {
				for range 10 {
					checked = append(checked, ask(h.port, destination))
					unchecked = append(unchecked, ask(other, destination))
				}
			}
			slices.Sort(checked)
			slices.Sort(unchecked)
			at := func(d []time.Duration, percent int) float64 { return ms(d[len(d)*percent/100]) }
			b.ReportMetric(at(checked, 50), "checked-p50-ms")
			b.ReportMetric(at(unchecked, 50), "unchecked-p50-ms")
			b.ReportMetric(at(checked, 50)-at(unchecked, 50), "added-p50-ms")
			b.ReportMetric(at(checked, 99)-at(unchecked, 99), "added-p99-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// containerAt makes a container that is at an address, with ada's access token for it.
func (h *host) containerAt(b *testing.B, org id.Organization, at netip.AddrPort) (hostname, token string) {
	b.Helper()
	r, err := h.agent.Containers(b.Context(), org)
	if err != nil {
		b.Fatal(err)
	}
	var made container.Made
	agenttest.Wait(b, "the project is known", func() bool {
		made, err = r.Create(b.Context(), "ada", container.Spec{Project: "drawing", Name: "x", Services: []container.Service{{Name: "web"}}})
		t, _ := h.agent.Tenants().Find(org)
		p, _ := t.Policy()
		return err == nil && p.HasProject("drawing")
	})
	if _, err := r.Announce(made.Container.ID, made.Hosting.Token.Reveal(), container.Announcement{Source: at.Addr(), Ports: map[container.ServiceName]uint16{"web": at.Port()}}); err != nil {
		b.Fatal(err)
	}
	name := id.Hostname(org, domain)
	t, _ := h.agent.Tenants().Find(org)
	store, err := t.OAuth(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	c, err := oauth.NewClient(name, oauth.Client{Name: "x", Redirects: []string{"https://" + name + "/x"}, Scope: []string{"container:access"}})
	if err == nil {
		_, err = store.AddClient(b.Context(), c)
	}
	if err != nil {
		b.Fatal(err)
	}
	code, err := store.IssueCode(b.Context(), oauth.Consented{Client: c.ID, User: "ada", Redirect: c.Redirects[0], Scope: c.Scope})
	if err != nil {
		b.Fatal(err)
	}
	out, err := store.Redeem(b.Context(), oauth.Redemption{Client: c.ID, Code: code.Reveal(), Redirect: c.Redirects[0]})
	if err != nil {
		b.Fatal(err)
	}
	return container.Hostname(name, made.Container.ID, ""), out.Access.Reveal()
}

// plainProxy starts an nginx that asks nobody, and returns its port.
func (h *host) plainProxy(b *testing.B, to string) int {
	b.Helper()
	dir, port, account := b.TempDir(), porttest.Free(b), ""
	if os.Getuid() == 0 {
		account = "user root;" // the generated configuration does the same
	}
	conf := filepath.Join(dir, "plain.conf")
	if err := os.WriteFile(conf, []byte(strings.TrimSpace(fmt.Sprintf(plain, dir, port, to, account))), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/nginx", "-c", conf, "-e", "stderr")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	return port
}
