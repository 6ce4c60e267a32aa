package container

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/records"
)

// A section is the whole registry as another host needs it, in the journal's form: without places, because a
// container that has a new host has to say there where it is, and without the keys of the sessions and of what is made
// of Idempotency-Keys, which are of this host. Of tokens and Idempotency-Keys it has digests alone.
const sectionHeader = "demiurge container section 1\n"

// Section writes the registry as the organization's section "containers", and the version that it has at
// least. Equal registries give equal bytes.
func (r *Registry) Section() (form []byte, version uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := r.opts.Now()
	form = addEntry([]byte(sectionHeader), signingKey, r.signing)
	for _, c := range slices.Sorted(maps.Keys(r.containers)) {
		rec := *r.containers[c].record
		rec.Place = nil
		if rec.Request.over(now) {
			rec.Request = nil
		}
		form = addEntry(form, containerKey+string(c), rec)
	}
	for _, key := range slices.Sorted(maps.Keys(r.gone)) {
		if mark := r.gone[key]; !mark.over(now) {
			form = addEntry(form, goneKey+key, mark)
		}
	}
	return form, r.version
}

func addEntry(form []byte, key string, value any) []byte {
	raw, err := json.Marshal(value)
	if err == nil {
		form, err = appendLine(form, line{key, raw})
	}
	if err != nil {
		panic(err) // strings, numbers and times
	}
	return form
}

// readSection takes a section into an empty journal. It accepts nothing but what Section writes; what is in
// the entries is checked with those of the journal.
func (r *Registry) readSection(section []byte) error {
	var wrong error
	whole, err := records.Scan(section, sectionHeader, largestLine, func(payload []byte) bool {
		var l line
		if wrong = json.Unmarshal(payload, &l); wrong != nil {
			return false
		}
		wrong = r.checkEntry(l)
		r.journal.set(l)
		return wrong == nil
	})
	switch {
	case err != nil:
		return err
	case wrong != nil:
		return wrong
	case whole != len(section):
		return fmt.Errorf("byte %d of %d is damaged", whole, len(section))
	case len(r.journal.values[signingKey]) == 0:
		return fmt.Errorf("the key of its tokens is missing")
	}
	gone := 0
	for key := range r.journal.values {
		if strings.HasPrefix(key, goneKey) {
			gone++
		}
	}
	if len(r.journal.values)-gone > r.opts.Limits.Containers+1 || gone > maxGone {
		return fmt.Errorf("there are more than %d containers, or than %d that are gone", r.opts.Limits.Containers, maxGone)
	}
	return nil
}

func (r *Registry) checkEntry(l line) error {
	if _, twice := r.journal.values[l.Key]; twice || len(l.Value) == 0 || l.Key == cookieKey || l.Key == masterKey {
		return fmt.Errorf("the entry %q does not belong into a section, or stands there twice", fault.Shorten(l.Key))
	}
	if l.Key == signingKey {
		var key []byte
		if err := json.Unmarshal(l.Value, &key); err != nil || len(key) != keySize {
			return fmt.Errorf("the key of its tokens is none")
		}
		return nil
	}
	if strings.HasPrefix(l.Key, goneKey) {
		return nil
	}
	var rec record
	if err := json.Unmarshal(l.Value, &rec); err != nil {
		return fmt.Errorf("the entry %q cannot be read: %w", fault.Shorten(l.Key), err)
	}
	if rec.Place != nil {
		return fmt.Errorf("container %s has a place of another host", fault.Shorten(string(rec.ID)))
	}
	return nil
}
