package state

import (
	"iter"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Host is a machine with an agent and an nginx.
type Host struct {
	ID          id.Host            `json:"id,omitzero"`
	Status      string             `json:"status,omitzero"` // api.HostAlive, HostSilent, HostLost
	StatusAt    time.Time          `json:"status_at,omitzero"`
	Reason      string             `json:"reason,omitzero"`
	Cordoned    bool               `json:"cordoned,omitzero"`
	Drain       *Drain             `json:"drain,omitzero"`    // while it is cordoned for being emptied
	Instance    string             `json:"instance,omitzero"` // of the agent's run that reported last
	Report      command.HostReport `json:"report,omitzero"`
	CreatedAt   time.Time          `json:"created_at,omitzero"`
	CreateIndex uint64             `json:"create_index,omitzero"`
	ModifyIndex uint64             `json:"modify_index,omitzero"`
}

// Drain is the emptying of a cordoned host. Records are immutable, and so is what they point to.
type Drain struct {
	State    string        `json:"state"` // api.DrainDraining, DrainOverdue, DrainDrained
	Since    time.Time     `json:"since"`
	EndedAt  time.Time     `json:"ended_at,omitzero"` // when nothing was left
	Deadline time.Time     `json:"deadline,omitzero"`
	Drain    time.Duration `json:"drain,omitzero"` // how long connections of each gateway may go on
	Force    bool          `json:"force,omitzero"`
	Total    int           `json:"total,omitzero"`  // allocations that the host had at the beginning
	Reason   string        `json:"reason,omitzero"` // what it waits for
	Actor    string        `json:"actor,omitzero"`
}

const tableHosts = "hosts"

func hostTable() table {
	return table{
		kind:   2,
		schema: tableOf(tableHosts, unique(indexID, func(h *Host) string { return string(h.ID) })),
		save:   saveAll[Host](tableHosts),
		restore: restoreInto(tableHosts, func(t *Txn, h *Host, _ interner) error {
			t.setTallyHost(h.ID, h)
			return nil
		}),
	}
}

// Lost reports whether the host was given up.
func (h *Host) Lost() bool { return h.Status == api.HostLost }

// Host gives a host; nil when it is unknown.
func (v View) Host(ws WatchSet, host id.Host) *Host {
	return first[Host](v, ws, tableHosts, indexID, string(host))
}

// Hosts ranges over all hosts by id.
func (v View) Hosts(ws WatchSet) iter.Seq[*Host] { return v.HostsAfter(ws, "") }

// HostsAfter is Hosts for those after one.
func (v View) HostsAfter(ws WatchSet, after id.Host) iter.Seq[*Host] {
	return all[Host](v, ws, tableHosts, string(after))
}

// PutHost stores a host. The states of its gateways follow from it, so they are put afterwards.
func (t *Txn) PutHost(next Host) *Host {
	h := &next
	h.ModifyIndex = t.about.Index
	if h.CreateIndex == 0 {
		h.CreatedAt, h.CreateIndex = t.at, t.about.Index
	}
	t.insert(tableHosts, h)
	t.setTallyHost(h.ID, h)
	return h
}

// RemoveHost forgets a host, whose gateways must be gone.
func (t *Txn) RemoveHost(h *Host) {
	t.setTallyHost(h.ID, nil)
	t.remove(tableHosts, h)
}

// PoolsOfHost lists the pools that a host has ready gateways of.
func (t *Txn) PoolsOfHost(host id.Host) []id.Pool {
	c := t.tallyOf(host)
	if c == nil {
		return nil
	}
	var pools []id.Pool
	for i := range c.pools {
		if len(c.pools[i].ready) > 0 {
			pools = append(pools, c.pools[i].pool)
		}
	}
	return pools
}

// Eligible reports whether gateways of the host may be given out, and why not.
func (h *Host) Eligible() (why string, eligible bool) {
	switch {
	case h.Status != api.HostAlive:
		return "the host is " + h.Status, false
	case h.Cordoned:
		return "the host is cordoned", false
	case h.Report.NginxState != api.NginxServing:
		return "its nginx is " + h.Report.NginxState, false
	}
	return "", true
}
