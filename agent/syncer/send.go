package syncer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

const (
	// renewEvery is how often something is said, if the host depends on a lease.
	renewEvery = time.Second
	// farewellTime is how long the end of the machine may be held up for telling a coordinator.
	farewellTime = 3 * time.Second
	// maxLeasePause is how long a failure is waited after then: a new leader has to be found in time.
	maxLeasePause = 500 * time.Millisecond
)

// send reports what waits, one report at a time, until ctx ends. What waits then is sent once more, so
// that a stop in order loses nothing.
func (s *Syncer) send(ctx context.Context) {
	full := time.NewTicker(s.o.Timing.FullEvery)
	defer full.Stop()
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			s.last()
			return
		case <-full.C:
			s.o.Queue.wantFull()
			continue
		case <-renew.C:
			if s.o.Leases.Shortest() > 0 {
				s.o.Queue.answer() // any word will do
			}
			continue
		case <-s.o.Queue.wake:
		}
		o, more := s.o.Queue.take(s.o.Source)
		if !more {
			continue
		}
		base, n := s.base()
		err := s.post(ctx, base.JoinPath("/v1/agent/observations").String(), o.body(s.o.Queue.now()))
		if err == nil {
			s.o.Queue.acknowledged(o)
			failures = 0
			continue
		}
		s.o.Queue.giveBack(o)
		if ctx.Err() != nil {
			continue
		}
		failures++
		if failures == 1 || failures%20 == 0 {
			s.logger.Warn("the observation was not taken", "coordinator", base.String(), "error", err, "failures", failures)
		}
		if !s.Connected() {
			s.next(n)
		}
		wait := s.backOff(failures)
		if s.o.Leases.Shortest() > 0 {
			wait = min(wait, maxLeasePause)
		}
		sleep.For(ctx, wait)
	}
}

// last tries once, shortly, to send what waits.
func (s *Syncer) last() {
	if s.o.Leaving != nil && s.o.Leaving() {
		s.farewell()
		return
	}
	if !s.Connected() && s.o.Queue.empty() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if o, more := s.o.Queue.take(s.o.Source); more {
		base, _ := s.base()
		if err := s.post(ctx, base.JoinPath("/v1/agent/observations").String(), o.body(s.o.Queue.now())); err != nil {
			s.logger.Debug("the last observation was not taken", "error", err)
		}
	}
}

// farewell tells a coordinator, with all that waits, that the machine is being switched off: then what it serves moves at
// once. Nobody is told when this takes too long, and the host is missed later.
func (s *Syncer) farewell() {
	ctx, cancel := context.WithTimeout(context.Background(), farewellTime)
	defer cancel()
	o, _ := s.o.Queue.take(s.o.Source)
	word := o.body(s.o.Queue.now())
	word.Leaving = true
	var err error
	for range 2 * len(s.bases) {
		base, n := s.base()
		try, end := context.WithTimeout(ctx, farewellTime/3)
		err = s.post(try, base.JoinPath("/v1/agent/observations").String(), word)
		end()
		if err == nil {
			s.logger.Info("the coordinators know that this machine is being switched off")
			return
		}
		s.next(n)
		if !sleep.For(ctx, s.o.Timing.BackOff) {
			break
		}
	}
	s.logger.Warn("no coordinator could be told that this machine is being switched off; they will miss it", "error", err)
}

func (s *Syncer) post(ctx context.Context, url string, o api.Observation) error {
	o.HostID, o.Instance, o.Renew = string(s.o.Host), s.instance, s.o.Leases.Shortest() > 0
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	timeout, lease := s.o.Timing.Timeout, s.o.Leases.Shortest()
	if lease > 0 {
		timeout = min(timeout, lease/3) // a coordinator that hangs must not use the lease up
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	sent := s.o.Leases.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.o.Client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return problem(resp)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || !o.Renew {
		return err
	}
	var answer api.Observed
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("cannot read the coordinator's answer: %w", err)
	}
	if answer.Index == 0 { // a lapsed lease would count again without an assignment of after the lapse
		return errors.New("cannot renew the lease: the coordinator's answer names no index")
	}
	s.o.Leases.Renewed(sent, answer.Index)
	return nil
}
