// Package syncer carries the assignment in and observations out. It dials the coordinators, holds one
// stream open and sends one report at a time; it decides nothing about gateways.
//
// What is to be sent is merged while a report is under way: of each gateway the latest report alone
// counts, steps and events are kept until a coordinator has acknowledged them. So a slow or absent
// coordinator costs bounded memory, and nothing that it must know is lost.
package syncer

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Source is asked for the whole state when a full observation is due.
type Source interface {
	// Reports is the latest report of every gateway that exists on the host.
	Reports() []api.GatewayReport
	// Host is the latest report of the host.
	Host() api.HostReport
}

// Follower takes frames in the order in which they came. An error ends the stream; the next coordinator
// is asked.
type Follower interface {
	Apply(f api.AssignmentFrame) error
}

// Leases are counted from what this package sends. Moments are of one clock, which only Leases knows.
type Leases interface {
	// Shortest is the shortest lease that anything on the host depends on; zero: nothing does.
	Shortest() time.Duration
	// Now is the moment of a word that is about to be sent.
	Now() time.Duration
	// Renewed notes that a leader has acknowledged the word of a moment, at an index of its state.
	Renewed(sent time.Duration, index uint64)
}

// Options of a syncer. All but Leaving and Timing must be set.
type Options struct {
	Logger       hclog.Logger
	Host         id.Host
	Coordinators []string // host:port or URLs, tried in turn
	Client       *http.Client
	Queue        *Queue // what is to be sent; the same that the engine observes into
	Source       Source
	Follower     Follower
	Leases       Leases
	// Leaving is asked when Run ends: whether the machine is being switched off, which a coordinator is then told. nil:
	// it never is.
	Leaving func() bool
	Timing  Timing
}

// Timing are the delays. The zero value of a field is its default.
type Timing struct {
	Silence    time.Duration // of the stream, after which the next coordinator is asked; default 3s
	FullEvery  time.Duration // between full observations; default api.FullObservations
	Timeout    time.Duration // of one report; default 10s
	BackOff    time.Duration // after the first failure; doubles; default 50ms
	MaxBackOff time.Duration // default 5s
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Silence, 3*time.Second)
	set(&t.FullEvery, api.FullObservations)
	set(&t.Timeout, 10*time.Second)
	set(&t.BackOff, 50*time.Millisecond)
	set(&t.MaxBackOff, 5*time.Second)
	return t
}

// Syncer is the agent's side of the protocol of shared/api/agent.go.
type Syncer struct {
	o         Options
	logger    hclog.Logger
	instance  string
	bases     []*url.URL
	current   atomic.Int64 // of bases: the one that answered last
	connected atomic.Bool  // a stream is open and not silent
}

// New checks the options.
func New(o Options) (*Syncer, error) {
	o.Timing = o.Timing.withDefaults()
	s := &Syncer{o: o, logger: o.Logger.Named("syncer"), instance: instance()}
	if len(o.Coordinators) == 0 {
		return nil, errors.New("cannot follow a coordinator: none is configured")
	}
	for _, c := range o.Coordinators {
		u, err := ParseBase(c)
		if err != nil {
			return nil, err
		}
		s.bases = append(s.bases, u)
	}
	return s, nil
}

// ParseBase checks a coordinator's address: host and port, or an https URL, and nothing behind them.
func ParseBase(s string) (*url.URL, error) {
	full := s
	if !strings.Contains(s, "://") {
		full = "https://" + s
	}
	u, err := url.Parse(full)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return nil, fmt.Errorf("cannot use %q as a coordinator: want host:port, such as coordinator-1:7400; agents speak TLS only", s)
	}
	u.Path = ""
	return u, nil
}

// RenewCertificate asks the coordinators in turn for the next certificate of this host.
func (s *Syncer) RenewCertificate(ctx context.Context, in api.JoinRequest) (api.JoinAnswer, error) {
	var answer api.JoinAnswer
	body, err := json.Marshal(in)
	if err != nil {
		return answer, fmt.Errorf("cannot encode the request for a certificate: %w", err)
	}
	var failed []error
	for range s.bases {
		base, n := s.base()
		if err = s.renewAt(ctx, base, body, &answer); err == nil {
			return answer, nil
		}
		failed = append(failed, fmt.Errorf("cannot renew at %s: %w", base.Host, err))
		s.next(n)
	}
	return answer, errors.Join(failed...)
}

func (s *Syncer) renewAt(ctx context.Context, base *url.URL, body []byte, into *api.JoinAnswer) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timing.Timeout)
	defer cancel()
	u := *base
	u.Path = "/v1/agent/certificate"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.o.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return problem(resp)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(into)
}

// Instance is the random name of this run of the agent.
func (s *Syncer) Instance() string { return s.instance }

// Connected reports whether a coordinator's stream is open.
func (s *Syncer) Connected() bool { return s.connected.Load() }

// Run follows and reports until ctx ends.
func (s *Syncer) Run(ctx context.Context) {
	s.o.Queue.wantFull()
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		s.send(ctx)
	}()
	s.follow(ctx)
	<-done
}

// base is the coordinator to ask now.
func (s *Syncer) base() (*url.URL, int64) {
	n := s.current.Load()
	return s.bases[int(n)%len(s.bases)], n
}

// next makes the coordinator behind n the current one, unless somebody else has done so.
func (s *Syncer) next(n int64) { s.current.CompareAndSwap(n, n+1) }

// backOff is the wait after n failures in a row, with jitter so that a cluster's agents do not return in
// step.
func (s *Syncer) backOff(n int) time.Duration {
	d := s.o.Timing.BackOff
	for ; n > 1 && d < s.o.Timing.MaxBackOff; n-- {
		d *= 2
	}
	d = min(d, s.o.Timing.MaxBackOff)
	jitter, _ := rand.Int(rand.Reader, big.NewInt(int64(d)/2+1))
	return d/2 + time.Duration(jitter.Int64())
}

func instance() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
	return hex.EncodeToString(b[:])
}
