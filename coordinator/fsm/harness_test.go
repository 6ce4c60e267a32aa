package fsm_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// start is the proposer's clock at the beginning of every test.
var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// machine is a state machine with its log, checked after every command.
type machine struct {
	testing.TB
	store *state.Store
	fsm   *fsm.FSM
	index uint64
	log   []*raft.Log // kept while checking; benchmarks do neither
	now   time.Time
	check bool
}

func newMachine(t testing.TB) *machine {
	store := state.New()
	return &machine{TB: t, store: store, fsm: fsm.New(store, nil), now: start, check: true}
}

func (m *machine) meta() command.Meta {
	return command.Meta{At: m.now, Actor: "tk-operator00", Source: "192.0.2.1"}
}

// entry appends a command to the log.
func (m *machine) entry(c command.Command) *raft.Log {
	m.Helper()
	data, err := command.Encode(c)
	if err != nil {
		m.Fatal(err)
	}
	m.index++
	e := &raft.Log{Index: m.index, Type: raft.LogCommand, Data: data}
	if m.check {
		m.log = append(m.log, e)
	}
	return e
}

// do applies a command and checks every invariant.
func (m *machine) do(c command.Command) command.Result {
	m.Helper()
	r := m.fsm.Apply(m.entry(c)).(command.Result)
	if m.check {
		if err := m.store.Check(); err != nil {
			m.Fatalf("after entry %d, %#v:\n%v", m.index, c, err)
		}
	}
	return r
}

// ok applies a command that must be taken.
func (m *machine) ok(c command.Command) command.Result {
	m.Helper()
	r := m.do(c)
	if r.Err != nil {
		m.Fatalf("%#v: refused: %v", c, r.Err)
	}
	return r
}

// refused applies a command that must be refused and leave nothing but the index.
func (m *machine) refused(code fault.Code, c command.Command) {
	m.Helper()
	last := m.store.LastEvent()
	before := m.records()
	r := m.do(c)
	if r.Err == nil || r.Err.Code != code {
		m.Fatalf("%#v: %v, want %s", c, r.Err, code)
	}
	if after := m.records(); after != before {
		m.Fatalf("%#v was refused and changed records:\n%s\nto\n%s", c, before, after)
	}
	if m.store.LastEvent() != last {
		m.Fatalf("%#v was refused and made events", c)
	}
}

func (m *machine) records() string { return records(m.store.View()) }

// records prints every record, without the log's index.
func records(v state.View) string {
	var b strings.Builder
	for r := range v.Hosts(nil) {
		plain := *r
		plain.Drain = nil
		b.WriteString(strings.Replace(fmt.Sprintf("%+v", plain), " Drain:<nil>", "", 1)) // as version 1 knew it
		if r.Drain != nil {
			fmt.Fprintf(&b, "%+v", *r.Drain)
		}
		b.WriteString("\n")
	}
	for r := range v.Pools(nil) {
		fmt.Fprintf(&b, "%+v\n", *r)
	}
	for r := range v.Organizations(nil) {
		fmt.Fprintf(&b, "%+v\n", *r)
	}
	for r := range v.Tokens(nil) {
		fmt.Fprintf(&b, "%+v\n", *r)
	}
	if r := v.Trust(nil); r != nil {
		fmt.Fprintf(&b, "%+v\n", *r)
	}
	for r := range v.JoinTokens(nil) {
		fmt.Fprintf(&b, "%+v\n", *r)
	}
	for r := range v.Enrolments(nil) {
		fmt.Fprintf(&b, "%+v\n", *r)
	}
	for r := range v.Requests(nil) {
		fmt.Fprintf(&b, "%+v\n", *r)
	}
	for r := range v.Allocations(nil) {
		moving, err := json.Marshal(struct {
			Move  *state.Move
			Moves []state.Moved
			Left  *state.Grant
		}{r.Move, r.Moves, r.Left})
		if err != nil {
			panic(err)
		}
		plain := *r
		plain.Move, plain.Moves, plain.Left = nil, nil, nil
		text := strings.Replace(fmt.Sprintf("%+v", plain), " Move:<nil> Moves:[] Left:<nil>", "", 1) // as version 1 knew it
		if r.Move != nil || r.Moves != nil || r.Left != nil {
			text += string(moving)
		}
		b.WriteString(text + "\n")
	}
	for r := range v.Gateways(nil) {
		b.WriteString(strings.Replace(fmt.Sprintf("%+v", *r), " Outrun:0", "", 1) + "\n") // as version 1 knew it
	}
	return b.String()
}

func orgID(n int) id.Organization {
	return id.Organization(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
}

const letters = "abcdefghijklmnopqrstuvwxyz234567"

// coded writes a number with the letters of ids.
func coded(n, width int) string {
	b := make([]byte, width)
	for i := width - 1; i >= 0; i-- {
		b[i] = letters[n%32]
		n /= 32
	}
	return string(b)
}

func gwID(n int) id.Gateway    { return id.Gateway("gw-" + coded(n, 10)) }
func alID(n int) id.Allocation { return id.Allocation("al-" + coded(n, 16)) }
func jtID(n int) id.JoinToken  { return id.JoinToken("jt-" + coded(n, 10)) }
func tkID(n int) id.Token      { return id.Token("tk-" + coded(n, 10)) }

func (m *machine) org(n int) id.Organization {
	m.Helper()
	m.ok(command.PutOrganization{
		Meta: m.meta(), Organization: orgID(n), Name: fmt.Sprint("org ", n),
		Members: []command.Member{{User: "alice", Role: "owner"}},
	})
	return orgID(n)
}

func (m *machine) pool(name id.Pool) {
	m.Helper()
	m.ok(command.PutPool{
		Meta: m.meta(), Pool: name, MinReady: 2, Step: 3, Max: 50, MaxInFlight: 10, Isolation: "serve",
		ActivationTimeout: 10 * time.Second,
	})
}

func hostReport(capacity int) *command.HostReport {
	return &command.HostReport{Address: "192.0.2.10", Capacity: capacity, Version: "1", NginxState: api.NginxServing}
}

func (m *machine) host(name id.Host, capacity int) {
	m.Helper()
	m.ok(command.ObserveHost{Meta: m.meta(), Host: name, Instance: "i1", Full: true, Report: hostReport(capacity)})
}

// create adds gateways first…last to a host without reporting them.
func (m *machine) create(pool id.Pool, host id.Host, first, last int) {
	m.Helper()
	c := command.CreateGateways{Meta: m.meta(), Pool: pool, Reason: "test"}
	for n := first; n <= last; n++ {
		c.Gateways = append(c.Gateways, command.NewGateway{ID: gwID(n), Host: host})
	}
	if r := m.ok(c); r.Count != len(c.Gateways) {
		m.Fatalf("created %d of %d gateways", r.Count, len(c.Gateways))
	}
}

// report is what an honest agent says of a gateway in a phase.
func (m *machine) report(gateway id.Gateway, phase string) command.GatewayReport {
	m.Helper()
	g := m.gateway(gateway)
	r := command.GatewayReport{
		Gateway: gateway, Incarnation: g.Desired.Incarnation, Phase: phase, PID: 100,
		BootID: fmt.Sprintf("boot-%s-%d", gateway, g.Desired.Incarnation),
	}
	if phase == api.PhaseServing {
		r.Organization, r.Epoch = g.Desired.Organization, g.Desired.Epoch
	}
	return r
}

func (m *machine) observe(reports ...command.GatewayReport) {
	m.Helper()
	host := id.Host("h1")
	if g := m.store.View().Gateway(nil, reports[0].Gateway); g != nil {
		host = g.Host
	}
	m.ok(command.ObserveHost{Meta: m.meta(), Host: host, Instance: "i1", Gateways: reports})
}

// ready makes gateways first…last of a pool ready on a host.
func (m *machine) ready(pool id.Pool, host id.Host, first, last int) {
	m.Helper()
	m.create(pool, host, first, last)
	var reports []command.GatewayReport
	for n := first; n <= last; n++ {
		reports = append(reports, m.report(gwID(n), api.PhaseReady))
	}
	m.ok(command.ObserveHost{Meta: m.meta(), Host: host, Instance: "i1", Gateways: reports})
}

func (m *machine) reserve(org, allocation int) command.ReserveOutcome {
	m.Helper()
	return m.ok(m.reserveOf(org, allocation)).Reserved[0]
}

func (m *machine) reserveOf(org, allocation int) command.Reserve {
	return command.Reserve{
		Meta: m.meta(), Pool: "default",
		Items: []command.ReserveItem{{Organization: orgID(org), Allocation: alID(allocation)}},
	}
}

func (m *machine) confirmOf(allocation id.Allocation) command.Confirm {
	m.Helper()
	a := m.allocation(allocation)
	return command.Confirm{
		Meta: m.meta(), Allocation: a.ID, Epoch: a.Epoch, Observed: m.report(a.Gateway, api.PhaseServing),
		Journal: []command.Step{{Step: api.StepActivate, State: api.StepDone, StartedAt: m.now, EndedAt: m.now}},
	}
}

// active makes an organization active and gives its allocation.
func (m *machine) active(org, allocation int) *state.Allocation {
	m.Helper()
	if out := m.reserve(org, allocation); out.Err != nil || out.Queued {
		m.Fatalf("organization %d: not reserved: %+v", org, out)
	}
	m.ok(m.confirmOf(alID(allocation)))
	return m.allocation(alID(allocation))
}

func (m *machine) gateway(g id.Gateway) *state.Gateway {
	m.Helper()
	r := m.store.View().Gateway(nil, g)
	if r == nil {
		m.Fatalf("there is no gateway %s", g)
	}
	return r
}

func (m *machine) allocation(a id.Allocation) *state.Allocation {
	m.Helper()
	r := m.store.View().Allocation(nil, a)
	if r == nil {
		m.Fatalf("there is no allocation %s", a)
	}
	return r
}

func (m *machine) wantGateway(g id.Gateway, want state.GatewayState) {
	m.Helper()
	if got := m.gateway(g).State; got != want {
		m.Fatalf("gateway %s is %s, want %s", g, got, want)
	}
}

func (m *machine) wantAllocation(a id.Allocation, want state.AllocationState) {
	m.Helper()
	if got := m.allocation(a).State; got != want {
		m.Fatalf("allocation %s is %s, want %s", a, got, want)
	}
}

// types lists the events of the newest entry.
func (m *machine) types() string {
	var out []string
	for _, e := range m.events() {
		out = append(out, e.Type)
	}
	return strings.Join(out, " ")
}

// events gives the events of the newest entry.
func (m *machine) events() []state.Event {
	events, _, _ := m.store.Events(state.EventID{Index: m.index}, state.KeptEvents)
	return events
}

// small is a cluster with one host, one pool, ready gateways 1…n and organizations 1…8.
func small(t testing.TB, n int) *machine {
	m := newMachine(t)
	m.host("h1", 20)
	m.pool("default")
	for i := 1; i <= 8; i++ {
		m.org(i)
	}
	if n > 0 {
		m.ready("default", "h1", 1, n)
	}
	return m
}

// memorySink is a snapshot sink in memory.
type memorySink struct {
	strings.Builder
	canceled bool
}

func (*memorySink) ID() string      { return "memory" }
func (*memorySink) Close() error    { return nil }
func (s *memorySink) Cancel() error { s.canceled = true; return nil }

// snapshot persists the state.
func (m *machine) snapshot() string {
	m.Helper()
	s, err := m.fsm.Snapshot()
	if err != nil {
		m.Fatal(err)
	}
	defer s.Release()
	var sink memorySink
	if err := s.Persist(&sink); err != nil {
		m.Fatal(err)
	}
	return sink.String()
}

func readFile(t testing.TB, parts ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
