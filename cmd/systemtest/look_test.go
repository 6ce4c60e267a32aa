package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// proc is a process of a system.
type proc struct {
	pid    int
	parent int
	name   string // of its program, or of its title for nginx
}

// processes are those that work below the system's directory, of one executable or of all.
func (s *system) processes(program string) []proc {
	var out []proc
	for _, pid := range procfs.PIDs() {
		if pid == os.Getpid() || s.cmd != nil && s.cmd.Process != nil && pid == s.cmd.Process.Pid {
			continue
		}
		if program != "" && executable(pid) != program { // which is known sooner than where it works
			continue
		}
		if p, ok := s.process(pid); ok {
			out = append(out, p)
		}
	}
	return out
}

func (s *system) process(pid int) (proc, bool) {
	read := func(name string) []byte { b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name)); return b }
	stat, err := procfs.Read(pid)
	if err != nil || !stat.Running() {
		return proc{}, false
	}
	p := proc{pid: pid, parent: stat.Parent}
	title := string(bytes.ReplaceAll(read("cmdline"), []byte{0}, []byte{' '}))
	cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)) // all that a worker of nginx shows
	if !strings.HasPrefix(cwd+"/", s.dir+"/") && !strings.Contains(title, s.dir+"/") && !bytes.Contains(read("environ"), []byte("="+s.dir+"/")) {
		return proc{}, false
	}
	p.name = executable(pid)
	if strings.HasPrefix(title, "nginx: worker") {
		p.name = "nginx worker"
	}
	return p, true
}

// executable is the name of the program that a process runs.
func executable(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return strings.TrimSuffix(filepath.Base(exe), " (deleted)")
}

// pid is the process of a name in dev.json, as it is now.
func (s *system) pid(name string) int {
	s.t.Helper()
	pid := 0
	waitFor(s.t, name+" to run", func() string {
		file, err := s.read()
		if err != nil {
			return err.Error()
		}
		for _, p := range file.Processes {
			if p.Name == name && alive(p.PID) {
				pid = p.PID
				return ""
			}
		}
		return fmt.Sprintf("dev.json has %v", file.Processes)
	})
	return pid
}

func alive(pid int) bool {
	s, err := procfs.Read(pid)
	return err == nil && s.Running()
}

// kill kills a process and waits until it is gone.
func (s *system) kill(pid int) {
	s.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatalf("cannot kill %d: %v", pid, err)
	}
	waitTrue(s.t, "the killed process to be gone", func() bool { return !alive(pid) })
}

// answer is one answer of nginx for an organization.
type answer struct {
	status  int
	gateway string
	epoch   string
	retry   string
	body    string
	health  api.GatewayHealth
}

// web asks nginx for an organization's name, each time on a new connection.
var web = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}

func (s *system) get(organization, path string) (answer, error) {
	return s.getAt(s.file.HTTP, organization, path)
}

// getAt asks the nginx of one host.
func (s *system) getAt(base, organization, path string) (answer, error) {
	req, err := http.NewRequest(http.MethodGet, base+path, nil)
	if err != nil {
		return answer{}, err
	}
	req.Host = s.host(organization)
	resp, err := web.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{
		status: resp.StatusCode, gateway: resp.Header.Get(api.HeaderGateway), epoch: resp.Header.Get(api.HeaderEpoch),
		retry: resp.Header.Get("Retry-After"), body: string(b),
	}
	_ = json.Unmarshal(b, &a.health) // only /collab/ping has it
	return a, nil
}

func (s *system) host(organization string) string {
	return id.Hostname(id.Organization(organization), s.file.Domain)
}

// unserved is why nginx does not serve an allocation as it should, or "".
func (s *system) unserved(a api.Allocation) string {
	got, err := s.getAt(s.at(a.HostID), a.OrganizationID, "/collab/ping")
	switch {
	case err != nil:
		return err.Error()
	case got.status != http.StatusOK || got.gateway != a.GatewayID || got.epoch != fmt.Sprint(a.Epoch):
		return fmt.Sprintf("organization %s of gateway %s at epoch %d gets %+v", a.OrganizationID, a.GatewayID, a.Epoch, got)
	case got.health.OrganizationID != a.OrganizationID || got.health.GatewayID != a.GatewayID || got.health.Epoch != a.Epoch:
		return fmt.Sprintf("organization %s of gateway %s at epoch %d is answered by %+v", a.OrganizationID, a.GatewayID, a.Epoch, got.health)
	}
	return ""
}

// at is where a host serves organizations; that of one that is not known is the first's.
func (s *system) at(host string) string {
	for _, h := range s.file.Hosts {
		if h.HostID == host {
			return h.HTTP
		}
	}
	return s.file.HTTP
}

// mustServe fails the test unless nginx serves the allocation now.
func (s *system) mustServe(a api.Allocation) {
	s.t.Helper()
	if m := s.unserved(a); m != "" {
		s.t.Fatal(m)
	}
}

// unrefused is why an organization without allocation is not answered 503 with Retry-After, or "".
func (s *system) unrefused(organization string) string {
	got, err := s.get(organization, "/")
	if err != nil {
		return err.Error()
	}
	if got.status != http.StatusServiceUnavailable || got.retry == "" || got.gateway != "" {
		return fmt.Sprintf("organization %s without allocation gets %+v", organization, got)
	}
	return ""
}

// allocate starts an organization and fails the test when that fails.
func (s *system) allocate(organization, pool string) api.Allocation {
	s.t.Helper()
	a, _, err := s.client.Start(s.t.Context(), api.StartAllocation{OrganizationID: organization, Pool: pool})
	if err != nil {
		s.t.Fatalf("cannot start %s: %v", organization, err)
	}
	return a
}

// release ends an allocation and fails the test when that fails.
func (s *system) release(a api.Allocation) {
	s.t.Helper()
	if _, err := s.client.Release(s.t.Context(), a.AllocationID, 0); err != nil {
		s.t.Fatalf("cannot release %s: %v", a.AllocationID, err)
	}
}

// organizations puts n organizations and names them.
func (s *system) organizations(n int) []string {
	s.t.Helper()
	var out []string
	for i := range n {
		org := string(id.NewOrganization())
		if _, err := s.client.PutOrganization(s.t.Context(), org, api.PutOrganization{Name: fmt.Sprintf("Organization %d", i)}); err != nil {
			s.t.Fatal(err)
		}
		out = append(out, org)
	}
	return out
}

// pool makes or changes a pool and waits until it has its minimum ready.
func (s *system) pool(name string, in api.PutPool) {
	s.t.Helper()
	if _, err := s.client.PutPool(s.t.Context(), name, in); err != nil {
		s.t.Fatalf("cannot put pool %s: %v", name, err)
	}
	waitFor(s.t, "pool "+name, func() string {
		p, err := s.client.Pool(s.t.Context(), name)
		if err != nil {
			return err.Error()
		}
		if p.Counts.Ready < p.MinReady {
			return fmt.Sprintf("%+v", p)
		}
		return ""
	})
}

// temporary names what no program may leave: halves of an atomic write and of a generation.
var temporary = regexp.MustCompile(`\.tmp$|^\.fsx-tmp-|^\.t-|\.new$`)

// wrong is what is wrong with the system at rest, or "". Which organizations are served follows from what
// the coordinator says; every other one of those given must be answered 503.
func (s *system) wrong(organizations ...string) string {
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	status, err := s.client.Status(ctx)
	if err != nil {
		return err.Error()
	}
	if !status.Healthy {
		return fmt.Sprintf("the status is not healthy: %v", status.Problems)
	}
	if err := s.client.Ready(ctx); err != nil {
		return err.Error()
	}
	live, err := s.client.ListAllocations(ctx, client.AllocationFilter{Live: true})
	if err != nil {
		return err.Error()
	}
	gateways, err := s.client.ListGateways(ctx, client.GatewayFilter{})
	if err != nil {
		return err.Error()
	}
	return s.wrongState(status, live, gateways, organizations)
}

func (s *system) wrongState(status api.Status, live []api.Allocation, gateways []api.Gateway, organizations []string) string {
	held := map[string]string{}
	var routed []string
	for _, a := range live {
		if a.State != api.AllocationActive {
			return fmt.Sprintf("allocation %s is %s", a.AllocationID, a.State)
		}
		if other := held[a.GatewayID]; other != "" {
			return fmt.Sprintf("gateway %s has organizations %s and %s", a.GatewayID, other, a.OrganizationID)
		}
		if slices.Contains(routed, a.OrganizationID) {
			return fmt.Sprintf("organization %s has two allocations", a.OrganizationID)
		}
		held[a.GatewayID] = a.OrganizationID
		routed = append(routed, a.OrganizationID)
		if m := s.unserved(a); m != "" {
			return m
		}
	}
	running := map[int]bool{}
	for _, g := range gateways {
		want := api.GatewayReady
		if held[g.GatewayID] != "" {
			want = api.GatewayAllocated
		}
		if g.State != want || g.OrganizationID != held[g.GatewayID] {
			return fmt.Sprintf("gateway %s is %s for organization %q: %s", g.GatewayID, g.State, g.OrganizationID, g.Message)
		}
		running[g.PID] = true
	}
	total := 0
	for _, p := range status.Pools {
		total += p.Counts.Total
	}
	processes := s.processes("demiurge-gateway")
	if len(gateways) != total || len(processes) != total || len(running) != total {
		return fmt.Sprintf("the pools count %d gateways, %d are listed, %d processes run", total, len(gateways), len(processes))
	}
	for _, p := range processes {
		if !running[p.pid] {
			return fmt.Sprintf("process %d is no gateway's", p.pid)
		}
	}
	for _, h := range status.Hosts {
		if n, err := s.pointed(); err != nil || h.Nginx.DesiredGeneration != n || h.Nginx.LiveGeneration != n {
			return fmt.Sprintf("nginx is on its way from generation %d, %v: %+v", n, err, h.Nginx)
		}
	}
	if m := s.wrongSlots(gateways); m != "" {
		return m
	}
	for _, org := range organizations {
		if !slices.Contains(routed, org) {
			if m := s.unrefused(org); m != "" {
				return m
			}
		}
	}
	return s.wrongFiles(routed, gateways)
}

var (
	liveGeneration = regexp.MustCompile(`generations/([0-9]+)`)
	slotOf         = regexp.MustCompile(`(?m)^upstream (gw-[a-z2-7]{10})-* `)
)

// pointed is the generation that nginx would be started with.
func (s *system) pointed() (uint64, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "agent/nginx/live.conf"))
	if err != nil {
		return 0, err
	}
	m := liveGeneration.FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("cannot read the pointer %q", b)
	}
	return strconv.ParseUint(string(m[1]), 10, 64)
}

// wrongSlots is how what nginx knows differs from the gateways that there are, or "".
func (s *system) wrongSlots(gateways []api.Gateway) string {
	n, err := s.pointed()
	if err != nil {
		return err.Error()
	}
	slots, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprintf("agent/nginx/generations/%06d/slots.conf", n)))
	if err != nil {
		return err.Error()
	}
	var named, want []string
	for _, m := range slotOf.FindAllStringSubmatch(string(slots), -1) {
		named = append(named, m[1])
	}
	for _, g := range gateways {
		want = append(want, g.GatewayID)
	}
	slices.Sort(named)
	slices.Sort(want)
	if !slices.Equal(named, want) {
		return fmt.Sprintf("nginx knows the gateways %v, and there are %v", named, want)
	}
	return ""
}

// wrongFiles is what is left over, or "".
func (s *system) wrongFiles(routed []string, gateways []api.Gateway) string {
	entries, err := os.ReadDir(filepath.Join(s.dir, "run/nginx/routes"))
	if err != nil {
		return err.Error()
	}
	// What routes lead to lies beside them.
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Type().IsRegular() })
	for _, e := range entries {
		if !slices.Contains(routed, e.Name()) {
			return "a route without allocation: " + e.Name()
		}
	}
	if len(entries) != len(routed) {
		return fmt.Sprintf("%d routes for %d allocations", len(entries), len(routed))
	}
	for _, dir := range []string{"agent/gateways", "run/gateways"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			return err.Error()
		}
		for _, e := range entries {
			if !slices.ContainsFunc(gateways, func(g api.Gateway) bool { return g.GatewayID == e.Name() }) {
				return "a directory without gateway: " + filepath.Join(dir, e.Name())
			}
		}
	}
	left := ""
	for _, dir := range []string{"agent", "run", "coordinator"} {
		err := filepath.WalkDir(filepath.Join(s.dir, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && temporary.MatchString(d.Name()) {
				left = "a temporary file: " + path
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return err.Error()
		}
	}
	return left
}

// waitWhole waits until nothing is wrong with the system.
func (s *system) waitWhole(organizations ...string) {
	s.t.Helper()
	waitFor(s.t, "the system to be whole", func() string { return s.wrong(organizations...) })
}

// wantFault fails the test unless the error has the code and says what to do.
func wantFault(t testing.TB, err error, code fault.Code, words ...string) *fault.Error {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != code {
		t.Fatalf("the error is %v, want code %s", err, code)
	}
	text := f.Message
	for _, l := range f.Locations {
		text += " " + l.Location + " " + l.Message
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s says %q, want something with %q", code, text, w)
		}
	}
	return f
}
