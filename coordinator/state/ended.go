package state

import (
	"encoding/json"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
)

// packedAllocation is an allocation that has ended. There may be very many of them, nothing but people reads them, and
// as a record each would be nine objects for the collector to mark, again and again.
type packedAllocation string

// pack gives an allocation's packed form.
func pack(a *Allocation) packedAllocation {
	p := packing{data: make([]byte, 0, 1024)}
	a.fields(&p)
	return packedAllocation(p.data)
}

// unpack gives the record. Its strings are parts of the packed form.
func (packed packedAllocation) unpack() *Allocation {
	a := &Allocation{}
	a.fields(&packing{reading: true, text: string(packed)})
	return a
}

// endedAt is when the allocation ended.
func (packed packedAllocation) endedAt() (at time.Time) {
	(&packing{reading: true, text: string(packed)}).time(&at)
	return at
}

// id is the allocation's; it is a part of the packed form.
func (packed packedAllocation) id() (allocation string) {
	p := packing{reading: true, text: string(packed)}
	var at time.Time
	p.time(&at)
	packText(&p, &allocation)
	return allocation
}

// fields begins with those that the packed form is asked for.
func (a *Allocation) fields(p *packing) {
	p.time(&a.EndedAt)
	packText(p, &a.ID)
	packText(p, &a.Organization)
	packText(p, &a.Pool)
	packText(p, &a.Gateway)
	packText(p, &a.Host)
	packNumber(p, &a.Epoch)
	packText(p, &a.State)
	p.truth(&a.Warm)
	for _, t := range []*time.Time{&a.CreatedAt, &a.ReservedAt, &a.ActiveAt, &a.QueueUntil, &a.Deadline, &a.ExpiresAt} {
		p.time(t)
	}
	packNumber(p, &a.QueueIndex)
	packNumber(p, &a.QueueSeq)
	packNumber(p, &a.ActivationTimeout)
	packNumber(p, &a.TTL)
	t := &a.Timings
	for _, d := range []*time.Duration{&t.Queue, &t.Reserve, &t.Activate, &t.Route, &t.DNS, &t.Verify, &t.Confirm, &t.Total} {
		packNumber(p, d)
	}
	packList(p, &a.Journal, packStep)
	packText(p, &a.Failure.Code)
	packText(p, &a.Failure.Message)
	packNumber(p, &a.Explanation.Index)
	packText(p, &a.Explanation.Reason)
	packList(p, &a.Explanation.Candidates, packCandidate)
	packText(p, &a.Actor)
	packNumber(p, &a.CreateIndex)
	packNumber(p, &a.ModifyIndex)
	a.rareFields(p)
}

func packStep(p *packing, s *command.Step) {
	packText(p, &s.Step)
	packText(p, &s.State)
	p.time(&s.StartedAt)
	p.time(&s.EndedAt)
	packText(p, &s.Error)
	packText(p, &s.Code)
}

func packCandidate(p *packing, c *Candidate) {
	packText(p, &c.Host)
	packNumber(p, &c.Ready)
	p.fraction(&c.Load)
	p.truth(&c.Eligible)
	packText(p, &c.Reason)
}

// rareFields writes or reads, as JSON, what few allocations have.
func (a *Allocation) rareFields(p *packing) {
	type rare struct {
		Metadata map[string]string `json:"metadata,omitzero"`
		Move     *Move             `json:"move,omitzero"`
		Moves    []Moved           `json:"moves,omitzero"`
		Left     *Grant            `json:"left,omitzero"`
	}
	r := rare{a.Metadata, a.Move, a.Moves, a.Left}
	text := ""
	if !p.reading && (r.Metadata != nil || r.Move != nil || r.Moves != nil || r.Left != nil) {
		raw, err := json.Marshal(r)
		if err != nil {
			panic("cannot pack allocation " + string(a.ID) + ": " + err.Error()) // a snapshot has the same
		}
		text = string(raw)
	}
	if packText(p, &text); !p.reading || text == "" {
		return
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		panic("cannot unpack allocation " + string(a.ID) + ": " + err.Error())
	}
	a.Metadata, a.Move, a.Moves, a.Left = r.Metadata, r.Move, r.Moves, r.Left
}
