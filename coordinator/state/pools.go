package state

import (
	"iter"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Pool is a named set of gateways with one specification, and the pool keeper's note about it.
type Pool struct {
	Name              id.Pool        `json:"name,omitzero"`
	MinReady          int            `json:"min_ready,omitzero"`
	Step              int            `json:"step,omitzero"`
	Max               int            `json:"max,omitzero"`
	MaxInFlight       int            `json:"max_in_flight,omitzero"`
	Release           string         `json:"release,omitzero"`
	Limits            command.Limits `json:"limits,omitzero"`
	Isolation         string         `json:"isolation,omitzero"`
	ActivationTimeout time.Duration  `json:"activation_timeout,omitzero"`
	Deleting          bool           `json:"deleting,omitzero"`
	Breaker           Breaker        `json:"breaker,omitzero"`
	Limited           string         `json:"limited,omitzero"`
	CreatedAt         time.Time      `json:"created_at,omitzero"`
	CreateIndex       uint64         `json:"create_index,omitzero"`
	ModifyIndex       uint64         `json:"modify_index,omitzero"`
}

// Breaker stops the creation of gateways that keep failing.
type Breaker struct {
	State    string    `json:"state,omitzero"` // closed, open, half_open
	Until    time.Time `json:"until,omitzero"`
	Failures int       `json:"failures,omitzero"`
	Reason   string    `json:"reason,omitzero"`
}

const tablePools = "pools"

func poolTable() table {
	return table{
		kind:    3,
		schema:  tableOf(tablePools, unique(indexID, func(p *Pool) string { return string(p.Name) })),
		save:    saveAll[Pool](tablePools),
		restore: restoreInto[Pool](tablePools, nil),
	}
}

// Pool gives a pool; nil when it is unknown.
func (v View) Pool(ws WatchSet, pool id.Pool) *Pool {
	return first[Pool](v, ws, tablePools, indexID, string(pool))
}

// Pools ranges over all pools by name.
func (v View) Pools(ws WatchSet) iter.Seq[*Pool] {
	return v.PoolsAfter(ws, "")
}

// PoolsAfter is Pools for those after one.
func (v View) PoolsAfter(ws WatchSet, after id.Pool) iter.Seq[*Pool] {
	return all[Pool](v, ws, tablePools, string(after))
}

// PutPool stores a pool.
func (t *Txn) PutPool(next Pool) *Pool {
	p := &next
	p.ModifyIndex = t.about.Index
	if p.CreateIndex == 0 {
		p.CreatedAt, p.CreateIndex = t.at, t.about.Index
	}
	t.insert(tablePools, p)
	return p
}

// RemovePool forgets a pool.
func (t *Txn) RemovePool(p *Pool) { t.remove(tablePools, p) }
