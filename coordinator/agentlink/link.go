// Package agentlink is the coordinator's end of the agent protocol (shared/api, agent.go): it sends each
// host its assignment as it changes and takes in what the host's agent observed. It decides nothing: what
// an observation means is decided by the state machine and, for unfinished allocations, the allocator.
package agentlink

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/allocator"
	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Proposer puts a command into the Raft log and returns after it was applied here.
type Proposer interface {
	Propose(ctx context.Context, c command.Command) (command.Result, uint64, error)
}

// Allocations takes in what agents report of unfinished allocations.
type Allocations interface {
	// Report returns when the failures that were reported are in the log. What it concludes from an
	// organization that is served may come later, or again from the next full observation.
	Report(ctx context.Context, host id.Host, progress []allocator.Progress)
	// Settled waits until no conclusion from an earlier report of the allocation is on its way.
	Settled(ctx context.Context, a id.Allocation)
}

// Options configure a Link. All fields but VerifyLeader and Alive are needed; Heartbeat is how often an idle stream carries an
// empty frame, and Lease how long a cut-off host may go on serving pools with isolation stop.
type Options struct {
	Store     *state.Store
	Proposer  Proposer
	Domain    string
	Heartbeat time.Duration
	Lease     time.Duration
	// VerifyLeader returns nil when this coordinator leads at the moment. Nil: hosts that are ahead of the state are not
	// looked for.
	VerifyLeader func(context.Context) error
	// Alive is the gossip's word on a host. Nil: it says nothing.
	Alive  func(id.Host) bool
	Logger hclog.Logger
	Now    func() time.Time
}

// Link is the coordinator's end of all agents' connections.
type Link struct {
	opts Options

	mu     sync.Mutex
	hosts  map[id.Host]*hostLink // guarded by mu; entries stay for ever, one per host
	access *access               // guarded by mu; replaced when it changes
	leads  time.Time             // when this coordinator began to lead last; guarded by mu
}

// access is how agents enter the gossip, and whom they are to trust, until it changes.
type access struct {
	api.GossipAccess
	ca      string // PEM
	changed chan struct{}
}

// hostLink is what is known of one host's agent. All fields are guarded by Link.mu.
type hostLink struct {
	streams uint64             // opened so far: the number of the newest
	cancel  context.CancelFunc // of the newest stream; nil when it has ended
	holder  run                // of the newest stream
	opened  time.Time          // when the newest stream was
	words   uint64             // what was heard of holder so far
	taking  int                // reports that are being taken in, while they came of holder
	moved   chan struct{}      // closed when words rises or the newest stream ends; nil: nobody waits
	copies  copies
	seen    time.Time
	asked   time.Time       // when the latest question was sent; zero: never
	answer  time.Time       // when the latest of those that were answered was sent; zero: none was
	leaving bool            // its last word was that the machine is being switched off
	ask     bool            // a question goes out with the next frame
	ended   bool            // the other end closed the newest stream: the machine lives, its agent does not
	ahead   id.Epoch        // of which the state at that time knew nothing; 0: none
	aheadOf <-chan struct{} // closed when that state was replaced
	nginx   api.NginxStatus
	gossip  api.HostGossip
	verify  []api.VerifyRequest // to be sent with the next frame
	wake    chan struct{}       // closed and replaced when verify was added to
	answers map[string]chan api.Step
}

// New makes a Link.
func New(opts Options) *Link {
	return &Link{opts: opts, hosts: map[id.Host]*hostLink{}, access: &access{changed: make(chan struct{})}}
}

// SetAccess tells all agents, now and when they come, how to enter the gossip, and whom the cluster trusts (PEM).
func (l *Link) SetAccess(a api.GossipAccess, ca string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.access
	if slices.Equal(before.Addresses, a.Addresses) && slices.Equal(before.Keys, a.Keys) && before.ca == ca {
		return
	}
	l.access = &access{a, ca, make(chan struct{})}
	close(before.changed)
}

func (l *Link) hostLocked(h id.Host) *hostLink {
	hl := l.hosts[h]
	if hl == nil {
		hl = &hostLink{wake: make(chan struct{}), answers: map[string]chan api.Step{}}
		l.hosts[h] = hl
	}
	return hl
}

// Ephemeral is what is known of a host without the log: its nginx as of the last report, when its agent
// was last heard of, and whether its stream is open.
func (l *Link) Ephemeral(h id.Host) (nginx api.NginxStatus, seen time.Time, connected bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hl := l.hosts[h]
	if hl == nil {
		return api.NginxStatus{}, time.Time{}, false
	}
	return hl.nginx, hl.seen, hl.cancel != nil
}

// Stream sends a host's assignment until ctx ends, send fails or another stream of the host takes over:
// a full frame, then what changes. It returns nil when it was taken over, and conflict at once when another run of the
// agent speaks for the host and lives. address is where the agent is, without its port.
func (l *Link) Stream(ctx context.Context, h id.Host, instance, address string, send func(api.AssignmentFrame) error) error {
	return l.stream(ctx, h, run{instance, address}, idle{}, send)
}

// RelayedStream is Stream to a coordinator that passes it on and fills its silence by itself, with empty frames of the
// same index as the latest of these. So an empty frame is sent only now and then, or when the index matters.
func (l *Link) RelayedStream(ctx context.Context, h id.Host, instance, address string, send func(api.AssignmentFrame) error) error {
	return l.stream(ctx, h, run{instance, address}, idle{relayed: true}, send)
}

func (l *Link) stream(ctx context.Context, h id.Host, who run, silence idle, send func(api.AssignmentFrame) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	hl := l.hostLocked(h)
	if err := l.alone(ctx, h, hl, who.instance); err != nil {
		first, tell := hl.holder, ctx.Err() == nil && hl.copies.add(who, l.opts.Now())
		l.mu.Unlock()
		if tell {
			l.tellOfCopy(ctx, h, first, who)
		}
		return err
	}
	if hl.cancel != nil {
		hl.cancel()
	}
	hl.streams++
	own := hl.streams
	hl.cancel, hl.seen, hl.ended, hl.leaving = cancel, l.opts.Now(), false, false
	hl.holder, hl.opened = who, hl.seen
	hl.words++
	hl.stirLocked()
	l.mu.Unlock()
	l.opts.Logger.Info("agent connected", "host", h, "instance", who.instance, "address", who.address)
	var err error
	defer func() {
		l.mu.Lock()
		if hl.streams == own { // else the agent, of the same run even, has come back before this one ended
			hl.cancel, hl.ended = nil, err == nil
			hl.stirLocked()
		}
		l.mu.Unlock()
		l.opts.Logger.Info("agent disconnected", "host", h, "instance", who.instance)
	}()
	err = l.feed(ctx, h, hl, silence, send)
	return err
}

// idle decides which empty frames of a silent stream are sent.
type idle struct {
	relayed bool
	skipped int    // in succession
	index   uint64 // of the latest frame that was sent
}

// mostSkipped is how many empty frames of a relayed stream are left out in a row. One now and then finds out whether
// the way to the other coordinator is still there, and tells the agent of a newer index.
const mostSkipped = 3

// skips reports whether an empty frame of an index need not be sent. An agent whose gateways have leases may wait for
// nothing but a newer index.
func (i *idle) skips(index uint64, leased bool) bool {
	if !i.relayed || i.skipped == mostSkipped || leased && index != i.index {
		return false
	}
	i.skipped++
	return true
}

// sent notes a frame.
func (i *idle) sent(index uint64) { i.index, i.skipped = index, 0 }

// feed is the loop of a stream.
func (l *Link) feed(ctx context.Context, h id.Host, hl *hostLink, silence idle, send func(api.AssignmentFrame) error) error {
	beat := time.NewTimer(l.untilBeat())
	defer beat.Stop()
	sent, restored, told := uint64(0), l.opts.Store.Restored(), ""
	var known *access
	for full := true; ; {
		ws := state.WatchSet{}
		view := l.opts.Store.View()
		if leased := leasedPools(view, ws); leased != told {
			full, told = true, leased // what is told of every gateway depends on it
		}
		frame := l.frame(view, ws, h, sent, full)
		var wake <-chan struct{}
		frame.Verify, frame.Ask, wake = l.takeQuestions(hl)
		if now := l.currentAccess(); now != known {
			if frame.Gossip = &now.GossipAccess; known == nil || now.ca != known.ca {
				frame.CA = now.ca
			}
			known = now
		}
		if frame.Full || len(frame.Gateways) > 0 || len(frame.Verify) > 0 || frame.Ask || frame.Gossip != nil {
			if err := send(frame); err != nil {
				return err
			}
			silence.sent(frame.Index)
		}
		sent, full = view.Index(), false
		one, other := watched(ws)
		var err error
		for still := true; still && err == nil; {
			still = false
			select {
			case <-ctx.Done():
			case <-one:
			case <-other:
			case <-wake:
			case <-known.changed:
			case <-restored:
				full, restored = true, l.opts.Store.Restored()
			case <-beat.C:
				beat.Reset(l.untilBeat())
				// Nearly always nothing has changed, and what is watched is the same as before.
				if f := l.frame(l.opts.Store.View(), nil, h, sent, false); !f.Full && len(f.Gateways) == 0 {
					if !silence.skips(f.Index, told != "") {
						err = send(f)
						silence.sent(f.Index)
					}
					still, sent = true, f.Index
				}
			}
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// watched gives what a frame was made of: the gateways of a host, and the pools. Both are waited for beside everything
// else, because one more goroutine between a commit and its frame would cost more than the frame.
func watched(ws state.WatchSet) (one, other <-chan struct{}) {
	if len(ws) > 2 {
		panic("cannot wait for a frame's " + strconv.Itoa(len(ws)) + " parts, only for two")
	}
	for c := range ws { // the order does not matter
		one, other = c, one
	}
	return one, other
}

// untilBeat is how long it is to a stream's next empty frame: no longer than the interval.
func (l *Link) untilBeat() time.Duration {
	return api.UntilBeat(l.opts.Now(), l.opts.Heartbeat)
}

// Ahead is an epoch that a host has reported and that is above everything in the state; 0: there was none since the state
// was last restored. Epochs come from the state alone. So it is older than its host, as when the data directory was put
// back as it had been before, or the host says what is not so.
func (l *Link) Ahead(h id.Host) id.Epoch {
	l.mu.Lock()
	defer l.mu.Unlock()
	hl := l.hosts[h]
	if hl == nil || hl.ahead == 0 {
		return 0
	}
	select {
	case <-hl.aheadOf:
		return 0
	default:
		return hl.ahead
	}
}

func (l *Link) currentAccess() *access {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.access
}

// takeQuestions takes what the next frame asks for.
func (l *Link) takeQuestions(hl *hostLink) (verify []api.VerifyRequest, ask bool, wake <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	verify, ask = hl.verify, hl.ask
	hl.verify, hl.ask = nil, false
	return verify, ask, hl.wake
}

// frame is the assignment of a host: all of it, or the gateways whose desired part changed after index
// sent.
func (l *Link) frame(view state.View, ws state.WatchSet, h id.Host, sent uint64, full bool) api.AssignmentFrame {
	if host := view.Host(nil, h); host != nil && host.CreateIndex > sent {
		full = true // deleted and registered again: the agent may have gateways that nobody wants any more
	}
	f := api.AssignmentFrame{Index: view.Index(), Full: full}
	if full {
		f.Domain = l.opts.Domain
	} else {
		changed, known := view.DesiredSince(ws, h, sent)
		if known {
			for _, g := range changed {
				f.Gateways = append(f.Gateways, l.assignment(view, g))
			}
			return f
		}
		f.Full, f.Domain = true, l.opts.Domain // it is too far behind for the changes alone
	}
	for g := range view.GatewaysOfHost(ws, h) {
		f.Gateways = append(f.Gateways, l.assignment(view, g))
	}
	return f
}

func (l *Link) assignment(view state.View, g *state.Gateway) api.GatewayAssignment {
	a := api.GatewayAssignment{
		GatewayID: string(g.ID), Pool: string(g.Pool), Target: g.Desired.Target, Incarnation: g.Desired.Incarnation,
		Release: g.Desired.Release, Limits: api.Limits(g.Desired.Limits), Drain: api.Duration(g.Desired.Drain),
	}
	if p := view.Pool(nil, g.Pool); p != nil && p.Isolation == isolationStop {
		a.Lease = api.Duration(l.opts.Lease)
	}
	if g.Desired.Organization == "" {
		return a
	}
	a.Grant = &api.Grant{
		OrganizationID: string(g.Desired.Organization), AllocationID: string(g.Desired.Allocation), Epoch: uint64(g.Desired.Epoch),
		Hostname: id.Hostname(g.Desired.Organization, l.opts.Domain),
	}
	if o := view.Organization(nil, g.Desired.Organization); o != nil {
		a.Grant.Name, a.Grant.Version = o.Name, o.ModifyIndex
		for _, m := range o.Members {
			a.Grant.Members = append(a.Grant.Members, api.Member{UserID: string(m.User), Username: m.Username, Role: m.Role})
		}
		for _, p := range o.Projects {
			a.Grant.Projects = append(a.Grant.Projects, api.Project{ProjectID: string(p.ID), Name: p.Name})
		}
	}
	return a
}

// isolationStop is the isolation of pools whose organizations a cut-off host must not go on serving.
const isolationStop = "stop"

// leasedPools names the pools whose gateways are told a lease.
func leasedPools(view state.View, ws state.WatchSet) string {
	var names []string
	for p := range view.Pools(ws) {
		if p.Isolation == isolationStop {
			names = append(names, string(p.Name))
		}
	}
	return strings.Join(names, " ")
}

// Verify asks the host's agent to verify a served organization again and returns its answer: nil, or a
// fault (verify_failed from the agent, host_lost when it does not answer before ctx ends).
func (l *Link) Verify(ctx context.Context, h id.Host, req api.VerifyRequest) error {
	answer := make(chan api.Step, 1)
	l.mu.Lock()
	hl := l.hostLocked(h)
	hl.answers[req.Nonce] = answer
	hl.verify = append(hl.verify, req)
	close(hl.wake)
	hl.wake = make(chan struct{})
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(hl.answers, req.Nonce)
		l.mu.Unlock()
	}()
	select {
	case step := <-answer:
		if step.State != api.StepDone {
			return fault.New(fault.VerifyFailed, "host %s cannot verify organization %s: %s", h, req.OrganizationID, step.Error)
		}
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.HostLost, ctx.Err(), "the agent of host %s did not answer", h)
	}
}

// Contact is what this coordinator has of a host's agent over its own connection.
type Contact struct {
	Heard time.Time // anything from the agent; zero: never
	Asked time.Time // the latest question; zero: never
	// Answered is when the latest of the questions that were answered was sent; zero: none was.
	Answered time.Time
	Open     bool // its stream is open as far as this end knows
	// Ended: the other end closed the stream. The machine and what it serves may well live on.
	Ended bool
	// Farewell: the agent's last word was that its machine is being switched off.
	Farewell bool
	// Gossip is what the agent says of its own place in the gossip; zero: nothing yet.
	Gossip api.HostGossip
}

// Contact tells when a host's agent was last heard of.
func (l *Link) Contact(h id.Host) Contact {
	l.mu.Lock()
	defer l.mu.Unlock()
	hl := l.hosts[h]
	if hl == nil {
		return Contact{}
	}
	return Contact{
		Heard: hl.seen, Asked: hl.asked, Answered: hl.answer, Open: hl.cancel != nil, Ended: hl.ended,
		Farewell: hl.leaving, Gossip: hl.gossip,
	}
}

// Ask sends a question down a host's stream, to which any agent that lives answers at once.
func (l *Link) Ask(h id.Host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.askLocked(l.hostLocked(h))
}

func (l *Link) askLocked(hl *hostLink) {
	hl.ask, hl.asked = true, l.opts.Now()
	close(hl.wake)
	hl.wake = make(chan struct{})
}

// heard notes what needs no log: that the agent lives, its nginx, and answers to verify requests. taken is to be called
// when the observation has been taken in.
func (r *Receiver) heard(ctx context.Context, h id.Host, obs api.Observation) (taken func(), err error) {
	l := r.link
	l.mu.Lock()
	defer l.mu.Unlock()
	hl := l.hostLocked(h)
	if err := l.alone(ctx, h, hl, obs.Instance); err != nil {
		return nil, err
	}
	taken = l.takesLocked(hl, obs.Instance)
	hl.seen, hl.answer, hl.leaving = l.opts.Now(), hl.asked, obs.Leaving
	if obs.Host != nil {
		hl.nginx, hl.gossip = told(*obs.Host)
	}
	for _, s := range obs.Steps {
		if answer, ok := hl.answers[s.Nonce]; ok && s.Nonce != "" {
			select {
			case answer <- s.Step:
			default: // a second answer to the same request
			}
		}
	}
	return taken, nil
}

// told is what of a host's report is kept beside the log, and shown as long as the host is connected.
func told(r api.HostReport) (api.NginxStatus, api.HostGossip) {
	n, g := r.Nginx, r.Gossip
	n.LastError, n.Quarantined = text(n.LastError), slices.Clone(n.Quarantined)
	for i := range n.Quarantined {
		q := &n.Quarantined[i]
		q.Part, q.Message = text(q.Part), text(q.Message)
	}
	g.Address, g.Run, g.Problem = text(g.Address), text(g.Run), text(g.Problem)
	return n, g
}
