package usertoken

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/config"
)

// source is where an issuer's keys come from.
type source interface {
	// keys are those that count now. It does not wait.
	keys() []key
	// miss says that a token named a key that is not there: it may be a new one. It does not wait.
	miss()
	// problem tells what is wrong, or "".
	problem() string
	// run keeps the keys up to date until ctx is done.
	run(ctx context.Context)
}

// local are keys from a file.
type local struct {
	conf  Issuer
	log   hclog.Logger
	set   atomic.Pointer[[]key]
	wrong atomic.Pointer[string]
}

func newLocal(conf Issuer, log hclog.Logger) *local { return &local{conf: conf, log: log} }

func (l *local) keys() []key {
	if set := l.set.Load(); set != nil {
		return *set
	}
	return nil
}

func (l *local) miss() {} // the file is watched

func (l *local) problem() string {
	if p := l.wrong.Load(); p != nil {
		return *p
	}
	return ""
}

// load reads the file. When it cannot be used, the keys of before stay.
func (l *local) load() error {
	keys, err := readKeys(l.conf)
	if err != nil {
		text := fmt.Sprintf("%s cannot be used, so the keys from before its change count: %v", l.conf.JWKSFile, err)
		l.wrong.Store(&text)
		return err
	}
	l.set.Store(&keys)
	l.wrong.Store(nil)
	return nil
}

// readKeys reads a key file of bounded size.
func readKeys(conf Issuer) ([]key, error) {
	f, err := os.Open(conf.JWKSFile)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxSet+1))
	if err != nil {
		return nil, err
	}
	return parseKeys(data, conf.Algorithms)
}

func (l *local) run(ctx context.Context) {
	changed := func() {
		if err := l.load(); err != nil {
			l.log.Error("cannot use the changed keys: those of before stay", "file", l.conf.JWKSFile, "error", err)
			return
		}
		l.log.Info("changed keys loaded", "file", l.conf.JWKSFile, "keys", len(l.keys()))
	}
	watcher, err := config.NewWatcher(l.conf.JWKSFile, l.log)
	if err != nil {
		l.log.Error("changes of the keys wait for a restart", "error", err)
		<-ctx.Done()
		return
	}
	if err := l.load(); err != nil { // what changed between New and the beginning of the watch
		l.log.Error("cannot use the changed keys: those of before stay", "file", l.conf.JWKSFile, "error", err)
	}
	watcher.Run(ctx, changed)
}

// Times of the questions to a URL.
const (
	fetchTime  = 10 * time.Second // for all of one answer
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
	missGap    = 30 * time.Second // between questions that tokens with unknown keys cause
)

// remote are keys from a URL.
type remote struct {
	conf   Issuer
	log    hclog.Logger
	client *http.Client
	set    atomic.Pointer[fetched]
	wrong  atomic.Pointer[string]
	missed chan struct{}
}

// fetched is a key set and when it came. The time is of the clock that is never set.
type fetched struct {
	keys []key
	at   time.Time
}

func newRemote(conf Issuer, transport http.RoundTripper, log hclog.Logger) *remote {
	if transport == nil {
		transport = &http.Transport{DisableKeepAlives: true, TLSHandshakeTimeout: fetchTime, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true}
	}
	return &remote{
		conf: conf, log: log, missed: make(chan struct{}, 1),
		client: &http.Client{
			Transport: transport,
			// The address that the operator wrote down is the one that is believed.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// keys gives those of the newest good answer, unless it is too old: an issuer that withdraws a key must be
// heard in the end, whoever is between.
func (r *remote) keys() []key {
	if set := r.set.Load(); set != nil && time.Since(set.at) < r.conf.MaxStale {
		return set.keys
	}
	return nil
}

func (r *remote) miss() {
	select {
	case r.missed <- struct{}{}:
	default: // one is as good as many
	}
}

func (r *remote) problem() string {
	wrong := r.wrong.Load()
	switch {
	case wrong == nil:
		return ""
	case r.keys() == nil:
		return "there are no keys, so its users are refused: " + *wrong
	}
	return "the keys from before count: " + *wrong
}

// run asks at once and then again and again: at the usual pace after a good answer, soon and then ever less
// often after a bad one, though no less often than after a good one, and out of turn when a token named an unknown key.
func (r *remote) run(ctx context.Context) {
	failures := 0
	for {
		asked := time.Now()
		err := r.fetch(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := r.conf.Refresh
		if err != nil {
			text := err.Error()
			if r.wrong.Swap(&text) == nil {
				r.log.Warn("cannot get the keys of an issuer: those of before stay, and it is tried again", "url", r.conf.JWKSURL, "error", err)
			}
			wait = min(backOff(failures), r.conf.Refresh)
			failures++
		} else {
			failures = 0
			if r.wrong.Swap(nil) != nil {
				r.log.Info("the issuer's keys are there again", "url", r.conf.JWKSURL)
			}
		}
		if !r.pause(ctx, asked, wait-time.Duration(rand.Int64N(int64(wait)/10))) { // not all coordinators at the same moment
			return
		}
	}
}

// pause waits for the next turn. A miss may bring it forward, though not to less than missGap after the question before:
// anybody can make up the name of a key. After a bad answer, too: then it is a user who is kept out until the next one.
func (r *remote) pause(ctx context.Context, asked time.Time, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-r.missed: // one that the answer, which came after it, has settled
	default:
	}
	for heed := missGap < wait; ; {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-r.missed:
			if heed {
				timer.Reset(max(missGap-time.Since(asked), 0))
				heed = false
			}
		}
	}
}

// backOff is the wait after so many failures before this one.
func backOff(failures int) time.Duration {
	return min(firstRetry<<min(failures, 20), lastRetry)
}

// fetch asks once.
func (r *remote) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.conf.JWKSURL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", r.conf.JWKSURL, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxSet+1))
	if err != nil {
		return errors.Join(errors.New("the answer broke off"), err)
	}
	keys, err := parseKeys(data, r.conf.Algorithms)
	if err != nil {
		return err
	}
	r.set.Store(&fetched{keys: keys, at: time.Now()})
	return nil
}
