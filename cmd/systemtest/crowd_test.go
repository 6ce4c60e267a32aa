package systemtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// size is how many gateways the pool of the crowd has.
const size = 40

func TestCrowd(t *testing.T) {
	s := start(t, setup{flavor: crowded, gateways: size})
	most := size
	s.pool("default", api.PutPool{Max: &most})
	s.waitReady("default", size)
	before := s.open()
	orgs := s.organizations(50)
	t.Run("500 starts of 50 organizations", func(t *testing.T) { s.on(t).fiveHundredStarts(orgs) })
	t.Run("1000 WebSockets", func(t *testing.T) { s.on(t).thousandSockets(orgs) })
	waitFor(t, "what the crowd needed to be closed", func() string {
		for name, n := range s.open() {
			if n > before[name]+mostIdle {
				return fmt.Sprintf("%s has %d files open, and had %d", name, n, before[name])
			}
		}
		return ""
	})
}

// mostIdle is how many connections a program may keep for the next time. More than 1,000 organizations have come and
// gone: whatever one of them leaves open is far more.
const mostIdle = 100

// open is how many files the coordinator and the agent have open.
func (s *system) open() map[string]int {
	s.t.Helper()
	out := map[string]int{}
	for _, name := range []string{"agent-1", "coordinator-1"} {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid(name)))
		if err != nil {
			s.t.Fatal(err)
		}
		out[name] = len(files)
	}
	return out
}

// on is the system as a subtest uses it.
func (s *system) on(t *testing.T) *system {
	sub := *s
	sub.t = t
	return &sub
}

// waitReady waits until a pool has exactly so many gateways, all ready.
func (s *system) waitReady(pool string, n int) {
	s.t.Helper()
	waitFor(s.t, fmt.Sprintf("%d ready gateways", n), func() string {
		p, err := s.client.Pool(s.t.Context(), pool)
		if err != nil {
			return err.Error()
		}
		if p.Counts.Ready != n || p.Counts.Total != n {
			return fmt.Sprintf("%+v", p.Counts)
		}
		return ""
	})
}

// together calls fn for 0 to n-1 at the same time.
func together(n int, fn func(i int)) {
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { fn(i) })
	}
	group.Wait()
}

// fiveHundredStarts asks ten times at once for each of 50 organizations where 40 gateways are.
func (s *system) fiveHundredStarts(orgs []string) {
	const each = 10
	type outcome struct {
		allocation api.Allocation
		created    bool
		err        error
	}
	outcomes := make([]outcome, each*len(orgs))
	together(len(outcomes), func(i int) {
		o := &outcomes[i]
		o.allocation, o.created, o.err = s.client.Start(s.t.Context(), api.StartAllocation{OrganizationID: orgs[i%len(orgs)]})
	})
	held := map[string]api.Allocation{} // by organization
	gateways, created := map[string]string{}, map[string]int{}
	var refused []string
	for i, o := range outcomes {
		org := orgs[i%len(orgs)]
		if o.err != nil {
			if f := wantFault(s.t, o.err, fault.PoolExhausted, "default"); f.RetryAfter <= 0 {
				s.t.Errorf("a refusal says nothing of when to come back: %v", f)
			}
			refused = append(refused, org)
			continue
		}
		a := o.allocation
		if a.State != api.AllocationActive || a.OrganizationID != org {
			s.t.Errorf("organization %s got %+v", org, a)
		}
		if first, ok := held[org]; ok && (first.AllocationID != a.AllocationID || first.GatewayID != a.GatewayID || first.Epoch != a.Epoch) {
			s.t.Errorf("organization %s has two gateways: %+v and %+v", org, first, a)
		}
		if other, ok := gateways[a.GatewayID]; ok && other != org {
			s.t.Errorf("gateway %s has organizations %s and %s", a.GatewayID, other, org)
		}
		held[org], gateways[a.GatewayID] = a, org
		if o.created {
			created[org]++
		}
	}
	if len(held) != size || len(gateways) != size {
		s.t.Fatalf("%d organizations have %d gateways, want %d", len(held), len(gateways), size)
	}
	for org, n := range created {
		if n != 1 {
			s.t.Errorf("%d starts of organization %s were answered as the first", n, org)
		}
	}
	for _, org := range refused {
		if _, ok := held[org]; ok {
			s.t.Errorf("organization %s was refused, and has a gateway", org)
		}
	}
	for _, a := range held {
		s.mustServe(a)
	}
	s.line(orgs, held)
	s.releaseAll()
	s.waitReady("default", size)
	for _, org := range orgs {
		if m := s.unrefused(org); m != "" {
			s.t.Error(m)
		}
	}
}

// line lets the organizations without gateway wait in line until others leave.
func (s *system) line(orgs []string, held map[string]api.Allocation) {
	waiting := slices.DeleteFunc(slices.Clone(orgs), func(org string) bool { _, ok := held[org]; return ok })
	wait := api.Duration(patience)
	got := make([]api.Allocation, len(waiting))
	errs := make([]error, len(waiting))
	var group sync.WaitGroup
	group.Go(func() {
		together(len(waiting), func(i int) {
			got[i], _, errs[i] = s.client.Start(s.t.Context(), api.StartAllocation{OrganizationID: waiting[i], Wait: &wait})
		})
	})
	waitFor(s.t, "the line to form", func() string {
		p, err := s.client.Pool(s.t.Context(), "default")
		if err != nil || p.Queued != len(waiting) {
			return fmt.Sprintf("%d in line, %v", p.Queued, err)
		}
		return ""
	})
	leaving := 0
	for _, a := range held {
		if leaving == len(waiting) {
			break
		}
		leaving++
		group.Go(func() {
			if _, err := s.client.Release(s.t.Context(), a.AllocationID, 0); err != nil {
				s.t.Errorf("cannot release: %v", err)
			}
		})
	}
	group.Wait()
	seen := map[string]bool{}
	for i, a := range got {
		if errs[i] != nil {
			s.t.Errorf("organization %s waited in line and got %v", waiting[i], errs[i])
			continue
		}
		if seen[a.GatewayID] {
			s.t.Errorf("gateway %s was granted twice", a.GatewayID)
		}
		seen[a.GatewayID] = true
		s.mustServe(a)
	}
}

// releaseAll ends every live allocation.
func (s *system) releaseAll() {
	s.t.Helper()
	live, err := s.client.ListAllocations(s.t.Context(), client.AllocationFilter{Live: true})
	if err != nil {
		s.t.Fatal(err)
	}
	together(len(live), func(i int) {
		if _, err := s.client.Release(s.t.Context(), live[i].AllocationID, 0); err != nil {
			s.t.Errorf("cannot release: %v", err)
		}
	})
}

const (
	connected   = 10   // organizations with WebSockets
	socketsEach = 100  // of one
	changes     = 50   // of nginx's configuration
	allocations = 1000 // of others
	movers      = 20   // organizations that come and go
)

// thousandSockets keeps 1,000 WebSockets open while others come and go 1,000 times and nginx takes 50 new
// configurations, each proven live before the next is asked for. The sockets are opened on two
// generations: the workers of both stay until the end (as many as are let drain without slowing the
// next generation), and those of the generations between hold nothing and go.
func (s *system) thousandSockets(orgs []string) {
	var held []api.Allocation
	for _, org := range orgs[:connected] {
		held = append(held, s.allocate(org, ""))
	}
	sockets := s.dial(held)
	s.configure(0) // the workers of now stay with these, and new ones get the others
	sockets = append(sockets, s.dial(held)...)
	before := s.generation()
	var group sync.WaitGroup
	group.Go(func() { s.move(orgs[connected : connected+movers]) })
	for i := range changes {
		s.configure(i + 1)
	}
	group.Wait()
	if after := s.generation(); after < before+changes {
		s.t.Errorf("%d changes took nginx from generation %d to %d", changes, before, after)
	}
	if len(sockets) != connected*socketsEach {
		s.t.Fatalf("%d WebSockets were opened", len(sockets))
	}
	errs := make([]error, len(sockets))
	together(len(sockets), func(i int) { errs[i] = sockets[i].echo(fmt.Sprint("still here ", i)) })
	closed := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(closed) > 0 {
		s.t.Errorf("%d WebSockets did not stay open, the first: %v", len(closed), closed[0])
	}
	for _, k := range sockets {
		_ = k.conn.CloseNow()
	}
	for _, a := range held {
		s.mustServe(a)
	}
	s.releaseAll()
	s.configure(changes + 1)
	s.waitReady("default", size)
}

// dial opens half of the WebSockets of every organization and tries each once.
func (s *system) dial(held []api.Allocation) []*socket {
	s.t.Helper()
	n := len(held) * socketsEach / 2
	out := make([]*socket, n)
	errs := make([]error, n)
	together(n, func(i int) {
		ctx, cancel := context.WithTimeout(s.t.Context(), patience)
		defer cancel()
		a := held[i%len(held)]
		c, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(s.file.HTTP, "http")+"/echo", &websocket.DialOptions{Host: s.host(a.OrganizationID)})
		if err == nil && (resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get(api.HeaderGateway) != a.GatewayID) {
			err = fmt.Errorf("it is answered by gateway %q, not %s", resp.Header.Get(api.HeaderGateway), a.GatewayID)
		}
		if err == nil {
			out[i] = listen(c)
			err = out[i].echo("hello")
		}
		errs[i] = err
	})
	if err := errors.Join(errs...); err != nil {
		s.t.Fatalf("cannot open a WebSocket: %.2000v", err)
	}
	return out
}

// socket is an open WebSocket. It is read all the time: that answers the gateway's pings.
type socket struct {
	conn *websocket.Conn
	got  chan string
	err  error // why reading ended; set before got is closed
}

func listen(c *websocket.Conn) *socket {
	k := &socket{conn: c, got: make(chan string, 1)}
	go func() { // ends with the connection
		defer close(k.got)
		for {
			_, b, err := c.Read(context.Background())
			if err != nil {
				k.err = err
				return
			}
			k.got <- string(b)
		}
	}()
	return k
}

func (k *socket) echo(text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := k.conn.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		return err
	}
	select {
	case got, open := <-k.got:
		if !open {
			return k.err
		}
		if got != text {
			return fmt.Errorf("it answered %q to %q", got, text)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// generation is the number of nginx's live configuration.
func (s *system) generation() uint64 {
	s.t.Helper()
	h, err := s.client.Host(s.t.Context(), "host-1")
	if err != nil {
		s.t.Fatal(err)
	}
	return h.Nginx.LiveGeneration
}

// configure changes what nginx is configured with, a gateway more or less, and waits until that is live.
func (s *system) configure(i int) {
	s.t.Helper()
	before := s.generation()
	var err error
	if one := 1; i%2 == 0 {
		_, err = s.client.PutPool(s.t.Context(), "other", api.PutPool{MinReady: &one, Step: &one, Max: &one})
	} else {
		err = s.client.DeletePool(s.t.Context(), "other")
	}
	if err != nil {
		s.t.Fatal(err)
	}
	waitFor(s.t, fmt.Sprintf("configuration %d to be live", i), func() string {
		h, err := s.client.Host(s.t.Context(), "host-1")
		if err != nil {
			return err.Error()
		}
		if h.Nginx.LiveGeneration <= before || h.Nginx.LastError != "" {
			return fmt.Sprintf("%+v", h.Nginx)
		}
		return ""
	})
	waitTrue(s.t, "the pool to be as it shall be", func() bool {
		p, err := s.client.Pool(s.t.Context(), "other")
		if i%2 == 0 {
			return err == nil && p.Counts.Ready == 1
		}
		return fault.Is(err, fault.NotFound)
	})
}

// move lets organizations come and go, each one after the other, and looks at what they are served.
func (s *system) move(orgs []string) {
	together(len(orgs), func(n int) {
		for range allocations / movers {
			a, err := s.startSoon(orgs[n])
			if err != nil {
				s.t.Errorf("cannot start: %v", err)
				return
			}
			if m := s.unserved(a); m != "" {
				s.t.Error(m)
			}
			if _, err := s.client.Release(s.t.Context(), a.AllocationID, 0); err != nil {
				s.t.Errorf("cannot release: %v", err)
				return
			}
		}
	})
}

// startSoon starts an organization. A host whose agent gets no time on a busy machine counts as silent for
// a moment, and nothing is placed on it then: that is told, and asked again.
func (s *system) startSoon(organization string) (a api.Allocation, err error) {
	waitTrue(s.t, "a host to be there", func() bool {
		a, _, err = s.client.Start(s.t.Context(), api.StartAllocation{OrganizationID: organization})
		return !fault.Is(err, fault.NoEligibleHost)
	})
	return a, err
}
