package nginx

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// spentSlot is a slot that no route leads to any more.
type spentSlot struct {
	target Target
	since  time.Time
}

// makeSlot makes what a route to the target leads to.
func (r *routes) makeSlot(t Target) error {
	err := r.fs.Link("nginx.route.slot", r.l.slotFile(), r.l.slot(t))
	switch {
	case err == nil, errors.Is(err, fs.ErrExist):
		return nil
	case !errors.Is(err, syscall.EMLINK) && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// File systems bound the names of one file (ext4: 65,000): the rest are files of their own.
	return r.fs.Write("nginx.route.slot.file", r.l.slot(t), nil, 0o600)
}

// forget marks the slot of a target that the organization's route has left. It stays for a while: a worker
// of nginx may have read the link before the switch and look for the slot after it.
func (r *routes) forget(org id.Organization, t Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spent[org] = append(r.spent[org], spentSlot{t, time.Now()})
}

// sweep removes the slots that were left longer ago than age. An epoch belongs to one organization only,
// so its lock keeps a slot that is used again. Failing costs an empty file.
func (r *routes) sweep(ctx context.Context, age time.Duration) {
	r.mu.Lock()
	due := slices.Collect(maps.Keys(r.spent))
	r.mu.Unlock()
	for _, org := range due {
		unlock, err := r.locks.lock(ctx, org)
		if err != nil {
			return
		}
		for _, t := range r.takeSpent(org, age) {
			_ = r.fs.Remove("nginx.route.forget", r.l.slot(t))
		}
		unlock()
	}
}

// takeSpent takes what is old enough from the organization's spent slots, without one in use again.
func (r *routes) takeSpent(org id.Organization, age time.Duration) (out []Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	current, has := r.table[org]
	var young []spentSlot
	for _, s := range r.spent[org] {
		switch {
		case time.Since(s.since) < age:
			young = append(young, s)
		case !has || s.target != current:
			out = append(out, s.target)
		}
	}
	if r.spent[org] = young; len(young) == 0 {
		delete(r.spent, org)
	}
	return out
}
