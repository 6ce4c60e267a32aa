// Package fsm applies the commands of the Raft log to the state, one batch in one transaction. Applying has
// no clock, no randomness and no side effect: every member that applies the same log has the same state,
// whatever its batches and snapshots were. A command that is refused leaves nothing but its answer; so
// every command looks first and writes afterwards.
package fsm

import (
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
)

// FSM is the state machine behind the Raft log. The library calls its methods one at a time.
type FSM struct {
	store *state.Store
	log   hclog.Logger
}

var _ raft.BatchingFSM = (*FSM)(nil)

// New makes the state machine that writes store. It is the store's only writer.
func New(store *state.Store, log hclog.Logger) *FSM {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return &FSM{store: store, log: log}
}

// Apply applies one entry and answers a command.Result.
func (f *FSM) Apply(entry *raft.Log) any { return f.ApplyBatch([]*raft.Log{entry})[0] }

// ApplyBatch applies entries in one transaction. An entry that this version cannot read ends the process:
// to pass over it would build another state than the other members have.
func (f *FSM) ApplyBatch(entries []*raft.Log) []any {
	answers := make([]any, len(entries))
	t := f.store.Begin()
	for i, entry := range entries {
		if entry.Type != raft.LogCommand {
			continue
		}
		c, err := command.Decode(entry.Data)
		if err != nil {
			t.Abort()
			f.log.Error("cannot apply an entry of the log, stopping", "index", entry.Index, "error", err)
			panic(fmt.Sprintf("cannot apply entry %d of the log: %v", entry.Index, err))
		}
		if s, ok := c.(command.Skipped); ok {
			f.log.Warn("passing over a command that a newer version wrote", "index", entry.Index, "type", s.Kind)
		}
		answers[i] = applyEntry(t, entry.Index, c)
	}
	t.Commit()
	return answers
}

// origin is what every command embeds.
type origin interface {
	When() time.Time
	Who() (actor, source string)
}

func applyEntry(t *state.Txn, index uint64, c command.Command) command.Result {
	at := state.Origin{Index: index}
	if o, ok := c.(origin); ok {
		at.At = o.When()
		at.Actor, at.Source = o.Who()
	}
	t.Entry(at)
	result := apply(t, c)
	for _, pool := range t.TakeServing() {
		serveLine(t, pool)
	}
	return result
}

func apply(t *state.Txn, c command.Command) command.Result {
	switch c := c.(type) {
	case command.InitCluster:
		return initCluster(t, c)
	case command.Reserve:
		return reserve(t, c)
	case command.Confirm:
		return confirm(t, c)
	case command.Fail:
		return fail(t, c)
	case command.Release:
		return release(t, c)
	case command.ObserveHost:
		return observeHost(t, c)
	case command.SetHostStatus:
		return setHostStatus(t, c)
	case command.SetHostSchedulable:
		return setHostSchedulable(t, c)
	case command.DeleteHost:
		return deleteHost(t, c)
	case command.PutPool:
		return putPool(t, c)
	case command.DeletePool:
		return deletePool(t, c)
	case command.NotePool:
		return notePool(t, c)
	case command.CreateGateways:
		return createGateways(t, c)
	case command.RetireGateways:
		return retireGateways(t, c)
	case command.RecycleGateway:
		return recycleGateway(t, c)
	case command.QuarantineGateway:
		return quarantineGateway(t, c)
	case command.PutOrganization:
		return putOrganization(t, c)
	case command.EditOrganization:
		return editOrganization(t, c)
	case command.DeleteOrganization:
		return deleteOrganization(t, c)
	case command.PutToken:
		return putToken(t, c)
	case command.DeleteToken:
		return deleteToken(t, c)
	case command.Collect:
		return collect(t, c)
	case command.RecordEvents:
		return recordEvents(t, c)
	case command.PutTrust:
		return putTrust(t, c)
	case command.PutJoinToken:
		return putJoinToken(t, c)
	case command.DeleteJoinToken:
		return deleteJoinToken(t, c)
	case command.Enroll:
		return enroll(t, c)
	case command.DeleteEnrolment:
		return deleteEnrolment(t, c)
	case command.LoseHost:
		return loseHost(t, c)
	case command.Relocate:
		return relocate(t, c)
	case command.Place:
		return place(t, c)
	case command.DrainHost:
		return drainHost(t, c)
	case command.NoteDrain:
		return noteDrain(t, c)
	case command.RenewGateways:
		return renewGateways(t, c)
	}
	return command.Result{} // skipped
}
