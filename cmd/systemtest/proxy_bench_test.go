package systemtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// handwritten is the proxy that a person would write by hand for one gateway: a static upstream with kept connections, a
// buffered access log, the usual headers about the client, and what WebSockets need. It follows no route, says
// no epoch but this one and logs no organization.
const handwritten = `
%[1]s
daemon off;
worker_processes 2;
pid %[2]s/nginx.pid;
error_log %[2]s/error.log;
events { worker_connections 4096; }
http {
    access_log %[2]s/access.log combined buffer=32k flush=1s;
    client_body_temp_path %[2]s/body;
    proxy_temp_path %[2]s/proxy;
    fastcgi_temp_path %[2]s/fastcgi;
    uwsgi_temp_path %[2]s/uwsgi;
    scgi_temp_path %[2]s/scgi;
    keepalive_requests 100000;
    map $http_upgrade $connection_upgrade {
        default upgrade;
        "" "";
    }
    upstream gateway { server unix:%[3]s; keepalive 32; }
    server {
        listen %[4]s;
        server_name %[5]s;
        location / {
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Host $http_host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Demiurge-Epoch %[6]d;
            proxy_read_timeout 1h;
        }
    }
}
`

// BenchmarkProxy compares requests per second to a gateway on a host with 200 of them, through the configuration that
// the agent made, with those through a hand-written one, in turns. Everything is the real program; the hand-written
// configuration has an nginx of its own.
func BenchmarkProxy(b *testing.B) {
	s := start(b, setup{flavor: plain, gateways: 200, dir: memoryRun(b)})
	a := s.allocate(s.organizations(1)[0], "default")
	s.mustServe(a)
	name, other := s.host(a.OrganizationID), fmt.Sprintf("127.0.0.1:%d", freePort(b))
	hand := &side{address: other, master: s.byHand(a.GatewayID, other, name, a.Epoch)}
	generated := &side{address: strings.TrimPrefix(s.file.HTTP, "http://"), master: s.pid("nginx-1")}
	waitTrue(b, "the hand-written proxy to serve", func() bool {
		req, err := http.NewRequest(http.MethodGet, "http://"+other+"/collab/ping", nil)
		if err != nil {
			b.Fatal(err)
		}
		req.Host = name
		resp, err := web.Do(req)
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
	var ratios []float64
	for b.Loop() {
		for range rounds { // in this order a machine that becomes slower or faster meanwhile favours neither
			g := generated.load(b, name)
			w := hand.load(b, name) + hand.load(b, name)
			g += generated.load(b, name)
			ratios = append(ratios, g/w)
		}
	}
	slices.Sort(ratios)
	b.ReportMetric(generated.requests/generated.seconds, "generated-req/s")
	b.ReportMetric(hand.requests/hand.seconds, "handwritten-req/s")
	b.ReportMetric(ratios[len(ratios)/4], "ratio-p25")
	b.ReportMetric(ratios[len(ratios)/2], "ratio-p50")
	b.ReportMetric(ratios[len(ratios)*3/4], "ratio-p75")
	b.ReportMetric(generated.cpu/generated.requests/1000, "generated-cpu-µs/req")
	b.ReportMetric(hand.cpu/hand.requests/1000, "handwritten-cpu-µs/req")
	b.ReportMetric(0, "ns/op")
}

// byHand runs nginx with a hand-written configuration until the test ends.
func (s *system) byHand(gateway, listen, name string, epoch uint64) (master int) {
	s.t.Helper()
	socket := filepath.Join(s.dir, "run", "gateways", gateway, "http.sock")
	dir := s.t.TempDir()
	account := ""
	if os.Getuid() == 0 {
		account = "user root;" // the generated configuration does the same
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, handwritten, account, dir, socket, listen, name, epoch), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command("nginx", "-c", conf, "-e", "stderr")
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// side is one of the two that are compared, with what it did so far.
type side struct {
	address                string
	master                 int
	requests, seconds, cpu float64 // cpu: nanoseconds of nginx's workers
}

// load sends requests for a turn and returns how many were answered in a second.
func (s *side) load(b *testing.B, name string) float64 {
	before, start := s.used(b), time.Now()
	n := load(b, s.address, name)
	seconds := time.Since(start).Seconds()
	s.requests += n
	s.seconds += seconds
	s.cpu += s.used(b) - before
	return n / seconds
}

// used is the time on a processor of the workers, so far.
func (s *side) used(b *testing.B) float64 {
	sum := 0.0
	workers, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.master, s.master))
	if err != nil {
		b.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(workers)) {
		text, err := os.ReadFile("/proc/" + pid + "/schedstat")
		var n float64
		if err == nil {
			_, err = fmt.Sscan(string(text), &n)
		}
		if err != nil {
			b.Fatal(err)
		}
		sum += n
	}
	return sum
}

// A turn is short, and there are many: the machine gives more in one second than in the next, which is the same for both
// in a round of four turns. The median of the rounds says which is faster, and their quartiles how sure that is.
const (
	turn   = 250 * time.Millisecond
	rounds = 45
)

var answered = regexp.MustCompile(`([0-9]+) requests in`)

// load sends requests on 32 kept connections for a turn, with wrk where it is installed, and returns how many were answered.
func load(b *testing.B, address, name string) float64 {
	ctx, cancel := context.WithTimeout(context.Background(), turn)
	defer cancel()
	if wrk, err := exec.LookPath("wrk"); err == nil {
		var out bytes.Buffer
		cmd := exec.Command(wrk, "-t1", "-c32", "-d1m", "-H", "Host: "+name, "http://"+address+"/collab/ping")
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		<-ctx.Done()
		_ = cmd.Process.Signal(os.Interrupt) // wrk's own times are whole seconds; told so, it ends and says what it has
		err := cmd.Wait()
		found := answered.FindSubmatch(out.Bytes())
		if err != nil || found == nil || bytes.Contains(out.Bytes(), []byte("Non-2xx")) {
			b.Fatalf("wrk: %v\n%s", err, out.Bytes())
		}
		n, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	defer client.CloseIdleConnections()
	counts := make([]int, 32)
	var group sync.WaitGroup
	for i := range counts {
		group.Go(func() {
			for ctx.Err() == nil {
				req, _ := http.NewRequest(http.MethodGet, "http://"+address+"/collab/ping", nil)
				req.Host = name
				resp, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				counts[i]++
			}
		})
	}
	group.Wait()
	total := 0
	for _, n := range counts {
		total += n
	}
	return float64(total)
}
