package command

import (
	"slices"
	"strconv"
	"time"
)

// codec writes and reads the few commands that every allocation puts into the log, in the very bytes of
// encoding/json and at a tenth of its cost: it is given each field once, for both directions. What it does
// not know (an escaped character, another order of fields, white space) makes it give up, and encoding/json
// does the work; so it never decides what is a valid command.
type codec struct {
	data    []byte // written, or to be read
	at      int    // read so far
	reading bool
	inside  bool // an element has been written or read, so a comma comes next
	gaveUp  bool
}

// fields is what codec can do.
type fields interface{ fields(*codec) }

// appendFast appends the payload of a command; when ok is false, encoding/json has to do it.
func appendFast(data []byte, c Command) (payload []byte, ok bool) {
	x := codec{data: data}
	switch c := c.(type) {
	case Reserve:
		x.data = slices.Grow(x.data, 256+72*len(c.Items))
		x.object(&c)
	case Confirm:
		x.data = slices.Grow(x.data, 1024)
		x.object(&c)
	case Release:
		x.object(&c)
	case ObserveHost:
		x.data = slices.Grow(x.data, 256*(1+len(c.Gateways)))
		x.object(&c)
	default:
		return nil, false
	}
	return x.data, !x.gaveUp
}

// readFast fills a command with a payload; when ok is false, encoding/json has to do it.
func readFast(payload []byte, c any) (ok bool) {
	f, ok := c.(fields)
	if !ok {
		return false
	}
	x := codec{data: payload, reading: true}
	x.object(f)
	return !x.gaveUp && x.at == len(payload)
}

func (c *Reserve) fields(x *codec) {
	c.Meta.fields(x)
	x.text("pool", (*string)(&c.Pool), false)
	list(x, "items", &c.Items, false)
	x.time("queue_until", &c.QueueUntil, true)
	number(x, "ttl", &c.TTL, true)
	if len(c.Metadata) != 0 {
		x.gaveUp = true
	}
	x.text("key", &c.Key, true)
	x.text("digest", &c.Digest, true)
	x.truth("pool_named", &c.PoolNamed)
}

func (i *ReserveItem) fields(x *codec) {
	x.text("o", (*string)(&i.Organization), false)
	x.text("a", (*string)(&i.Allocation), false)
}

func (c *Confirm) fields(x *codec) {
	c.Meta.fields(x)
	x.text("allocation", (*string)(&c.Allocation), false)
	number(x, "epoch", &c.Epoch, false)
	list(x, "journal", &c.Journal, false)
	x.key("timings", false)
	x.object(&c.Timings)
	x.key("observed", false)
	x.object(&c.Observed)
}

func (c *Release) fields(x *codec) {
	c.Meta.fields(x)
	x.text("allocation", (*string)(&c.Allocation), false)
	number(x, "drain", &c.Drain, true)
	x.text("reason", &c.Reason, true)
}

func (c *ObserveHost) fields(x *codec) {
	c.Meta.fields(x)
	x.text("host", (*string)(&c.Host), false)
	x.text("instance", &c.Instance, false)
	x.truth("full", &c.Full)
	if c.Report != nil || len(c.Events) != 0 {
		x.gaveUp = true
	}
	list(x, "gateways", &c.Gateways, true)
	x.truth("stays_silent", &c.StaysSilent)
}

func (m *Meta) fields(x *codec) {
	x.time("at", &m.At, false)
	x.text("actor", &m.Actor, true)
	x.text("source", &m.Source, true)
}

func (s *Step) fields(x *codec) {
	x.text("step", &s.Step, false)
	x.text("state", &s.State, false)
	x.time("started_at", &s.StartedAt, false)
	x.time("ended_at", &s.EndedAt, true)
	x.text("error", &s.Error, true)
	x.text("code", (*string)(&s.Code), true)
}

func (t *Timings) fields(x *codec) {
	number(x, "queue", &t.Queue, true)
	number(x, "reserve", &t.Reserve, true)
	number(x, "activate", &t.Activate, true)
	number(x, "route", &t.Route, true)
	number(x, "dns", &t.DNS, true)
	number(x, "verify", &t.Verify, true)
	number(x, "confirm", &t.Confirm, true)
	number(x, "total", &t.Total, true)
}

func (r *GatewayReport) fields(x *codec) {
	x.text("gateway", (*string)(&r.Gateway), false)
	number(x, "incarnation", &r.Incarnation, false)
	x.text("phase", &r.Phase, false)
	x.text("organization", (*string)(&r.Organization), true)
	number(x, "epoch", &r.Epoch, true)
	x.text("boot_id", &r.BootID, true)
	number(x, "pid", &r.PID, true)
	number(x, "restarts", &r.Restarts, true)
	x.text("code", (*string)(&r.Code), true)
	x.text("message", &r.Message, true)
	list(x, "undo", &r.Undo, true)
}

// key writes or reads the name of a field. It is false when the field is not there to be read, which only
// an optional one may be.
func (x *codec) key(name string, optional bool) bool {
	if !x.reading {
		if x.inside {
			x.data = append(x.data, ',')
		}
		x.inside = true
		x.data = append(append(append(x.data, '"'), name...), `":`...)
		return true
	}
	rest := x.data[x.at:]
	n := 0
	if x.inside {
		n = 1
		if len(rest) == 0 || rest[0] != ',' {
			n = len(rest)
		}
	}
	if end := n + len(name) + 3; len(rest) >= end && rest[n] == '"' && string(rest[n+1:end-2]) == name && rest[end-2] == '"' && rest[end-1] == ':' {
		x.at += end
		x.inside = true
		return true
	}
	if !optional {
		x.gaveUp = true
	}
	return false
}

// byte writes or reads one character.
func (x *codec) byte(c byte) {
	switch {
	case !x.reading:
		x.data = append(x.data, c)
	case x.next(c):
		x.at++
	default:
		x.gaveUp = true
	}
}

// next reports whether a character is the next one to be read.
func (x *codec) next(c byte) bool { return x.at < len(x.data) && x.data[x.at] == c }

func (x *codec) object(f fields) {
	outer := x.inside
	x.byte('{')
	x.inside = false
	f.fields(x)
	x.byte('}')
	x.inside = outer
}

// shortList is how long a list is for which room is made at first: a journal is followed by more.
const shortList = 6

// list writes or reads a list of objects.
func list[T any, P interface {
	*T
	fields
}](x *codec, name string, items *[]T, optional bool) {
	switch {
	case !x.reading && optional && len(*items) == 0, !x.key(name, optional):
		return
	case !x.reading && *items == nil:
		x.data = append(x.data, "null"...)
		return
	case x.reading:
		*items = []T{}
	}
	x.byte('[')
	began := x.at
	for i := 0; !x.gaveUp && (i < len(*items) || x.reading && !x.next(']')); i++ {
		if i > 0 {
			x.byte(',')
		}
		if x.reading {
			if i == 1 || i == shortList {
				most := (len(x.data) - x.at) * i / (x.at - began) // the others are of about this length, if nothing else follows
				if i == 1 {
					most = min(most, shortList-1)
				}
				*items = slices.Grow(*items, most)
			}
			var item T
			*items = append(*items, item)
		}
		x.object(P(&(*items)[i]))
	}
	x.byte(']')
}

// text writes or reads a string. One with a character that JSON escapes is left to encoding/json.
func (x *codec) text(name string, s *string, optional bool) {
	if !x.reading && optional && *s == "" || !x.key(name, optional) {
		return
	}
	x.byte('"')
	if x.reading {
		*s = x.word()
	} else {
		for i := range len(*s) {
			switch c := (*s)[i]; {
			case c < ' ', c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
				x.gaveUp = true
				return
			}
		}
		x.data = append(x.data, *s...)
	}
	x.byte('"')
}

// word reads up to the next quotation mark.
func (x *codec) word() string {
	began := x.at
	for ; x.at < len(x.data) && x.data[x.at] != '"'; x.at++ {
		if c := x.data[x.at]; c < ' ' || c > '~' || c == '\\' {
			x.gaveUp = true
			break
		}
	}
	return shared(x.data[began:x.at])
}

// shared gives the words that stand in every journal as constants: the state keeps them for each allocation.
func shared(word []byte) string {
	switch string(word) {
	case "allocator":
		return "allocator"
	case "reserve":
		return "reserve"
	case "activate":
		return "activate"
	case "route":
		return "route"
	case "dns":
		return "dns"
	case "verify":
		return "verify"
	case "confirm":
		return "confirm"
	case "recycle":
		return "recycle"
	case "unroute":
		return "unroute"
	case "relocate":
		return "relocate"
	case "state":
		return "state"
	case "done":
		return "done"
	case "skipped":
		return "skipped"
	case "ready":
		return "ready"
	case "serving":
		return "serving"
	}
	return string(word)
}

func (x *codec) time(name string, t *time.Time, optional bool) {
	if !x.reading && optional && t.IsZero() || !x.key(name, optional) {
		return
	}
	x.byte('"')
	if x.reading {
		began := x.at
		for x.at < len(x.data) && x.data[x.at] != '"' {
			x.at++
		}
		if t.UnmarshalText(x.data[began:x.at]) != nil {
			x.gaveUp = true
		}
	} else if data, err := t.AppendText(x.data); err != nil {
		x.gaveUp = true
	} else {
		x.data = data
	}
	x.byte('"')
}

// number writes or reads a whole number. One of more than 18 digits is left to encoding/json.
func number[N ~int | ~int64 | ~uint64](x *codec, name string, n *N, optional bool) {
	if !x.reading && optional && *n == 0 || !x.key(name, optional) {
		return
	}
	if !x.reading {
		if *n < 0 {
			x.data = strconv.AppendInt(x.data, int64(*n), 10)
		} else {
			x.data = strconv.AppendUint(x.data, uint64(*n), 10)
		}
		return
	}
	began, v := x.at, N(0)
	for ; x.at < len(x.data) && x.data[x.at] >= '0' && x.data[x.at] <= '9'; x.at++ {
		v = v*10 + N(x.data[x.at]-'0')
	}
	if digits := x.at - began; digits == 0 || digits > 18 || digits > 1 && x.data[began] == '0' {
		x.gaveUp = true
	}
	*n = v
}

// truth writes or reads a value that is there when it is true.
func (x *codec) truth(name string, b *bool) {
	if !x.reading && !*b || !x.key(name, true) {
		return
	}
	*b = true
	for _, c := range []byte("true") {
		x.byte(c)
	}
}
