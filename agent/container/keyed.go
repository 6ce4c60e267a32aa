package container

import (
	"context"
	"crypto/hmac"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// A call with an Idempotency-Key stands in the record of the container that it makes, so both are kept at once.
// The secrets are made of the key and of the registry's master key: a repeat makes them again, and gives them if
// their digests are those that are kept. When the container goes, the mark stays for the rest of the day.

// requestMark is what is kept of an Idempotency-Key.
type requestMark struct {
	Key    string       `json:"key"`  // digest, hexadecimal
	Body   string       `json:"body"` // digest, hexadecimal
	At     time.Time    `json:"at"`
	First  *hostingMark `json:"first,omitempty"` // hosting token; nil: nobody was answered yet
	Issued time.Time    `json:"issued,omitzero"` // when that was
	Made   ID           `json:"made,omitempty"`  // the container, once it has gone
}

// maxGone bounds what is kept of keys whose containers have gone.
const maxGone = 1000

// errTaken says that somebody else was faster with the same key.
var errTaken = errors.New("the key is taken")

func hexOf(d keyed.Digest) string { return hex.EncodeToString(d[:]) }

func (m *requestMark) over(now time.Time) bool { return m == nil || keyed.Over(m.At, now) }

// is reports whether a mark is of a call's key and binds it still.
func (m *requestMark) is(q keyed.Request, now time.Time) bool {
	return !m.over(now) && m.Key == hexOf(q.Key())
}

// wellFormed reports whether a mark that was read can be one.
func (m *requestMark) wellFormed() bool {
	digest := func(s string) bool {
		raw, err := hex.DecodeString(s)
		return err == nil && len(raw) == len(keyed.Digest{})
	}
	return digest(m.Key) && digest(m.Body) && (m.First == nil || digest(m.First.Digest))
}

func markOf(q keyed.Request, now time.Time) *requestMark {
	if !q.Given() {
		return nil
	}
	return &requestMark{Key: hexOf(q.Key()), Body: hexOf(q.Body()), At: now.UTC()}
}

// answered is the mark of a call whose first hosting token is given out.
func (m *requestMark) answered(token hostingMark, issued time.Time) *requestMark {
	if m == nil {
		return nil
	}
	next := *m
	next.First, next.Issued = &token, issued.Truncate(time.Second).UTC()
	return &next
}

// known finds what a call's key has made: a container, or the mark of one that has gone. mu is held.
func (r *Registry) known(q keyed.Request, now time.Time) (e *entry, gone *requestMark) {
	if !q.Given() || r.closed {
		return nil, nil
	}
	for _, e := range r.containers {
		if e.Request.is(q, now) {
			return e, nil
		}
	}
	if m := r.gone[hexOf(q.Key())]; m.is(q, now) {
		return nil, m
	}
	return nil, nil
}

// repeat answers a call whose key is known. done is false when the call is a new one after all: nothing is left of
// what was begun for the first.
func (r *Registry) repeat(ctx context.Context, q keyed.Request) (made Made, done bool, err error) {
	now := r.opts.Now()
	r.mu.RLock()
	e, mark := r.known(q, now)
	if e != nil {
		mark = e.Request
	}
	r.mu.RUnlock()
	switch {
	case mark == nil:
		return Made{}, false, nil
	case mark.Body != hexOf(q.Body()):
		return Made{}, true, keyed.Reused()
	case e == nil:
		return Made{}, true, keyed.Gone("container " + string(mark.Made))
	}
	select {
	case e.turn <- struct{}{}: // whoever makes it has ended
		defer r.release(e)
	case <-ctx.Done():
		return Made{}, true, ctx.Err()
	}
	rec, err := r.current(e.ID)
	switch {
	case err != nil || rec.Request.over(now):
		return Made{}, false, nil
	case rec.good() && rec.Request.First == nil: // the agent ended before it could answer
		secrets, err := r.secrets(rec, q)
		if err == nil {
			made, err = r.made(rec.ID, secrets, q)
		}
		if err != nil {
			r.giveUp(ctx, rec.ID)
		}
		return made, true, err
	case rec.good():
		made, err = r.again(rec, q)
		return made, true, err
	case rec.Request.First != nil:
		return Made{}, true, keyed.Gone("container " + string(rec.ID))
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.StepTimeout)
	defer cancel()
	if err := r.takeBack(work, rec.ID); err != nil && !fault.Is(err, fault.NotFound) {
		return Made{}, true, fmt.Errorf("cannot end what was begun of container %s: %w", rec.ID, err)
	}
	return Made{}, false, nil
}

// again is a container as its maker was told of it the first time.
func (r *Registry) again(rec *record, q keyed.Request) (Made, error) {
	tokenID := r.tokenID(rec.ID, q)
	if !hmac.Equal([]byte(digestOf(tokenID)), []byte(rec.Request.First.Digest)) {
		return Made{}, keyed.Lost("container " + string(rec.ID))
	}
	secrets, err := r.secrets(rec, q)
	if err != nil {
		return Made{}, err
	}
	first := *rec
	first.Place = nil // it had not said where it is
	hosting := r.hosting(rec, tokenID, rec.Request.Issued, rec.Request.First.Expires)
	return Made{Container: newEntry(&first).view(rec.Request.Issued), Hosting: hosting, Secrets: secrets}, nil
}

// secrets are those of a container's confidential clients, made again.
func (r *Registry) secrets(rec *record, q keyed.Request) (map[string]logging.Secret, error) {
	out := map[string]logging.Secret{}
	for _, service := range rec.Services {
		if service.Public {
			continue
		}
		secret, ok := r.clients.Secret(service.Client, r.seed(rec.ID, service.Name, q))
		if !ok {
			return nil, keyed.Gone(fmt.Sprintf("client %s of container %s", service.Client, rec.ID))
		}
		out[service.Client] = secret
	}
	return out, nil
}

// seed is what the secret of a service's client is made of; nothing without a key. The id of the container is in
// it: a key that is used anew makes others.
func (r *Registry) seed(c ID, s ServiceName, q keyed.Request) logging.Secret {
	if !q.Given() {
		return logging.Secret{}
	}
	seed := q.Secret(r.masterKey(), "container client "+string(c)+" "+string(s))
	return logging.NewSecret(hex.EncodeToString(seed[:]))
}

// tokenID is the id of the first hosting token.
func (r *Registry) tokenID(c ID, q keyed.Request) string {
	if !q.Given() {
		return newTokenID()
	}
	made := q.Secret(r.masterKey(), "container token "+string(c))
	return coding.EncodeToString(made[:])
}

func (r *Registry) masterKey() []byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.master
}

// ensureMaster makes the key that secrets are made with, before the first is. Registries without such calls have none,
// so that older agents read their journals. writing is held.
func (r *Registry) ensureMaster() error {
	if len(r.masterKey()) == keyed.MasterSize {
		return nil
	}
	key := newKey()
	if err := r.journal.put(masterKey, key, false); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.master = key
	return nil
}

// bury keeps the mark of a container that goes, if its maker was answered. writing is held.
func (r *Registry) bury(rec *record) error {
	now := r.opts.Now()
	if rec.Request.over(now) || rec.Request.First == nil {
		return nil
	}
	mark := *rec.Request
	mark.Made = rec.ID
	if err := r.journal.put(goneKey+mark.Key, mark, false); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone[mark.Key] = &mark
	r.tidy(now)
	return nil
}

// tidy forgets the marks that bind nobody any more and, beyond the most, the oldest. The file loses them when it is
// written anew; who reads it before that tidies likewise. writing and mu are held, or nobody else has the registry yet.
func (r *Registry) tidy(now time.Time) {
	byAge := slices.SortedFunc(maps.Values(r.gone), func(a, b *requestMark) int {
		if c := b.At.Compare(a.At); c != 0 {
			return c
		}
		return strings.Compare(a.Key, b.Key)
	})
	for i, m := range byAge {
		if i >= maxGone || m.over(now) {
			delete(r.gone, m.Key)
			r.journal.set(line{Key: goneKey + m.Key})
		}
	}
}
