package oauth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// request is what is kept of an Idempotency-Key that has made a client, also of one that is gone.
type request struct {
	body   digest
	client ClientID
	at     int64
}

func (q request) over(now int64) bool { return keyed.Over(moment(q.at), moment(now)) }

// AddClientFor is AddClient for a call with an Idempotency-Key: a repeat is given the client of the first call
// with its secret, which is made of the key.
func (s *Store) AddClientFor(ctx context.Context, c Client, q keyed.Request) (Client, logging.Secret, error) {
	if !q.Given() {
		secret, err := s.AddClient(ctx, c)
		return c, secret, err
	}
	made := c
	var secret logging.Secret
	err := s.change(ctx, false, func(x *tx) error {
		if known, ok := x.requests[digest(q.Key())]; ok && !known.over(x.at) {
			var err error
			made, secret, err = x.again(known, q)
			return err
		}
		master, fresh := x.master, x.master == digest{}
		if fresh {
			_, _ = rand.Read(master[:]) // crypto/rand never fails since Go 1.24
		}
		var err error
		if secret, err = x.addClient(c, seedOf(master, c.ID, q)); err != nil {
			return err
		}
		if fresh {
			x.do(record{op: putMaster, digest: master})
		}
		x.dropRequests(2*x.opts.limits.Clients - 1)
		x.do(record{op: putRequest, digest: digest(q.Key()), secret: digest(q.Body()), client: Client{ID: c.ID}, expires: x.at})
		return nil
	})
	if err != nil {
		return Client{}, logging.Secret{}, err
	}
	return made, secret, nil
}

// again is the answer to a key that has made a client. mu is held.
func (s *Store) again(known request, q keyed.Request) (Client, logging.Secret, error) {
	c := s.clients[known.client]
	switch {
	case known.body != digest(q.Body()):
		return Client{}, logging.Secret{}, keyed.Reused()
	case c == nil:
		return Client{}, logging.Secret{}, keyed.Gone("client " + string(known.client))
	case c.Public:
		return c.clone(), logging.Secret{}, nil
	}
	secret := secretOf(seedOf(s.master, c.ID, q))
	if !isSecret(c.secret, secret) {
		return Client{}, logging.Secret{}, keyed.Lost("client " + string(c.ID))
	}
	return c.clone(), logging.NewSecret(secret), nil
}

// seedOf is what the secret of a client is made of. The client's id is in it: a key that is used anew makes another.
func seedOf(master digest, c ClientID, q keyed.Request) string {
	seed := q.Secret(master[:], "oauth client "+string(c))
	return hex.EncodeToString(seed[:])
}

// AddClientWith is AddClient with a secret that is made of a seed of at least 256 bits, which the caller can make
// again; without a seed it is AddClient.
func (s *Store) AddClientWith(ctx context.Context, c Client, seed logging.Secret) (secret logging.Secret, err error) {
	if seed.IsZero() {
		return s.AddClient(ctx, c)
	}
	err = s.change(ctx, false, func(x *tx) (err error) {
		secret, err = x.addClient(c, seed.Reveal())
		return err
	})
	if err != nil {
		return logging.Secret{}, err
	}
	return secret, nil
}

// SecretOf is the secret of a client that was made of a seed, if the client is there and has that secret.
func (s *Store) SecretOf(c ClientID, seed logging.Secret) (logging.Secret, bool) {
	if seed.IsZero() {
		return logging.Secret{}, false
	}
	secret := secretOf(seed.Reveal())
	return logging.NewSecret(secret), s.Authenticate(c, secret)
}

// dropRequests forgets keys that are free again and, beyond so many, the oldest of clients that are gone. It is
// not journaled: who reads a journal drops the same. mu is held.
func (s *Store) dropRequests(most int) {
	now := s.now()
	maps.DeleteFunc(s.requests, func(_ digest, q request) bool { return q.over(now) })
	over := len(s.requests) - most
	if over <= 0 {
		return
	}
	var gone []digest
	for key, q := range s.requests {
		if s.clients[q.client] == nil {
			gone = append(gone, key)
		}
	}
	slices.SortFunc(gone, func(a, b digest) int {
		return cmp.Or(cmp.Compare(s.requests[a].at, s.requests[b].at), bytes.Compare(a[:], b[:]))
	})
	for _, key := range gone[:min(over, len(gone))] {
		delete(s.requests, key)
	}
}

// requestRecords are the keys that bind somebody, as they are kept. What makes the secrets again goes with them to the
// journal of this host (master) and into no section: elsewhere a key is known, and gives no secret.
func (s *Store) requestRecords(master bool) []record {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []record
	if master && s.master != (digest{}) {
		out = append(out, record{op: putMaster, digest: s.master})
	}
	for _, key := range slices.SortedFunc(maps.Keys(s.requests), func(a, b digest) int { return bytes.Compare(a[:], b[:]) }) {
		q := s.requests[key]
		if q.over(now) {
			continue
		}
		out = append(out, record{op: putRequest, digest: key, secret: q.body, client: Client{ID: q.client}, expires: q.at})
	}
	return out
}
