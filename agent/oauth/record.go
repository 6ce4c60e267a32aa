package oauth

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// op is what a record does to a store. Journals and sections hold them: never reorder or reuse a number.
type op uint8

const (
	putClient  op = 1
	dropClient op = 2 // with all that belongs to it
	dropUser   op = 3 // all that belongs to a member who left
	putGrant   op = 4
	dropGrant  op = 5 // a family dies
	putToken   op = 6
	useCode    op = 7
	dropToken  op = 8
	rotate     op = 9  // the family's refresh token was exchanged
	putRequest op = 10 // an Idempotency-Key has made a client
	putMaster  op = 11 // what secrets are made of with such keys; in journals only
)

// record is one change. Every change of a store is made by applying a record, when it happens and when it is
// read again, so both give the same. All of them set something to a value: applying one twice, or one that
// is older than the rest and the later ones after it, ends in the same state.
type record struct {
	op         op
	client     Client   // putClient; of dropClient, putGrant and putRequest only the id
	secret     digest   // putClient; of putRequest the digest of the body
	user       id.User  // dropUser, putGrant (empty: the client acts for itself)
	grant      uint64   // putGrant, dropGrant, putToken, rotate
	scope      string   // putGrant, putToken
	ends       int64    // putGrant
	rotated    int64    // putGrant, rotate
	generation uint32   // putGrant, putToken, rotate
	kind       Kind     // putToken
	digest     digest   // putToken, useCode, dropToken; putRequest: of the key; putMaster: the key itself
	expires    int64    // putToken; of putRequest when it came
	used       bool     // putToken
	code       codeTies // putToken of a code

	// known is the grant itself where the caller has it; it is not stored.
	known *grant
}

// codeTies is what an authorization code is bound to.
type codeTies struct{ redirect, challenge string }

// maxText bounds every text in a record.
const maxText = 8 << 10

var errRecord = errors.New("a record is malformed")

// append adds the record's stored form to buf.
func (r *record) append(buf []byte) []byte {
	buf = append(buf, byte(r.op))
	number := func(n uint64) { buf = binary.AppendUvarint(buf, n) }
	text := func(s string) { number(uint64(len(s))); buf = append(buf, s...) }
	flag := func(on bool) {
		if on {
			buf = append(buf, 1)
		} else {
			buf = append(buf, 0)
		}
	}
	list := func(all []string) {
		number(uint64(len(all)))
		for _, s := range all {
			text(s)
		}
	}
	switch r.op {
	case putClient:
		text(string(r.client.ID))
		text(r.client.Name)
		flag(r.client.Public)
		flag(r.client.Service)
		list(r.client.Redirects)
		list(r.client.Scope)
		buf = append(buf, r.secret[:]...)
	case dropClient:
		text(string(r.client.ID))
	case dropUser:
		text(string(r.user))
	case putGrant:
		number(r.grant)
		text(string(r.client.ID))
		text(string(r.user))
		text(r.scope)
		number(uint64(r.ends))
		number(uint64(r.rotated))
		number(uint64(r.generation))
	case dropGrant:
		number(r.grant)
	case putToken:
		buf = append(buf, byte(r.kind))
		buf = append(buf, r.digest[:]...)
		number(r.grant)
		number(uint64(r.expires))
		number(uint64(r.generation))
		text(r.scope)
		flag(r.used)
		if r.kind == Code {
			text(r.code.redirect)
			text(r.code.challenge)
		}
	case useCode, dropToken:
		buf = append(buf, r.digest[:]...)
	case rotate:
		number(r.grant)
		number(uint64(r.rotated))
		number(uint64(r.generation))
	case putRequest:
		buf = append(buf, r.digest[:]...)
		buf = append(buf, r.secret[:]...)
		text(string(r.client.ID))
		number(uint64(r.expires))
	case putMaster:
		buf = append(buf, r.digest[:]...)
	}
	return buf
}

// decodeRecord reads one record from the beginning of data and returns the rest. It accepts nothing but what
// append writes.
func decodeRecord(data []byte) (record, []byte, error) {
	in := reader{rest: data}
	r := record{op: op(in.byte())}
	switch r.op {
	case putClient:
		r.client = Client{ID: ClientID(in.text()), Name: in.text(), Public: in.flag(), Service: in.flag()}
		r.client.Redirects, r.client.Scope = in.list(maxRedirects), in.list(maxScopes)
		r.secret = in.digest()
	case dropClient:
		r.client.ID = ClientID(in.text())
	case dropUser:
		r.user = id.User(in.text())
	case putGrant:
		r.grant, r.client.ID, r.user, r.scope = in.grant(), ClientID(in.text()), id.User(in.text()), in.text()
		r.ends, r.rotated, r.generation = in.time(), in.time(), in.small()
	case dropGrant:
		r.grant = in.grant()
	case putToken:
		r.kind, r.digest, r.grant = Kind(in.byte()), in.digest(), in.grant()
		r.expires, r.generation, r.scope, r.used = in.time(), in.small(), in.text(), in.flag()
		switch r.kind {
		case Code:
			r.code = codeTies{redirect: in.text(), challenge: in.text()}
		case Access, Refresh:
		default:
			in.fail()
		}
	case useCode, dropToken:
		r.digest = in.digest()
	case rotate:
		r.grant, r.rotated, r.generation = in.grant(), in.time(), in.small()
	case putRequest:
		r.digest, r.secret, r.client.ID, r.expires = in.digest(), in.digest(), ClientID(in.text()), in.time()
	case putMaster:
		r.digest = in.digest()
	default:
		return record{}, nil, fmt.Errorf("a record of type %d is not known: run a version that knows it", r.op)
	}
	if in.failed {
		return record{}, nil, errRecord
	}
	return r, in.rest, nil
}

// reader takes values from the front of a slice; after a failure it gives zeros.
type reader struct {
	rest   []byte
	failed bool
}

func (in *reader) fail() { in.failed, in.rest = true, nil }

func (in *reader) take(n int) []byte {
	if n < 0 || n > len(in.rest) { // a length may be larger than an int
		in.fail()
		return nil
	}
	out := in.rest[:n]
	in.rest = in.rest[n:]
	return out
}

func (in *reader) byte() byte {
	if b := in.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (in *reader) flag() bool {
	b := in.byte()
	if b > 1 {
		in.fail()
	}
	return b == 1
}

// number refuses what is longer than it need be, so that everything has one form.
func (in *reader) number() uint64 {
	n, size := binary.Uvarint(in.rest)
	if size <= 0 || size > 1 && in.rest[size-1] == 0 {
		in.fail()
		return 0
	}
	in.rest = in.rest[size:]
	return n
}

// maxGrant leaves numbers for more grants than there will ever be.
const maxGrant = 1 << 62

// grant is the number of a grant, which is never zero.
func (in *reader) grant() uint64 {
	n := in.number()
	if n == 0 || n > maxGrant {
		in.fail()
	}
	return n
}

func (in *reader) small() uint32 {
	n := in.number()
	if n > 1<<32-2 { // one below the largest: a generation is added to
		in.fail()
	}
	return uint32(n)
}

// time is Unix milliseconds before the year 10000.
func (in *reader) time() int64 {
	n := in.number()
	if n >= 253402300800000 {
		in.fail()
	}
	return int64(n)
}

func (in *reader) text() string {
	n := in.number()
	if n > maxText {
		in.fail()
	}
	return string(in.take(int(n)))
}

func (in *reader) list(most int) []string {
	n := in.number()
	if n > uint64(most) {
		in.fail()
	}
	var out []string
	for range n {
		if in.failed {
			return nil
		}
		out = append(out, in.text())
	}
	return out
}

func (in *reader) digest() (d digest) {
	copy(d[:], in.take(len(d)))
	return d
}
