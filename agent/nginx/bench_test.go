package nginx

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// benchHost is a host as it is in earnest: data on a disk, the run directory in memory as /run is, and on
// the same disk only where there is no directory in memory. where() is in the benchmark's name.
func benchHost(b *testing.B) *host {
	run := memory()
	b.Setenv("DEMIURGE_TEST_DISK", "1")
	h := newHost(b)
	if run != "" {
		dir, err := os.MkdirTemp(run, "dm")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		h.opts.RunDir = dir
	}
	return h
}

func where() string {
	if memory() == "" {
		return "run=disk"
	}
	return "run=memory"
}

// percentiles reports p50 and p99 in milliseconds, and the fsync p50 of the same disk beside them.
func percentiles(b *testing.B, h *host, took []time.Duration) {
	slices.Sort(took)
	at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(fsyncMedian(b, h.opts.DataDir), "fsync-p50-ms")
	b.ReportMetric(0, "ns/op")
}

func fsyncMedian(b *testing.B, dir string) float64 {
	f, err := os.CreateTemp(dir, "fsync")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close(); _ = os.Remove(f.Name()) }()
	var took []time.Duration
	for range 100 {
		begin := time.Now()
		if _, err := f.Write([]byte("x")); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return float64(took[50].Microseconds()) / 1000
}

// BenchmarkRouteSwitch measures Route: rename and proof through nginx.
func BenchmarkRouteSwitch(b *testing.B) {
	for _, n := range []int{100, 10000, 50000} {
		b.Run(fmt.Sprintf("routes=%d/%s", n, where()), func(b *testing.B) {
			h := benchHost(b)
			h.startNginx()
			gs := []*gateway{h.gateway(nil), h.gateway(nil)}
			e, err := Open(h.opts)
			if err != nil {
				b.Fatal(err)
			}
			keep := map[id.Organization]Target{}
			var orgs []id.Organization
			for i := range n {
				org := id.NewOrganization()
				orgs = append(orgs, org)
				keep[org] = Target{gs[0].id, id.Epoch(i + 1)}
			}
			e.Retain(keep)
			h.run(e)
			h.apply(slots(gs...))
			h.settled()
			epoch := id.Epoch(n)
			var took []time.Duration
			for b.Loop() {
				epoch++
				begin := time.Now()
				h.route(orgs[rand.IntN(n)], gs[int(epoch)%2], epoch)
				took = append(took, time.Since(begin))
			}
			percentiles(b, h, took)
		})
	}
}

// BenchmarkGeneration measures a configuration change from the first byte written to its proof.
func BenchmarkGeneration(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("slots=%d/%s", n, where()), func(b *testing.B) {
			h := benchHost(b)
			live := make(chan Event, 64)
			h.opts.Events = func(ev Event) {
				if ev.Type == GenerationLive {
					live <- ev
				}
			}
			h.startNginx()
			h.startEngine()
			var cfg Config
			for range n {
				cfg.Slots = append(cfg.Slots, Slot{Gateway: id.NewGateway()})
			}
			var took []time.Duration
			size := int64(1000)
			for b.Loop() {
				size++
				next := Config{Slots: slices.Clone(cfg.Slots)}
				next.Slots[0].MaxBody = size
				h.engine.SetConfig(next)
				took = append(took, (<-live).Took)
			}
			percentiles(b, h, took)
		})
	}
}

// static is an upstream that costs next to nothing, and the proxy that a person would write by hand for it:
// one upstream with kept connections, a buffered access log, the usual headers about the client, and what
// WebSockets need. It follows no route, says no epoch and logs no organization.
const static = `
daemon off;
worker_processes %[1]d;
pid %[2]s/static.pid;
error_log %[2]s/static-error.log;
events { worker_connections 4096; }
http {
    access_log %[2]s/static-access.log combined buffer=32k flush=1s;
    client_body_temp_path %[2]s/static-body;
    proxy_temp_path %[2]s/static-proxy;
    fastcgi_temp_path %[2]s/static-fastcgi;
    uwsgi_temp_path %[2]s/static-uwsgi;
    scgi_temp_path %[2]s/static-scgi;
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
            proxy_read_timeout 1h;
        }
    }
    server {
        listen unix:%[6]s;
        access_log off;
        keepalive_requests 1000000;
        location / { return 200 "hello\n"; }
    }
}
`

// BenchmarkProxy compares requests per second through a generation with 200 gateways and 1,000 routes
// with those through a hand-written configuration, in turns: to a gateway program (a Go server), and to
// an upstream that costs nothing, which shows the difference at its largest.
func BenchmarkProxy(b *testing.B) {
	b.Run("upstream=gateway", func(b *testing.B) { benchmarkProxy(b, true) })
	b.Run("upstream=static", func(b *testing.B) { benchmarkProxy(b, false) })
}

func benchmarkProxy(b *testing.B, program bool) {
	h := benchHost(b)
	h.startNginx()
	h.startEngine()
	gs := make([]id.Gateway, 200)
	var cfg Config
	for i := range gs {
		gs[i] = id.NewGateway()
		cfg.Slots = append(cfg.Slots, Slot{Gateway: gs[i]})
	}
	h.apply(cfg)
	keep := map[id.Organization]Target{}
	for i := range 1000 {
		keep[id.NewOrganization()] = Target{gs[i%len(gs)], id.Epoch(i + 1)}
	}
	org, gateway := id.NewOrganization(), gs[100]
	keep[org] = Target{gateway, 5000}
	h.engine.Retain(keep)

	other := freePort(b)
	dir := filepath.Join(h.opts.SocketDir, string(gateway))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	account := ""
	if os.Getuid() == 0 {
		account = "user root;" // the generated configuration does the same
	}
	conf := filepath.Join(dir, "static.conf")
	served := filepath.Join(dir, "static.sock")
	if !program {
		served = filepath.Join(dir, "http.sock")
	} else {
		l, err := net.Listen("unix", filepath.Join(dir, "http.sock"))
		if err != nil {
			b.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello\n") })}
		go func() { _ = srv.Serve(l) }() // ended by Close
		b.Cleanup(func() { _ = srv.Close() })
	}
	text := account + fmt.Sprintf(static, h.opts.Workers, dir, filepath.Join(dir, "http.sock"), other, orgHost(org), served)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(h.nginx.opts.Binary, "-c", conf, "-e", "stderr")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	eventually(b, "the upstream serves", func() bool {
		status, _, _, err := h.tryAsk(orgHost(org), "/")
		return err == nil && status == 200
	})
	generated := &side{address: h.opts.Listen[0].String(), master: h.nginx.PID()}
	hand := &side{address: other.String(), master: cmd.Process.Pid}
	var ratios []float64
	for b.Loop() { // in this order a machine that becomes slower or faster meanwhile favours neither
		g := generated.load(b, orgHost(org))
		w := hand.load(b, orgHost(org)) + hand.load(b, orgHost(org))
		g += generated.load(b, orgHost(org))
		ratios = append(ratios, g/w)
	}
	slices.Sort(ratios)
	b.ReportMetric(generated.requests/generated.seconds, "generated-req/s")
	b.ReportMetric(hand.requests/hand.seconds, "handwritten-req/s")
	b.ReportMetric(ratios[len(ratios)/2], "ratio-p50")
	b.ReportMetric(generated.cpu/generated.requests/1000, "generated-cpu-µs/req")
	b.ReportMetric(hand.cpu/hand.requests/1000, "handwritten-cpu-µs/req")
	b.ReportMetric(0, "ns/op")
}

// side is one of the two that are compared, with what it did so far.
type side struct {
	address                string
	master                 int
	requests, seconds, cpu float64 // cpu: nanoseconds of nginx's workers
}

func (s *side) load(b *testing.B, name string) float64 {
	before := s.used(b)
	rate := load(b, s.address, name)
	s.requests += rate * loadTime.Seconds()
	s.seconds += loadTime.Seconds()
	s.cpu += s.used(b) - before
	return rate
}

// used is the time on a processor of the workers, so far.
func (s *side) used(b *testing.B) float64 {
	sum := 0.0
	for _, pid := range children(s.master) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
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

var perSecond = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)

const loadTime = time.Second

// load sends requests on 32 kept connections for a while, with wrk where it is installed.
func load(b *testing.B, address, name string) float64 {
	if wrk, err := exec.LookPath("wrk"); err == nil {
		out, err := exec.Command(wrk, "-t1", "-c32", "-d", loadTime.String(), "-H", "Host: "+name, "http://"+address+"/").CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("Non-2xx")) {
			b.Fatalf("wrk: %v\n%s", err, out)
		}
		n, err := strconv.ParseFloat(string(perSecond.FindSubmatch(out)[1]), 64)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	ctx, cancel := context.WithTimeout(context.Background(), loadTime)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	defer client.CloseIdleConnections()
	counts := make([]int, 32)
	var group sync.WaitGroup
	for i := range counts {
		group.Go(func() {
			for ctx.Err() == nil {
				req, _ := http.NewRequest(http.MethodGet, "http://"+address+"/", nil)
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
	return float64(total) / loadTime.Seconds()
}
