package state

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// packing writes the fields of a record one after the other into one string, and reads them from it: it is given each
// field once, for both directions. The collector has nothing to follow in such a string, however many there are. It
// stays in memory, so its form may change: what goes to the disk is JSON.
type packing struct {
	reading bool
	data    []byte    // written
	text    string    // to be read; strings that were read are parts of it
	base    time.Time // which other times are near to
}

// number writes or reads a whole number.
func (p *packing) number(n *int64) {
	if !p.reading {
		p.data = binary.AppendVarint(p.data, *n)
		return
	}
	var u uint64
	for i := 0; ; i++ { // as binary.Varint does with bytes
		b := p.text[i]
		u |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			p.text = p.text[i+1:]
			break
		}
	}
	*n = int64(u>>1) ^ -int64(u&1)
}

func packNumber[N ~int | ~int64 | ~uint64](p *packing, n *N) {
	v := int64(*n)
	p.number(&v)
	*n = N(v)
}

func (p *packing) truth(b *bool) {
	v := int64(0)
	if *b {
		v = 1
	}
	p.number(&v)
	*b = v == 1
}

func (p *packing) fraction(f *float64) {
	v := int64(math.Float64bits(*f))
	p.number(&v)
	*f = math.Float64frombits(uint64(v))
}

// packedWords are in many records, and take one byte there.
var packedWords = [...]string{
	"", api.StepDone, api.StepReserve, api.StepActivate, api.StepRoute, api.StepVerify, api.StepConfirm, api.StepRecycle,
	api.StepUnroute, api.StepState, api.StepSkipped, api.StepDNS, api.StepUndoDNS, api.StepDeactivate, api.StepUndone,
	string(AllocationReleased), string(AllocationRolledBack), string(AllocationFailed), "default",
}

func packText[S ~string](p *packing, s *S) {
	if !p.reading {
		n := int64(len(*s))
		known := slices.Index(packedWords[:], string(*s))
		if known >= 0 {
			n = ^int64(known)
		}
		p.number(&n)
		if known < 0 {
			p.data = append(p.data, *s...)
		}
		return
	}
	var n int64
	if p.number(&n); n < 0 {
		*s = S(packedWords[^n])
		return
	}
	*s, p.text = S(p.text[:n]), p.text[n:]
}

// How a time was written.
const (
	timeZero = iota
	timeNear // how long after the base
	timeFar  // by itself
	timeOffset
)

// time writes or reads a time, with its offset from UTC. The first one becomes the base.
func (p *packing) time(t *time.Time) {
	if p.reading {
		p.readTime(t)
		return
	}
	_, offset := t.Zone()
	kind, after, nanoseconds := int64(timeFar), t.Unix(), int64(t.Nanosecond())
	switch d := t.Sub(p.base); {
	case t.IsZero() && offset == 0:
		kind = timeZero
	case offset != 0:
		kind = timeOffset
	case !p.base.IsZero() && d.Abs() < time.Hour<<10:
		kind, after = timeNear, int64(d)
	}
	p.number(&kind)
	if kind == timeZero {
		return
	}
	p.number(&after)
	if kind != timeNear {
		p.number(&nanoseconds)
		p.base = *t
	}
	if kind == timeOffset {
		packNumber(p, &offset)
	}
}

func (p *packing) readTime(t *time.Time) {
	var kind, after, nanoseconds int64
	if p.number(&kind); kind == timeZero {
		*t = time.Time{}
		return
	}
	p.number(&after)
	if kind == timeNear {
		*t = p.base.Add(time.Duration(after)).UTC()
		return
	}
	p.number(&nanoseconds)
	*t = time.Unix(after, nanoseconds).UTC()
	p.base = *t
	if kind == timeOffset {
		var offset int
		packNumber(p, &offset)
		*t = t.In(time.FixedZone("", offset))
	}
}

// packList writes or reads a list, and tells none from an empty one.
func packList[T any](p *packing, items *[]T, fields func(*packing, *T)) {
	n := -1
	if *items != nil {
		n = len(*items)
	}
	if packNumber(p, &n); n < 0 {
		return
	}
	if p.reading {
		*items = make([]T, n)
	}
	for i := range *items {
		fields(p, &(*items)[i])
	}
}
