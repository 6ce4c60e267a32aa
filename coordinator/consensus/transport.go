package consensus

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	rpcTimeout = 5 * time.Second // longer than a follower's stalled write takes to fence it
	poolSize   = 3               // idle connections kept per peer

	snapshotAlarm  = 3 // snapshots sent to one peer within snapshotWindow that are still normal
	snapshotWindow = time.Minute

	// turnTime is how long a snapshot waits for the one before it. A peer that hangs while it takes one must not
	// keep another from ever getting its own.
	turnTime = time.Minute
)

// ordered hands every message, heartbeats too, to the library's main loop in the order of arrival.
//
// The library offers the transport a handler that answers heartbeats on another goroutine. It acts on the
// node's state out of order and can make committed data diverge (hashicorp/raft #695), so it is not passed
// on: the Transport interface allows that. Fail-over is as fast without it.
type ordered struct {
	raft.Transport
	preVote raft.WithPreVote
	log     hclog.Logger
	closed  atomic.Bool   // nothing is sent any more
	end     chan struct{} // closed with closed
	once    sync.Once
	turn    chan struct{} // has a value while a snapshot is sent to a peer

	mu    sync.Mutex
	sent  map[raft.ServerID][]time.Time // when snapshots went to a peer, the last snapshotAlarm+1
	count map[string]uint64             // snapshots that went to a peer since the start

	reach unreached
}

// unreached keeps which members do not take the log from this node: a leader sends to each of them many times a second.
type unreached struct {
	mu  sync.Mutex
	all map[raft.ServerID]unreachedMember // guarded by mu
}

type unreachedMember struct {
	since time.Time // of the first message that failed after one that did not
	err   error     // of the latest
}

// note keeps how sending to a member went.
func (u *unreached) note(id raft.ServerID, err error, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	had, failed := u.all[id]
	switch {
	case err == nil:
		delete(u.all, id)
	case failed:
		u.all[id] = unreachedMember{since: had.since, err: err}
	default:
		if u.all == nil {
			u.all = map[raft.ServerID]unreachedMember{}
		}
		u.all[id] = unreachedMember{since: now, err: err}
	}
}

// longer are those that take nothing for longer than a time, with the latest cause.
func (u *unreached) longer(than time.Duration, now time.Time) map[string]error {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := map[string]error{}
	for id, m := range u.all {
		if now.Sub(m.since) > than {
			out[string(id)] = m.err
		}
	}
	return out
}

func newOrdered(t raft.Transport, log hclog.Logger) (*ordered, error) {
	pre, ok := t.(raft.WithPreVote)
	if !ok {
		return nil, fmt.Errorf("cannot use a Raft transport of type %T: it does not support pre-vote", t)
	}
	return &ordered{
		Transport: t, preVote: pre, log: log, sent: map[raft.ServerID][]time.Time{}, count: map[string]uint64{},
		end: make(chan struct{}), turn: make(chan struct{}, 1),
	}, nil
}

// SetHeartbeatHandler implements raft.Transport by ignoring the handler.
func (*ordered) SetHeartbeatHandler(func(raft.RPC)) {}

// gate refuses to send once the transport is closed. The library's own Close does not: a leader whose main
// loop hangs in a write would go on sending heartbeats over new connections, and nobody would replace it.
func (o *ordered) gate() error {
	if o.closed.Load() {
		return raft.ErrTransportShutdown
	}
	return nil
}

// AppendEntries implements raft.Transport.
func (o *ordered) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := o.gate(); err != nil {
		return err
	}
	err := o.Transport.AppendEntries(id, target, req, resp)
	o.reach.note(id, err, time.Now())
	return err
}

// RequestVote implements raft.Transport.
func (o *ordered) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := o.gate(); err != nil {
		return err
	}
	return o.Transport.RequestVote(id, target, req, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (o *ordered) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := o.gate(); err != nil {
		return err
	}
	return o.preVote.RequestPreVote(id, target, req, resp)
}

// TimeoutNow implements raft.Transport.
func (o *ordered) TimeoutNow(id raft.ServerID, target raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	if err := o.gate(); err != nil {
		return err
	}
	return o.Transport.TimeoutNow(id, target, req, resp)
}

// AppendEntriesPipeline implements raft.Transport.
func (o *ordered) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := o.gate(); err != nil {
		return nil, err
	}
	p, err := o.Transport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return gatedPipeline{p, o}, nil
}

// gatedPipeline stops sending when its transport is closed.
type gatedPipeline struct {
	raft.AppendPipeline
	transport *ordered
}

// AppendEntries implements raft.AppendPipeline.
func (p gatedPipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.transport.closed.Load() {
		return nil, raft.ErrPipelineShutdown
	}
	return p.AppendPipeline.AppendEntries(req, resp)
}

// InstallSnapshot implements raft.Transport. A peer that gets one snapshot after the other is caught in a
// known loop of the library (#697) that only an operator can end.
//
// One peer after the other gets its snapshot. A peer answers nothing else until it has taken the whole state over, so
// if all of them got one at the same time, as after a restore, the leader would hear nobody and step down.
func (o *ordered) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := o.gate(); err != nil {
		return err
	}
	if o.tooMany(id, time.Now()) {
		o.log.Error("a member keeps needing snapshots; empty its data directory and let it join again", "member", string(id), "per_minute", snapshotAlarm+1)
	}
	patience := time.NewTimer(turnTime)
	defer patience.Stop()
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-patience.C:
		o.log.Warn("sending a snapshot beside another one that takes very long", "member", string(id))
	case <-o.end:
		return raft.ErrTransportShutdown
	}
	return o.Transport.InstallSnapshot(id, target, req, resp, data)
}

// tooMany counts a snapshot to a peer, and reports whether it is one of too many.
func (o *ordered) tooMany(id raft.ServerID, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	times := append(o.sent[id], now)
	if len(times) > snapshotAlarm+1 {
		times = times[1:]
	}
	o.sent[id] = times
	o.count[string(id)]++
	return len(times) == snapshotAlarm+1 && now.Sub(times[0]) < snapshotWindow
}

// snapshots is how many snapshots went to each peer since the start.
func (o *ordered) snapshots() map[string]uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.count)
}

// Close implements raft.WithClose: no message comes in or goes out afterwards.
func (o *ordered) Close() error {
	o.closed.Store(true)
	o.once.Do(func() { close(o.end) })
	var errs []error
	if c, ok := o.Transport.(raft.WithClose); ok {
		errs = append(errs, c.Close())
	}
	// After the listener, so that no connection opens behind it.
	if c, ok := o.Transport.(interface{ CloseStreams() }); ok {
		c.CloseStreams()
	}
	return errors.Join(errs...)
}

// newTransport makes the transport that the options ask for.
func newTransport(o *Options) (raft.Transport, error) {
	if o.Transport != nil {
		return o.Transport, nil
	}
	stream := o.Stream
	if stream == nil {
		var err error
		if stream, err = newTCP(o); err != nil {
			return nil, err
		}
	}
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger: o.Logger.Named("transport"), Stream: streamLayer{stream}, MaxPool: poolSize, Timeout: rpcTimeout,
	}), nil
}

// tcp is a plain TCP stream layer that can advertise a host name, which is resolved at every dial.
type tcp struct {
	net.Listener
	advertise string
}

type textAddr string

func (textAddr) Network() string  { return "tcp" }
func (a textAddr) String() string { return string(a) }

func newTCP(o *Options) (*tcp, error) {
	l := o.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", o.Listen); err != nil {
			return nil, fmt.Errorf("cannot listen on %s for the other coordinators: %w; set raft.listen to a free address, or end the program that has it", o.Listen, err)
		}
	}
	t := &tcp{Listener: l, advertise: o.Advertise}
	if t.advertise != "" {
		if _, _, err := net.SplitHostPort(t.advertise); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot advertise %q: %w; give host:port", t.advertise, err), l.Close())
		}
		return t, nil
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		return nil, errors.Join(fmt.Errorf("cannot advertise %s to the other coordinators: it names no host; set the advertised address", a), l.Close())
	}
	t.advertise = l.Addr().String()
	return t, nil
}

// Addr implements net.Listener with the advertised address.
func (t *tcp) Addr() net.Addr { return textAddr(t.advertise) }

// Dial implements Streams.
func (t *tcp) Dial(address string, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", address, timeout)
}

// streamLayer is Streams as the library wants it.
type streamLayer struct{ Streams }

// Dial implements raft.StreamLayer.
func (s streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.Streams.Dial(string(address), timeout)
}
