package nginx

import (
	"errors"
	"io/fs"
	"syscall"
)

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

// forget removes the slot of a target that no route leads to any more. An epoch belongs to one organization
// only, so nobody else can be using it. Failing costs an empty file.
func (r *routes) forget(t Target) { _ = r.fs.Remove("nginx.route.forget", r.l.slot(t)) }
